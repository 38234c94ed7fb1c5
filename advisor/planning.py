"""Turns a sensitivity profile and a request into a plan: candidates, exact solution, prediction, reasons. Pure.

The solver ranks by KL, which cannot be negative and so carries less chance than delta_nll on little text; where scores
carry Fisher projections, also by what can be believed of the first-order change of likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from advisor.candidates import Case, Option, prepare
from advisor.errors import InfeasibleBudget, PlanError
from advisor.formats.table import divides
from advisor.knapsack import Candidate
from advisor.knowledge import find_format
from advisor.latency import estimate_latency
from advisor.memory import estimate_memory
from advisor.prediction import Predictor, predict
from advisor.reasons import explain, explain_simple
from advisor.refusals import refuse_both, refuse_budget, refuse_speed, refuse_tolerance
from advisor.solver import TIME_LIMIT_S, Solution, solve_min_cost, solve_min_loss, solve_min_time
from advisor.types import (
    Catalogue,
    Format,
    LayerGroup,
    Plan,
    PlanRequest,
    Reason,
    Role,
    SensitivityProfile,
    now,
)

ADVISOR_VERSION = "0.1.0"
_MLP = (Role.MLP_GATE_UP, Role.MLP_DOWN, Role.EXPERT)
_TIGHTENINGS = 12  # two or three suffice where layers add up to more than their sum
_TICKS = 10**8  # of the slowest plan's decoding step


def make_plan(profile: SensitivityProfile, request: PlanRequest) -> Plan:
    """The plan of least predicted loss within a limit of memory, of least bytes within a tolerance of perplexity, or of
    least decoding time within both.

    A tolerance bounds both summed KL and summed delta_nll by ln(1 + tolerance): when the text is as likely as what the
    model writes itself, the two agree, and on little text the larger one is the safer reading.

    Raises:
        InfeasibleBudget: nothing meets the budget; says the smallest possible size and what to change.
        PlanError: speed is asked for where it cannot be told, a lock or format cannot be had, or nothing is left to
            decide.
        KnowledgeError: the device, the engine or a format is unknown.
    """
    case = prepare(profile, request)
    solution = _solve(case)
    chosen = chosen_options(case, solution)
    status = "optimal" if solution.gap == 0.0 else "stopped by the time limit"
    return _assemble(case, chosen, explain(case, chosen), solution.gap, status)


def uniform_plan(profile: SensitivityProfile, request: PlanRequest, fmt: str) -> Plan | None:
    """Every decided layer in `fmt`, or in the next larger format that it may have; for comparison.

    Budget, locks, chosen formats and role floors are ignored: it is what one gets without an advisor. None when no
    layer can have the format.
    """
    case = prepare(profile, _without_wishes(request))
    return _simple_plan(case, _uniform(case, fmt), "every layer has it in this comparison", "uniform")


def role_rule_plan(profile: SensitivityProfile, request: PlanRequest) -> Plan | None:
    """The guide's rule of thumb: MLPs and experts at 4 bits, all else at 8; for comparison, like `uniform_plan`.

    Of several measured formats with these bits it takes the one that stores the fewest bytes. None when no layer can
    have either.
    """
    case = prepare(profile, _without_wishes(request))
    wanted = _role_rule(case)
    return _simple_plan(case, wanted, "the guide's rule for its role", "role rule") if wanted else None


def simple_choices(profile: SensitivityProfile, request: PlanRequest) -> dict[str, tuple[Option, ...]]:
    """The options of `uniform <format>` for every measured format, and of `role rule`, where they can be had."""
    case = prepare(profile, _without_wishes(request))
    wanted = {f"uniform {fmt.name}": _uniform(case, fmt.name) for fmt in case.formats}
    wanted["role rule"] = _role_rule(case)
    found = {name: _simple_options(case, wish) for name, wish in wanted.items() if wish}
    return {name: chosen for name, chosen in found.items() if chosen}


# --------------------------------------------------------------------------------------------- solve


def _solve(case: Case) -> Solution:
    budget, groups = case.request.budget, solver_candidates(case)
    if budget.limits_memory and case.smallest_bytes > case.limit_bytes:
        raise refuse_budget(case)
    if budget.max_ppl_increase is None:
        return solve_min_loss(groups, case.limit_bytes - case.fixed_bytes)
    return _fastest(case, groups) if budget.fastest else _smallest(case, groups)


def solver_candidates(case: Case) -> list[list[Candidate]]:
    """The solver's view of the options; time in ticks so fine that rounding does not matter."""
    slowest = math.fsum(max(option.seconds for option in options) for options in case.options)
    tick = slowest / _TICKS or 1.0
    return [
        [Candidate(o.format.name, o.loss, o.cost, o.delta_nll, round(o.seconds / tick)) for o in options]
        for options in case.options
    ]


def _smallest(case: Case, groups: list[list[Candidate]]) -> Solution:
    """Least bytes within the tolerance."""
    try:
        found = _within_tolerance(case, lambda bound, seconds: solve_min_cost(groups, bound, bound, seconds))
    except InfeasibleBudget:
        raise refuse_tolerance(case) from None
    if found is not None:
        return found
    # Locked formats leave so little of the tolerance that interactions decide: what loses least is tried itself.
    careful = solve_min_loss(groups, sum(max(c.cost for c in group) for group in groups))
    if _predicted(case, Predictor(case.profile), careful) > _tolerance(case):
        raise refuse_tolerance(case)
    return _unproven(careful, careful.cost, sum(min(c.cost for c in group) for group in groups))


def _fastest(case: Case, groups: list[list[Candidate]]) -> Solution:
    """Least time within the tolerance and the limit of memory."""
    if not case.roofline.tells("decode"):
        raise refuse_speed(case)
    room, found = case.limit_bytes - case.fixed_bytes, None
    with suppress(InfeasibleBudget):
        found = _within_tolerance(case, lambda bound, s: solve_min_time(groups, room, bound, bound, s))
    if found is not None:
        return found
    smallest = _smallest(case, groups)
    if smallest.cost > room:
        raise refuse_both(case, case.fixed_bytes + smallest.cost)
    return _unproven(smallest, smallest.time, sum(min(c.time for c in group) for group in groups))


def _within_tolerance(case: Case, solve: Callable[[float, float], Solution]) -> Solution | None:
    """A solution whose prediction, interactions included, keeps the tolerance: the sums' bound is drawn tighter.

    How tight it must be is found without search, by `solve(bound, 0)`. None where no bound will do; raises
    InfeasibleBudget where the tolerance itself is too small for the sums.
    """
    limit = bound = _tolerance(case)
    predictor, seconds = Predictor(case.profile), 0.0
    for _ in range(_TIGHTENINGS):
        try:
            solution = solve(bound, seconds)
        except InfeasibleBudget:
            if seconds and bound == limit:
                raise
            if seconds:
                return None
            seconds = TIME_LIMIT_S
            continue
        predicted = _predicted(case, predictor, solution)
        if predicted > limit:
            bound *= 0.98 * limit / predicted
        elif seconds:
            return solution
        else:
            seconds = TIME_LIMIT_S
    return None


def _tolerance(case: Case) -> float:
    """In nats per token."""
    return math.log1p(case.request.budget.max_ppl_increase)


def _predicted(case: Case, predictor: Predictor, solution: Solution) -> float:
    return predictor(assignments_of(case, chosen_options(case, solution))).delta_nll


def _unproven(solution: Solution, reached: int, least: int) -> Solution:
    """A solution to fall back on, with the gap to what no choice goes below."""
    return replace(solution, gap=1 - least / reached if reached else 0.0)


def chosen_options(case: Case, solution: Solution) -> tuple[Option, ...]:
    """One option per group."""
    return tuple(options[index] for options, index in zip(case.options, solution.choice, strict=True))


# ----------------------------------------------------------------------------------------- comparison


def _without_wishes(request: PlanRequest) -> PlanRequest:
    floors = "off" if request.role_floors == "off" else "advise"
    return request.model_copy(update={"locks": {}, "formats": (), "role_floors": floors})


def _smallest_of_bits(case: Case, bits: int) -> Format | None:
    """The measured integer format of these bits that takes the fewest bytes over all groups that may have it."""
    fitting = [f for f in case.formats if f.bits == bits and f.kind == "integer" and _holders(case, f)]
    return min(
        fitting, key=lambda f: sum(_nearest(options, case, g, f).cost for g, options in _pairs(case)), default=None
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


def _uniform(case: Case, fmt: str) -> tuple[Format, ...]:
    return (find_format(fmt),) * len(case.groups)


def _role_rule(case: Case) -> tuple[Format, ...] | None:
    four, eight = _smallest_of_bits(case, 4), _smallest_of_bits(case, 8)
    if four is None or eight is None:
        return None
    return tuple(four if group.role in _MLP else eight for group in case.groups)


def _simple_options(case: Case, wanted: tuple[Format, ...]) -> tuple[Option, ...] | None:
    """What each group can have of what is wanted; None when no group has any of it."""
    chosen = tuple(
        _nearest(options, case, group, wish) for (group, options), wish in zip(_pairs(case), wanted, strict=True)
    )
    return chosen if set(wanted) & {option.format for option in chosen} else None


def _simple_plan(case: Case, wanted: tuple[Format, ...], rule: str, name: str) -> Plan | None:
    chosen = _simple_options(case, wanted)
    if chosen is None:
        return None
    return _assemble(case, chosen, explain_simple(case, chosen, wanted, rule), 0.0, name)


# ------------------------------------------------------------------------------------------- assemble


def _assemble(case: Case, chosen: tuple[Option, ...], reasons: dict[str, Reason], gap: float, status: str) -> Plan:
    order = [layer.name for layer in case.catalogue.layers]
    assignments = assignments_of(case, chosen)
    context = case.context
    return Plan(
        model=case.catalogue.model,
        request=case.request,
        assignments=assignments,
        predicted=predict(case.profile, assignments),
        memory=estimate_memory(case.catalogue, assignments, context.engine, context.hardware, case.request.budget),
        latency=estimate_latency(case.catalogue, assignments, context.engine, context.hardware, case.request.budget),
        reasons={name: reasons[name] for name in order},
        optimality_gap=gap,
        provenance={
            "profile_id": case.profile.id,
            "created": now().isoformat(),
            "advisor_version": ADVISOR_VERSION,
            "solver": status,
        },
    )


def assignments_of(case: Case, chosen: tuple[Option, ...]) -> dict[str, str]:
    """Layer -> format, in the catalogue's order."""
    by_layer = {
        layer.name: option.format.name
        for group, option in zip(case.groups, chosen, strict=True)
        for layer in group.layers
    }
    return {layer.name: by_layer[layer.name] for layer in case.catalogue.layers if layer.name in by_layer}


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
