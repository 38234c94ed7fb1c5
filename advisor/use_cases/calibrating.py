"""How an export's codes are chosen: the method that was asked for, or the one that wins on text that it did not see."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from advisor import texts
from advisor.errors import PlanError, TextError
from advisor.knowledge import find_method
from advisor.methods import NEAREST, choose
from advisor.models import LoadedModel
from advisor.types import AppliedMethod, CalibrationSpec, MethodChoice, Plan, Progress
from advisor.use_cases.reporting import Report

if TYPE_CHECKING:
    import torch

    from advisor.export.calibrated import Calibrated
    from advisor.formats.quantize import Codes

# Where a plan does not say what its scores were measured on.
_DEFAULT = CalibrationSpec(text="python-docs", samples=16, seq_len=256)


class Chosen(NamedTuple):
    """What takes the place of round-to-nearest: `advisor.export.calibrated.Calibrated` says what these are."""

    codes: Mapping[str, Codes] = MappingProxyType({})
    weights: Mapping[str, torch.Tensor] = MappingProxyType({})


def with_method(
    plan: Plan, to: str, method: str, text: str | None, loaded: LoadedModel, report: Report
) -> tuple[Plan, Chosen]:
    """Carry out the method for a plan's integer layers, where it is not round-to-nearest; the model stays as it is.

    `auto` falls back to round-to-nearest, and says so, where the recommended method has no text, cannot be carried out
    on this model, or loses more than rounding to nearest on text that it did not see.

    Args:
        text: calibration text instead of the plan's own.

    Returns:
        The plan with `applied` in its provenance, and what the method chose.

    Raises:
        PlanError, TextError: what was asked for by name cannot be carried out.
    """
    choice = choose(method, plan, to, loaded.catalogue)
    if choice.name == NEAREST:
        return _noted(plan, AppliedMethod(asked=method, method=NEAREST, reason=choice.reason)), Chosen()
    label = find_method(choice.name).label
    report(Progress(stage="method", message=f"{label}: {choice.reason}"))
    spec = calibration_of(plan, text)
    try:
        found = _calibrated(plan, choice, spec, loaded, report)
    except (PlanError, TextError) as refusal:
        named = method != "auto" or (text is not None and isinstance(refusal, TextError))
        if named:
            raise
        return _nearest(plan, f"{label} was not possible: {refusal}", report), Chosen()
    compared = f"KL {found.kl:.4f}, rounded to nearest {found.nearest_kl:.4f}, on {found.tokens:,} tokens held back"
    if method == "auto" and found.kl >= found.nearest_kl:
        return _nearest(plan, f"{label} won nothing: {compared}", report), Chosen()
    report(Progress(stage="calibrated", message=compared))
    applied = AppliedMethod(
        asked=method,
        method=choice.name,
        reason=choice.reason,
        text=spec.text,
        samples=spec.samples,
        seq_len=spec.seq_len,
        kl=found.kl,
        nearest_kl=found.nearest_kl,
        tokens=found.tokens,
    )
    return _noted(plan, applied), Chosen(found.codes, found.weights)


def calibration_of(plan: Plan, text: str | None = None) -> CalibrationSpec:
    """The text that the plan's scores were measured on, as far as the plan says, or as much of another one."""
    stated = plan.provenance.get("calibration")
    spec = CalibrationSpec.model_validate(stated) if stated else _DEFAULT
    return spec.model_copy(update={"text": text}) if text else spec


def held_back_of(spec: CalibrationSpec) -> int:
    """Windows beside those that are calibrated on, which no method sees: what is calibrated on flatters itself."""
    return max(1, spec.samples // 2)


def _calibrated(
    plan: Plan, choice: MethodChoice, spec: CalibrationSpec, loaded: LoadedModel, report: Report
) -> Calibrated:
    count = spec.samples + held_back_of(spec)
    windows = texts.token_windows(spec.text, loaded.tokenizer, "calibration", count, spec.seq_len, spec.seed)
    texts.check_vocabulary(windows, loaded.model.get_input_embeddings().weight.shape[0])
    from advisor.export.calibrated import calibrate

    label = find_method(choice.name).label
    message = f"{label}, block by block, on {spec.samples} x {spec.seq_len} tokens of {spec.text}"

    def advance(done: int, total: int) -> None:
        report(Progress(stage="calibrate", done=done, total=total, message=message))

    seen, unseen = windows[: spec.samples], windows[spec.samples :]
    return calibrate(loaded, plan.assignments, choice.name, seen, unseen, advance)


def _nearest(plan: Plan, reason: str, report: Report) -> Plan:
    report(Progress(stage="method", message=f"{find_method(NEAREST).label} instead: {reason}"))
    return _noted(plan, AppliedMethod(asked="auto", method=NEAREST, reason=reason))


def _noted(plan: Plan, applied: AppliedMethod) -> Plan:
    stated = applied.model_dump(mode="json", exclude_none=True)
    return plan.model_copy(update={"provenance": plan.provenance | {"applied": stated}})
