"""A plan changed as little as it takes to be written in a given way, with what that does to size, speed and loss."""

from __future__ import annotations

from advisor.errors import PlanError
from advisor.export_checks import nearest_for
from advisor.knowledge import find_engine, find_format, find_hardware
from advisor.latency import estimate_latency
from advisor.memory import estimate_memory
from advisor.planner.planning import check_plan_fits
from advisor.planner.prediction import predict
from advisor.types import PREDICTED_FOR, Catalogue, Plan, Prediction, Reason, SensitivityProfile, Target


def nearest_plan(plan: Plan, target: Target, catalogue: Catalogue, profile: SensitivityProfile | None = None) -> Plan:
    """The plan that `target` can hold and that differs least: no layer gets fewer bytes than it was planned.

    It is for the target's own engine where that does not serve the plan's. Without a profile that measured it, the
    prediction stays that of the given plan, and `provenance` says so.

    Returns:
        The given plan itself where nothing has to change.

    Raises:
        PlanError: the plan is not for this model.
    """
    check_plan_fits(plan, catalogue)
    assignments = nearest_for(catalogue, plan.assignments, target)
    if assignments == plan.assignments:
        return plan
    request = plan.request.model_copy(update={"engine": _engine(plan, target, assignments)})
    engine, device = find_engine(request.engine), find_hardware(request.hardware)
    predicted = _predicted(assignments, profile)
    instead = {name: _reason(plan, name, assignments[name], target) for name in changed(plan, assignments)}
    changes = {
        "request": request,
        "assignments": assignments,
        "predicted": predicted or plan.predicted,
        "memory": estimate_memory(catalogue, assignments, engine, device, request.budget),
        "latency": estimate_latency(catalogue, assignments, engine, device, request.budget),
        "reasons": plan.reasons | instead,
        "optimality_gap": None,
        "exchange_rate": 0.0,
        "refinement": None,
        "provenance": plan.provenance | ({} if predicted else {PREDICTED_FOR: "the plan that this one is nearest to"}),
    }
    return plan.model_copy(update=changes)


def _engine(plan: Plan, target: Target, assignments: dict[str, str]) -> str:
    """The plan's engine if `target` serves it, else the target's first one that stores all formats."""
    own, formats = plan.request.engine, set(assignments.values())
    others = (name for name in target.engines if formats <= set(find_engine(name).formats))
    return own if own in target.engines else next(others, own)


def _predicted(assignments: dict[str, str], profile: SensitivityProfile | None) -> Prediction | None:
    try:
        return predict(profile, assignments) if profile else None
    except PlanError:  # a layer was not measured in its new format
        return None


def changed(plan: Plan, assignments: dict[str, str]) -> list[str]:
    """The layers whose format in `assignments` is not the plan's."""
    return [name for name, fmt in assignments.items() if plan.assignments.get(name) != fmt]


def _reason(plan: Plan, name: str, fmt: str, target: Target) -> Reason:
    was = find_format(plan.assignments[name]).label if name in plan.assignments else "the model's dtype"
    return Reason(text=f"{find_format(fmt).label} instead of {was}: the nearest that {target.label} can hold.")
