"""Turns a sensitivity profile and a request into a plan: candidates, exact solution, prediction, reasons. Pure.

The solver ranks by KL, which cannot be negative and so carries less chance than delta_nll on little text; where scores
carry Fisher projections, also by what can be believed of the first-order change of likelihood.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from advisor import estimates
from advisor.candidates import Case, Option, prepare
from advisor.errors import InfeasibleBudget, PlanError
from advisor.formats.table import divides, fits
from advisor.knowledge import find_format, perplexity_marks
from advisor.memory import estimate_memory
from advisor.reasons import explain, explain_simple
from advisor.refusals import refuse_budget, refuse_tolerance
from advisor.solver import Candidate, Solution, solve_min_cost, solve_min_loss
from advisor.types import (
    Catalogue,
    Format,
    LayerGroup,
    Measurement,
    Plan,
    PlanRequest,
    Prediction,
    Reason,
    Role,
    SensitivityProfile,
    now,
    relative_change,
)

ADVISOR_VERSION = "0.1.0"
_RAISED = (Role.EMBEDDING, Role.LM_HEAD, Role.ATTENTION_OUTPUT)
_MLP = (Role.MLP_GATE_UP, Role.MLP_DOWN, Role.EXPERT)
# 95 % of a normal distribution lie within this many standard errors.
_CONFIDENCE = 1.96
_TIGHTENINGS = 6  # two or three suffice where layers add up to more than their sum


def make_plan(profile: SensitivityProfile, request: PlanRequest) -> Plan:
    """The plan of least predicted loss within the budget, or of least bytes within a tolerance of perplexity.

    A tolerance bounds both summed KL and summed delta_nll by ln(1 + tolerance): when the text is as likely as what the
    model writes itself, the two agree, and on little text the larger one is the safer reading.

    Raises:
        InfeasibleBudget: nothing meets the budget; says the smallest possible size and what to change.
        PlanError: a lock or format cannot be had, or nothing is left to decide.
        KnowledgeError: the device, the engine or a format is unknown.
    """
    case = prepare(profile, request)
    solution = _solve(case)
    chosen = _chosen(case, solution)
    status = "optimal" if solution.gap == 0.0 else "stopped by the time limit"
    return assemble(case, chosen, explain(case, chosen), solution.gap, status)


def uniform_plan(profile: SensitivityProfile, request: PlanRequest, fmt: str) -> Plan | None:
    """Every decided layer in `fmt`, or in the next larger format that it may have; for comparison.

    Budget, locks, chosen formats and role floors are ignored: it is what one gets without an advisor. None when no
    layer can have the format.
    """
    case = prepare(profile, _without_wishes(request))
    wish = find_format(fmt)
    wanted = (wish,) * len(case.groups)
    return _simple_plan(case, wanted, "every layer has it in this comparison", "uniform", {wish.name})


def role_rule_plan(profile: SensitivityProfile, request: PlanRequest) -> Plan | None:
    """The guide's rule of thumb: MLPs and experts at 4 bits, all else at 8; for comparison, like `uniform_plan`.

    Of several measured formats with these bits it takes the one that stores the fewest bytes. None when no layer can
    have either.
    """
    case = prepare(profile, _without_wishes(request))
    four, eight = _smallest_of_bits(case, 4), _smallest_of_bits(case, 8)
    if four is None or eight is None:
        return None
    wanted = tuple(four if group.role in _MLP else eight for group in case.groups)
    return _simple_plan(case, wanted, "the guide's rule for its role", "role rule", {four.name, eight.name})


def strategy_plan(profile: SensitivityProfile, request: PlanRequest) -> Plan | None:
    """The guide's strategy: 4 bits everywhere; where that costs more than the limit (10 %), embeddings, LM head and
    attention outputs at 8; for comparison, like `uniform_plan`.

    The loss of 4 bits is the predicted one. None when no layer can have either format.
    """
    case = prepare(profile, _without_wishes(request))
    four, eight = _smallest_of_bits(case, 4), _smallest_of_bits(case, 8)
    if four is None or eight is None:
        return None
    uniform = uniform_plan(profile, request, four.name)
    raised = _RAISED if uniform and uniform.predicted.delta_ppl_pct > perplexity_marks().limit.value else ()
    wanted = tuple(eight if group.role in raised else four for group in case.groups)
    return _simple_plan(case, wanted, "the guide's strategy", "guide's strategy", {four.name, eight.name})


def simple_plans(profile: SensitivityProfile, request: PlanRequest, formats: Iterable[str]) -> dict[str, Plan]:
    """What one gets without an advisor, by name: `uniform <format>` for each that fits, `role rule`, `guide's strategy`."""
    plans = {f"uniform {fmt}": uniform_plan(profile, request, fmt) for fmt in formats}
    plans["role rule"] = role_rule_plan(profile, request)
    plans["guide's strategy"] = strategy_plan(profile, request)
    return {name: plan for name, plan in plans.items() if plan is not None}


# --------------------------------------------------------------------------------------------- solve


def _solve(case: Case) -> Solution:
    tolerance = case.request.budget.max_ppl_increase
    priced = tolerance is None  # a tolerance bounds the loss itself
    groups = [
        [Candidate(o.format.name, o.priced_loss if priced else o.loss, o.cost, o.delta_nll) for o in options]
        for options in case.options
    ]
    if tolerance is not None:
        try:
            return _solve_within(case, groups, math.log1p(tolerance))
        except InfeasibleBudget:
            raise refuse_tolerance(case, tolerance) from None
    if case.smallest_bytes > case.limit_bytes:
        raise refuse_budget(case)
    return solve_min_loss(groups, case.limit_bytes - case.fixed_bytes)


def _solve_within(case: Case, groups: list[list[Candidate]], limit: float) -> Solution:
    """Least bytes whose prediction, interactions included, stays within `limit`: the sums' bound is drawn tighter."""
    bound = limit
    for _ in range(_TIGHTENINGS):
        solution = solve_min_cost(groups, bound, bound)
        predicted = predict(case.profile, _assignments(case, _chosen(case, solution))).delta_nll
        if predicted <= limit:
            break
        bound *= 0.98 * limit / predicted
    return solution


def _chosen(case: Case, solution: Solution) -> tuple[Option, ...]:
    return tuple(options[index] for options, index in zip(case.options, solution.choice, strict=True))


# ----------------------------------------------------------------------------------------- comparison


def _without_wishes(request: PlanRequest) -> PlanRequest:
    floors = "off" if request.role_floors == "off" else "advise"
    return request.model_copy(update={"locks": {}, "excluded": (), "formats": (), "role_floors": floors})


def _smallest_of_bits(case: Case, bits: int) -> Format | None:
    """The measured integer format of these bits that takes the fewest bytes over all groups that may have it."""
    fitting = [f for f in case.formats if f.bits == bits and f.kind == "integer" and _holders(case, f)]
    return min(
        fitting,
        key=lambda f: (sum(_nearest(options, case, g, f).cost for g, options in _pairs(case)), f.quantizes_activations),
        default=None,
    )


def _pairs(case: Case) -> list[tuple[LayerGroup, tuple[Option, ...]]]:
    return list(zip(case.groups, case.options, strict=True))


def _holders(case: Case, fmt: Format) -> int:
    return sum(any(option.format.name == fmt.name for option in options) for options in case.options)


def _nearest(options: tuple[Option, ...], case: Case, group: LayerGroup, fmt: Format) -> Option:
    """The option in `fmt`, else the cheapest one that is no smaller, else the largest."""
    size = sum(case.cost(layer, fmt) for layer in group.layers)
    exact = [option for option in options if option.format.name == fmt.name]
    larger = sorted((o for o in options if o.cost >= size), key=lambda o: o.cost)
    return next(iter([*exact, *larger]), max(options, key=lambda o: o.cost))


def _simple_plan(case: Case, wanted: tuple[Format, ...], rule: str, name: str, needed: set[str]) -> Plan | None:
    chosen = tuple(
        _nearest(options, case, group, wish) for (group, options), wish in zip(_pairs(case), wanted, strict=True)
    )
    if not needed & {option.format.name for option in chosen}:
        return None
    return assemble(case, chosen, explain_simple(case, chosen, wanted, rule), 0.0, name)


# ------------------------------------------------------------------------------------------- assemble


def assemble(
    case: Case,
    chosen: tuple[Option, ...],
    reasons: dict[str, Reason],
    gap: float,
    status: str,
    predicted: Prediction | None = None,
) -> Plan:
    """The plan of one option per group; its prediction comes from the scores where none is given."""
    order = [layer.name for layer in case.catalogue.layers]
    assignments = _assignments(case, chosen)
    context = case.context
    return Plan(
        model=case.catalogue.model,
        request=case.request,
        assignments=assignments,
        predicted=predicted or predict(case.profile, assignments),
        memory=estimate_memory(case.catalogue, assignments, context.engine, context.hardware, case.request.budget),
        reasons={name: reasons[name] for name in order},
        optimality_gap=gap,
        provenance={
            "profile_id": case.profile.id,
            "created": now().isoformat(),
            "advisor_version": ADVISOR_VERSION,
            "solver": status,
        },
    )


def _assignments(case: Case, chosen: tuple[Option, ...]) -> dict[str, str]:
    """Layer -> format, in the catalogue's order."""
    by_layer = {
        layer.name: option.format.name
        for group, option in zip(case.groups, chosen, strict=True)
        for layer in group.layers
    }
    return {layer.name: by_layer[layer.name] for layer in case.catalogue.layers if layer.name in by_layer}


def predict(profile: SensitivityProfile, assignments: dict[str, str]) -> Prediction:
    """What the assignments should do to the model.

    Where the scores carry Fisher projections, KL counts the layers' interactions, and of the first-order change of
    likelihood what stands out of its error (`advisor.estimates`). Else both are sums of what each layer did alone, and
    the KL's error the sum of the layers' errors, an upper bound that needs no independence. Layers in the catalogue's
    dtype count as no change. Raises PlanError for an assignment that was not measured.
    """
    catalogue = profile.catalogue
    scores = {(m.layer, m.format): m for m in profile.measurements}
    used = []
    for layer, fmt in assignments.items():
        if fmt == catalogue.dtype:
            continue
        if (layer, fmt) not in scores:
            raise PlanError(f"'{layer}' was not measured in {fmt}, so nothing can be predicted; profile it in {fmt}.")
        used.append(scores[layer, fmt])
    # Of one length: formats that were added later may have seen fewer sequences so far.
    lengths = {(len(m.projections), len(m.delta_nll_by_sequence)) for m in used}
    together = len(lengths) == 1 and used[0].projections != ""
    loss = _together(used, profile.calibration.draws) if together else _one_by_one(used)
    base = profile.baseline.perplexity
    measured = set(profile.measured_layers)
    return Prediction(
        **loss._asdict(),
        base_perplexity=base,
        perplexity=base * (1 + relative_change(loss.delta_nll)),
        perplexity_low=base * (1 + relative_change(loss.delta_nll - _CONFIDENCE * loss.delta_nll_stderr)),
        perplexity_high=base * (1 + relative_change(loss.delta_nll + _CONFIDENCE * loss.delta_nll_stderr)),
        unmeasured_layers=sum(layer.name not in measured for layer in catalogue.quantizable),
    )


class _Loss(NamedTuple):
    """Of a whole plan, nats per token."""

    delta_nll: float
    delta_nll_stderr: float
    kl: float
    kl_stderr: float


def _together(used: list[Measurement], draws: int) -> _Loss:
    kl, kl_stderr = estimates.set_kl(used, draws)
    first, first_stderr = estimates.set_first_order(used)
    return _Loss(
        kl + first * estimates.shrink_factor(first, first_stderr), math.hypot(first_stderr, kl_stderr), kl, kl_stderr
    )


def _one_by_one(used: list[Measurement]) -> _Loss:
    return _Loss(
        delta_nll=math.fsum(m.delta_nll for m in used),
        delta_nll_stderr=_delta_nll_stderr(used),
        kl=math.fsum(max(m.kl, 0.0) for m in used),
        kl_stderr=math.fsum(m.kl_stderr for m in used),
    )


def _delta_nll_stderr(used: list[Measurement]) -> float:
    """Standard error of the summed delta_nll over the sequences; layers move together, so their sum is what varies."""
    counts = {len(m.delta_nll_by_sequence) for m in used}
    if len(counts) == 1 and (count := counts.pop()) >= 2:
        sums = [math.fsum(m.delta_nll_by_sequence[i] for m in used) for i in range(count)]
        return statistics.stdev(sums) / math.sqrt(count)
    return math.sqrt(math.fsum(m.delta_nll_stderr**2 for m in used))


# ---------------------------------------------------------------------------------------------- check


def check_plan_fits(plan: Plan, catalogue: Catalogue) -> None:
    """Refuse a plan that was made for other weights, or that names what is not there.

    Raises:
        PlanError: another model, an unknown layer, an unknown format, or groups that do not divide a layer.
    """
    if plan.model.fingerprint != catalogue.model.fingerprint:
        raise PlanError(
            f"This plan was made for {plan.model.name} ({plan.model.fingerprint[:12] or 'no fingerprint'}), not for "
            f"{catalogue.model.name} ({catalogue.model.fingerprint[:12]}): plan for this model, or name the other one."
        )
    layers = catalogue.by_name()
    for name, fmt in plan.assignments.items():
        if name not in layers or not layers[name].quantizable:
            raise PlanError(
                f"assignments.{name}: {catalogue.model.name} has no such quantizable layer; remove the entry."
            )
        if not divides(find_format(fmt), layers[name]):
            raise PlanError(
                f"assignments.{name}: the layer's {layers[name].matrix_shape[1]} input features do not split "
                f"into groups of {find_format(fmt).group_size}; choose another format than {fmt}."
            )
        if not fits(find_format(fmt), layers[name]):
            raise PlanError(
                f"assignments.{name}: the layer has no input that {fmt} could round; choose another format."
            )
