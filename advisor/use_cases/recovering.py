"""What a plan loses won back before it is written: trained on calibration text, kept where held-back text agrees."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from advisor import texts
from advisor.errors import PlanError, TextError
from advisor.methods import recovery_said, why_not_recovered
from advisor.types import CalibrationSpec, Plan, Progress, Recovery
from advisor.use_cases.calibrating import Chosen, calibration_of, held_back_of
from advisor.use_cases.reporting import Report

if TYPE_CHECKING:
    import torch

    from advisor.models import LoadedModel
    from advisor.recover import Recovered


def refuse_unrecoverable(plan: Plan, to: str, steps: int) -> None:
    """Raises PlanError where a recovery is asked for that this plan or this target cannot have; loads nothing."""
    refusal = why_not_recovered(plan, to) if steps else ""
    if refusal:
        raise PlanError(refusal)


def with_recovery(
    plan: Plan, chosen: Chosen, steps: int, text: str | None, loaded: LoadedModel, report: Report
) -> tuple[Plan, Chosen]:
    """Distill the original into the scales and norms of what a method chose, for `steps` batches of calibration text.

    What was trained is taken only where KL to the original falls on text held back from it.

    Args:
        text: calibration text instead of the plan's own.

    Returns:
        The plan with `recovered` in its provenance, and what to write.

    Raises:
        PlanError: the plan rounds activations. TextError: the text cannot be read, or there is too little of it.
    """
    started = time.perf_counter()
    spec = calibration_of(plan, text)
    message = f"Distilling the original into scales and norms, on {spec.text}"

    def advance(done: int, total: int) -> None:
        report(Progress(stage="recover", done=done, total=total, message=message))

    advance(0, steps)
    from advisor.recover import recover

    training, held_back = _windows(spec, steps, loaded)
    found = recover(
        loaded, plan.assignments, chosen.codes, chosen.weights, training, held_back, steps=steps, advance=advance
    )
    recovery = _recovery(found, spec.text, steps, time.perf_counter() - started)
    report(Progress(stage="recovered", message=recovery_said(recovery)))
    noted = plan.model_copy(update={"provenance": plan.provenance | {"recovered": recovery.model_dump(mode="json")}})
    return noted, Chosen(found.codes, found.weights) if recovery.kept else chosen


def _windows(spec: CalibrationSpec, steps: int, loaded: LoadedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Text to train on, as much as the steps take or as there is, and text held back from it.

    A method has seen the first windows and was judged on those that follow: here these are seen, and judged on, again.
    """
    import torch

    from advisor.recover import BATCH_TOKENS

    seen, held_back = spec.samples, held_back_of(spec)
    more = max(0, steps * BATCH_TOKENS // spec.seq_len - seen)
    try:
        windows = _read(spec, seen + held_back + more, loaded)
    except TextError:
        windows = _read(spec, seen + held_back, loaded)
    texts.check_vocabulary(windows, loaded.model.get_input_embeddings().weight.shape[0])
    first, unseen, rest = windows.split([seen, held_back, len(windows) - seen - held_back])
    return torch.cat([first, rest]), unseen


def _read(spec: CalibrationSpec, count: int, loaded: LoadedModel) -> torch.Tensor:
    return texts.token_windows(spec.text, loaded.tokenizer, "calibration", count, spec.seq_len, spec.seed)


def _recovery(found: Recovered, text: str, steps: int, seconds: float) -> Recovery:
    kl_before, kl = found.before.kl.mean().item(), found.after.kl.mean().item()
    return Recovery(
        steps=steps,
        kept=kl < kl_before,
        text=text,
        tokens=found.tokens,
        held_back=len(found.before.nll),
        kl_before=kl_before,
        kl=kl,
        perplexity_before=math.exp(found.before.nll.mean().item()),
        perplexity=math.exp(found.after.nll.mean().item()),
        seconds=seconds,
    )
