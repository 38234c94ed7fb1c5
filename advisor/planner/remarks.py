"""What to know beside a plan: what its limits keep to spare, what it gives away, what chance may promise. Pure."""

from __future__ import annotations

from advisor.knowledge import find_engine, find_format, find_hardware, perplexity_marks
from advisor.memory import estimate_memory
from advisor.planner.regret import LITTLE
from advisor.types import (
    Budget,
    Catalogue,
    Front,
    Plan,
    PlanRequest,
    Prediction,
    SensitivityProfile,
    relative_change,
)
from advisor.units import number, size

# Predictions that diverge by less than this, nats per token, may well lose nothing: a percent of perplexity.
_SMALL_KL = 0.01
# So many times the predicted loss, and KL says that most of it was taken for a gain. On text of 4,096 tokens the two
# differ by less, but near no loss at all (benchmarks/plans.py).
_HOPE = 4

LOAD = frozenset({"context", "sequences", "kv_bits", "gpus"})


def of_tolerance(plan: Plan, profile: SensitivityProfile) -> str:
    """How near the prediction comes to the tolerance, the standard error it keeps to spare included; else empty."""
    tolerance, predicted = plan.request.budget.max_ppl_increase, plan.predicted
    if tolerance is None or predicted.measured or not any(score.projections for score in profile.measurements):
        return ""
    rises = (relative_change(predicted.delta_nll + errors * predicted.delta_nll_stderr) for errors in (0, 1))
    expected, upper = map(_percent, rises)
    return (
        f"Perplexity is predicted to rise by {expected}, and by {upper} with the one standard error that the tolerance "
        f"of {100 * tolerance:.3g} % keeps to spare, as scores are estimates."
    )


def with_a_tolerance(plan: Plan, catalogue: Catalogue) -> PlanRequest | None:
    """The request for the least memory within the rise of perplexity that the guide accepts.

    None where the plan has a tolerance, or its limit of memory is below the unquantized model and so asks for a plan.
    """
    request, budget = plan.request, plan.request.budget
    if budget.max_ppl_increase is not None or not _allows_everything(request, catalogue):
        return None
    accepted = perplexity_marks().acceptable.value / 100
    return request.model_copy(
        update={"budget": Budget(max_ppl_increase=accepted, **budget.model_dump(include=set(LOAD)))}
    )


def of_room(plan: Plan, smaller: Plan) -> str:
    """That memory allows everything unquantized, and what the plan `with_a_tolerance` would save; empty if nothing."""
    sizes = [one.memory.model_weights_bytes for one in (plan, smaller)]
    accepted = smaller.request.budget.max_ppl_increase
    if accepted is None or sizes[1] >= sizes[0]:
        return ""
    percent = f"{100 * accepted:.3g}"
    return (
        f"The limit has room for the unquantized model, so nothing asks for smaller weights. The least memory within a "
        f"perplexity {percent} % higher has {size(sizes[1])} of weights instead of {size(sizes[0])}: ask for least "
        f"memory within a rise of {percent} % to save the rest."
    )


def of_unused(plan: Plan, profile: SensitivityProfile) -> str:
    """How much of a limit of memory a plan of estimates leaves, since they predict no gain from more; else empty."""
    budget = plan.request.budget
    by_scores = not plan.predicted.measured and any(score.projections for score in profile.measurements)
    if not by_scores or budget.max_ppl_increase is not None or _allows_everything(plan.request, profile.catalogue):
        return ""
    used, limit, said = _used(plan)
    if used >= limit * (1 - LITTLE):
        return ""
    return (
        f"{said} that the limit allows are used: of the plans that were tried, no larger one within it is predicted to "
        "lose less. Refining runs the model with the whole plan in place, and may find what to spend the rest on."
    )


def of_hopes(plan: Plan, profile: SensitivityProfile) -> str:
    """That little is predicted of a plan that changes much, which may be chance; empty where it does not."""
    if not _hopeful(plan.predicted):
        return ""
    return f"The plan is predicted to lose much less than it changes. {_by_chance(plan.predicted, profile)}"


def of_hopeful_points(front: Front, profile: SensitivityProfile) -> str:
    """`of_hopes` for the plans of a front."""
    found = [point.predicted for point in front.points if _hopeful(point.predicted)]
    if not found:
        return ""
    most = max(found, key=lambda predicted: predicted.kl)
    which = "1 plan is predicted to lose much less than it changes"
    if len(found) > 1:
        which = f"{len(found)} plans are predicted to lose much less than they change"
    return f"{which}. {_by_chance(most, profile)}"


def _hopeful(predicted: Prediction) -> bool:
    return not predicted.measured and predicted.kl > max(_SMALL_KL, _HOPE * predicted.delta_nll)


def _by_chance(predicted: Prediction, profile: SensitivityProfile) -> str:
    high = predicted.perplexity_high / predicted.base_perplexity - 1
    return (
        f"On the {profile.baseline.tokens:,} tokens that were profiled, rounding looks like a gain here and there, "
        f"mostly by chance: perplexity may well rise by {_percent(high)}, and as far as the predictions diverge (KL), "
        f"by {_percent(relative_change(predicted.kl))}. A profile of more samples tells better."
    )


def _percent(change: float) -> str:
    return f"{number(100 * change, 2)} %"


def _used(plan: Plan) -> tuple[float, float, str]:
    """What a plan takes and what its limit of memory allows, in the limit's measure, and both in words."""
    budget, memory = plan.request.budget, plan.memory
    if budget.weight_bits is not None:
        return (
            memory.decided_bits,
            budget.weight_bits,
            f"{memory.decided_bits:.2f} of the {budget.weight_bits:.4g} bits",
        )
    if budget.weight_bytes is not None:
        used, limit = memory.model_weights_bytes, budget.weight_bytes
    else:
        used, limit = memory.total_bytes, memory.limit_bytes
    return used, limit, f"{size(used)} of the {size(limit)}"


def _allows_everything(request: PlanRequest, catalogue: Catalogue) -> bool:
    budget, engine = request.budget, find_engine(request.engine)
    if budget.weight_bits is not None:
        return budget.weight_bits >= find_format(catalogue.dtype).bits
    unquantized = estimate_memory(catalogue, {}, engine, find_hardware(request.hardware), budget)
    if budget.weight_bytes is not None:
        return unquantized.model_weights_bytes <= budget.weight_bytes
    return unquantized.fits
