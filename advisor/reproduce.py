"""The commands that make a plan again, from what the plan and its sensitivity profile say of themselves. Pure."""

from __future__ import annotations

import shlex

from advisor.knowledge import target_for
from advisor.types import Budget, Evaluation, ExportRecord, Plan, PlanRequest, SensitivityProfile
from advisor.units import GIB, KIB, MIB

_PROGRAM = ("python", "-m", "advisor")


def commands(
    plan: Plan,
    profile: SensitivityProfile | None = None,
    record: ExportRecord | None = None,
    evaluation: Evaluation | None = None,
) -> list[str]:
    """One line for each step: profile, plan, apply, evaluate.

    Args:
        profile: without it the first step is left out, and the second starts from `profile.json`.
        record: how the plan was written; without it, as its engine takes it first.
        evaluation: on which text the plan was measured; without it, the text that is the default.
    """
    made = [_profile(profile)] if profile is not None else []
    target = record.target if record else target_for(plan.request.engine).name
    made += [_plan(plan), _line("apply", "plan.json", {"to": target, "out": "model"})]
    return [*made, _evaluate(plan, evaluation)]


def _profile(profile: SensitivityProfile) -> str:
    asked, formats = profile.calibration, ",".join(profile.formats)
    options = {"formats": formats, "method": profile.method, "text": asked.text, "samples": asked.samples}
    options |= {"seq-len": asked.seq_len, "seed": asked.seed} | ({"draws": asked.draws} if asked.draws else {})
    # A model of FP16 is measured in it unless told otherwise, and nothing else can be.
    options |= {"dtype": profile.dtype} if profile.dtype != "fp16" else {}
    return _line("profile", profile.catalogue.model.source, options | {"out": "profile.json"})


def _plan(plan: Plan) -> str:
    request, budget = plan.request, plan.request.budget
    usual = Budget(weight_bits=1)
    load = {"sequences": budget.sequences, "kv-bits": budget.kv_bits, "gpus": budget.gpus}
    given = {"sequences": usual.sequences, "kv-bits": usual.kv_bits, "gpus": usual.gpus}
    options: dict[str, object] = {"hardware": request.hardware, "engine": request.engine, **_limits(budget)}
    options |= {"context": budget.context} | {name: value for name, value in load.items() if value != given[name]}
    options |= {"lock": [f"{layers}={fmt}" for layers, fmt in request.locks.items()], "exclude": request.excluded}
    options |= {"formats": ",".join(request.formats), **_floors(request)}
    if plan.refinement is not None:
        options["refine"] = max(1, len(plan.refinement.rounds))
    return _line("plan", "profile.json", options | {"out": "plan.json"})


def _limits(budget: Budget) -> dict[str, str]:
    found = {}
    if budget.weight_bits is not None:
        found["weights"] = f"{budget.weight_bits!r}bits"
    if budget.weight_bytes is not None:
        found["weights"] = _size(budget.weight_bytes)
    if budget.vram_bytes is not None:
        found["vram"] = _size(budget.vram_bytes)
    if budget.max_ppl_increase is not None:
        found["max-ppl-increase"] = f"{_percent(budget.max_ppl_increase)}%"
    return found


def _floors(request: PlanRequest) -> dict[str, object]:
    floors = [f"{role.value}={bits}" for role, bits in request.floor_bits.items()]
    usual = PlanRequest.model_fields["role_floors"].default
    return {"role-floors": request.role_floors if request.role_floors != usual else "", "floor": floors}


def _evaluate(plan: Plan, evaluation: Evaluation | None) -> str:
    options: dict[str, object] = {"against": plan.model.source}
    if evaluation is not None:
        text = evaluation.text
        options |= {"text": text.text, "tokens": text.tokens, "seq-len": text.seq_len, "stride": text.stride or ""}
    return _line("evaluate", "model", options)


def _line(command: str, subject: str, options: dict[str, object]) -> str:
    """The command with its options, those with several values repeated and those that are empty left out."""
    words = [*_PROGRAM, command, subject]
    for name, value in options.items():
        values = value if isinstance(value, list | tuple) else [value] if value != "" else []
        for one in values:
            words += [f"--{name}", str(one)]
    return shlex.join(words)


def _size(count: int) -> str:
    """Bytes as the options read them; powers of two divide without rounding, so the number comes back exactly."""
    unit, factor = next(((u, f) for u, f in (("GiB", GIB), ("MiB", MIB)) if count >= f), ("KiB", KIB))
    return f"{count / factor:.30f}".rstrip("0").rstrip(".") + unit


def _percent(share: float) -> str:
    """The shortest number of percent that is read as just this share."""
    said = (f"{100 * share:.{digits}f}" for digits in range(18))
    return next((text for text in said if float(text) / 100 == share), f"{100 * share:.17f}")
