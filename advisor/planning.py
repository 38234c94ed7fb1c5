"""Turns a sensitivity profile and a request into a plan: candidates, exact solution, prediction, reasons. Pure.

The solver ranks by KL, which cannot be negative and so carries less chance than delta_nll on little text; where scores
carry Fisher projections, also by what can be believed of the first-order change of likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain

from advisor.candidates import Case, Option, parts, prepare
from advisor.errors import InfeasibleBudget, PlanError
from advisor.formats.table import divides, fits
from advisor.knapsack import EQUAL, Candidate
from advisor.knowledge import find_format
from advisor.latency import estimate_latency
from advisor.memory import estimate_memory
from advisor.prediction import Loss, predict, predictor_of
from advisor.reasons import explain
from advisor.refusals import refuse_both, refuse_budget, refuse_speed, refuse_tolerance
from advisor.solver import (
    TIME_LIMIT_S,
    Solution,
    filled_solutions,
    least_loss_bound,
    solve_min_cost,
    solve_min_loss,
    solve_min_time,
)
from advisor.types import (
    Catalogue,
    Plan,
    PlanRequest,
    Prediction,
    Reason,
    SensitivityProfile,
    now,
)

ADVISOR_VERSION = "0.1.0"
_TIGHTENINGS = 12  # two or three suffice where layers add up to more than their sum
_TICKS = 10**8  # of the slowest plan's decoding step


def make_plan(profile: SensitivityProfile, request: PlanRequest) -> Plan:
    """The plan of least predicted loss within a limit of memory, of least bytes within a tolerance of perplexity, or of
    least decoding time within both.

    For an engine that holds one quantized format, the best of the plans with each; a refusal is of the one that misses
    by the least.

    A tolerance bounds the change of perplexity by ln(1 + tolerance). Where scores are estimates, the prediction keeps
    it with one standard error to spare, as the layers are chosen by the scores that predict. Where every layer was
    measured by itself, the sums of KL and of delta_nll keep it: when the text is as likely as what the model writes
    itself, the two agree, and on little text the larger one is the safer reading.

    Raises:
        InfeasibleBudget: nothing meets the budget; says the smallest possible size and what to change.
        PlanError: speed is asked for where it cannot be told, a lock or format cannot be had, or nothing is left to
            decide.
        KnowledgeError: the device, the engine or a format is unknown.
    """
    plans, misses = [], []
    for case in parts(prepare(profile, request)):
        try:
            plans.append(_solved(case))
        except InfeasibleBudget as miss:
            misses.append(miss)
    if not plans:
        raise min(misses, key=lambda miss: miss.smallest_bytes or math.inf)
    return min(plans, key=_objective)


def _objective(plan: Plan) -> tuple[float, ...]:
    """What the plan's budget asks for as little as possible of, and what decides between equals."""
    budget, loss = plan.request.budget, plan.predicted.delta_nll
    if budget.max_ppl_increase is None:
        return loss, plan.predicted.kl, plan.memory.weights_bytes
    if budget.fastest and plan.latency is not None:
        return plan.latency.decode_ms_per_step, loss
    return plan.memory.weights_bytes, loss


def _solved(case: Case) -> Plan:
    solution = _solve(case)
    chosen = chosen_options(case, solution)
    return assemble(case, chosen, explain(case, chosen), solution.gap, _status(case, solution))


def _status(case: Case, solution: Solution) -> str:
    if has_estimates(case) and not case.request.budget.fastest:
        return "the best predicted of the plans of least sum"
    return "optimal" if solution.gap == 0.0 else "stopped by the time limit"


# --------------------------------------------------------------------------------------------- solve


def _solve(case: Case) -> Solution:
    budget, groups = case.request.budget, solver_candidates(case)
    if budget.limits_memory and case.smallest_bytes > case.limit_bytes:
        if budget.fastest:  # what to allow instead has to keep the tolerance too
            raise _refuse_size_and_tolerance(case, groups)
        raise refuse_budget(case)
    if budget.max_ppl_increase is None:
        return _least_loss(case, groups, case.limit_bytes - case.fixed_bytes)
    return _fastest(case, groups) if budget.fastest else _smallest(case, groups)


def _refuse_size_and_tolerance(case: Case, groups: list[list[Candidate]]) -> InfeasibleBudget:
    """The refusal of a size that no plan has, with one that keeps the tolerance, or why none keeps it."""
    try:
        return refuse_both(case, case.fixed_bytes + _smallest(case, groups).cost)
    except InfeasibleBudget as missed:
        size = refuse_budget(case)
        return InfeasibleBudget(f"{size} {missed}", smallest_bytes=size.smallest_bytes, limit_bytes=size.limit_bytes)


def _least_loss(case: Case, groups: list[list[Candidate]], room: int) -> Solution:
    """Within `room` bytes, the least sum where every layer was measured by itself, else the best prediction.

    Estimates interact, so a smaller sum may well be predicted to lose more. The plans that are held against one another
    are the same whatever the room is, so that more room never makes the prediction worse. How much less the sum could
    be is stated as the gap.
    """
    if not has_estimates(case):
        return solve_min_loss(groups, room)
    possible = [solution for solution in filled_solutions(groups) if solution.cost <= room]
    found = min(zip(predicted_ranks(case, possible), possible, strict=True), key=lambda ranked: ranked[0])[1]
    least = least_loss_bound(groups, room)
    return replace(found, gap=max(1 - least / found.loss, 0.0) if found.loss > 0 else 0.0)


def predicted_ranks(case: Case, solutions: Sequence[Solution]) -> list[tuple[float, float, int]]:
    """What solutions are compared by, the best least: predicted loss, KL where no loss is predicted, and bytes."""
    losses = _predicted_losses(case, solutions)
    return [(max(loss.delta_nll, 0.0), loss.kl, one.cost) for loss, one in zip(losses, solutions, strict=True)]


def _predicted_losses(case: Case, solutions: Sequence[Solution]) -> list[Loss]:
    predictor = predictor_of(case.profile)
    rows = [
        [predictor.rows({layer.name: option.format.name for layer in group.layers}) for option in options]
        for group, options in zip(case.groups, case.options, strict=True)
    ]
    return predictor.losses(
        [
            list(chain.from_iterable(of_group[index] for of_group, index in zip(rows, solution.choice, strict=True)))
            for solution in solutions
        ]
    )


def solver_candidates(case: Case) -> list[list[Candidate]]:
    """The solver's view of the options, with time in ticks.

    Rules' prices count where the least loss is sought; a tolerance bounds the loss itself.
    """
    priced, tick = case.request.budget.max_ppl_increase is None, seconds_per_tick(case)
    return [
        [
            Candidate(o.format.name, o.priced_loss if priced else o.loss, o.cost, o.delta_nll, round(o.seconds / tick))
            for o in options
        ]
        for options in case.options
    ]


def seconds_per_tick(case: Case) -> float:
    """The solver's unit of time, so fine that rounding to it does not matter."""
    slowest = math.fsum(max(option.seconds for option in options) for options in case.options)
    return slowest / _TICKS or 1.0


def _smallest(case: Case, groups: list[list[Candidate]]) -> Solution:
    """Least bytes within the tolerance."""
    if has_estimates(case):
        return _smallest_predicted(case, groups)
    try:
        found = _within_tolerance(case, groups, partial(solve_min_cost, groups))
    except InfeasibleBudget:
        raise refuse_tolerance(case, _least_sum(groups)) from None
    if found is not None:
        return found
    # Locked formats leave so little of the tolerance that interactions decide: what loses least is tried itself.
    careful = solve_min_loss(groups, sum(max(c.cost for c in group) for group in groups))
    predicted = _predicted(case, careful)
    if predicted > _tolerance(case):
        raise refuse_tolerance(case, predicted)
    return _unproven(careful, careful.cost, sum(min(c.cost for c in group) for group in groups))


def _smallest_predicted(case: Case, groups: list[list[Candidate]]) -> Solution:
    """Of the plans that least loss is chosen from, the smallest whose prediction keeps the tolerance."""
    possible = list(filled_solutions(groups))
    losses = [bounded_loss(case, loss) for loss in _predicted_losses(case, possible)]
    kept = [solution for solution, loss in zip(possible, losses, strict=True) if loss <= _tolerance(case)]
    if not kept:
        raise refuse_tolerance(case, min(losses))
    return replace(min(kept, key=lambda solution: solution.cost), gap=None)


def _fastest(case: Case, groups: list[list[Candidate]]) -> Solution:
    """Least time within the tolerance and the limit of memory."""
    if not case.roofline.tells("decode"):
        raise refuse_speed(case)
    room, found = case.limit_bytes - case.fixed_bytes, None
    with suppress(InfeasibleBudget):
        found = _within_tolerance(case, groups, partial(solve_min_time, groups, room))
    if found is not None:
        return found
    smallest = _smallest(case, groups)
    if smallest.cost > room:
        raise refuse_both(case, case.fixed_bytes + smallest.cost)
    return _unproven(smallest, smallest.time, sum(min(c.time for c in group) for group in groups))


def _least_sum(groups: list[list[Candidate]]) -> float:
    """The larger of the least sums of both losses."""
    return max(
        math.fsum(min(getattr(candidate, measure) for candidate in group) for group in groups)
        for measure in ("loss", "side_loss")
    )


def _within_tolerance(
    case: Case, groups: list[list[Candidate]], solve: Callable[[float, float | None, float], Solution]
) -> Solution | None:
    """A solution whose prediction, interactions included, keeps the tolerance: the sums' bound is drawn tighter.

    How tight it must be is found without search, by `solve(bound, side_bound, 0)`. Estimated losses are damped, so that
    their sum says little of what a whole plan is predicted to lose: the bound starts at that of the smallest plan that
    keeps the tolerance. None where no bound will do; raises InfeasibleBudget where measured sums exceed the tolerance
    whatever is chosen.
    """
    limit, estimated, seconds = _tolerance(case), has_estimates(case), 0.0
    bound = first = _smallest_predicted(case, groups).loss * (1 + EQUAL) if estimated else limit
    for _ in range(_TIGHTENINGS):
        try:
            solution = solve(bound, None if estimated else bound, seconds)
        except InfeasibleBudget:
            if seconds and bound == first:
                raise
            if seconds:
                return None
            seconds = TIME_LIMIT_S
            continue
        predicted = _predicted(case, solution)
        if predicted > limit:
            bound *= 0.98 * limit / predicted
        elif seconds:
            return solution
        else:
            seconds = TIME_LIMIT_S
    return None


def has_estimates(case: Case) -> bool:
    """Whether losses are damped ones, of Fisher projections."""
    return any(score.projections for score in case.scores.values())


def _tolerance(case: Case) -> float:
    """In nats per token."""
    return math.log1p(case.request.budget.max_ppl_increase)


def _predicted(case: Case, solution: Solution) -> float:
    return bounded_loss(case, _predicted_losses(case, [solution])[0])


def bounded_loss(case: Case, loss: Loss) -> float:
    """What is compared with ln(1 + tolerance): of estimates the upper side, else the larger of the two sums."""
    return max(loss.delta_nll, 0.0) + loss.delta_nll_stderr if has_estimates(case) else max(loss.delta_nll, loss.kl)


def _unproven(solution: Solution, reached: int, least: int) -> Solution:
    """A solution to fall back on, with the gap to what no choice goes below."""
    return replace(solution, gap=1 - least / reached if reached else 0.0)


def chosen_options(case: Case, solution: Solution) -> tuple[Option, ...]:
    """One option per group."""
    return tuple(options[index] for options, index in zip(case.options, solution.choice, strict=True))


# ------------------------------------------------------------------------------------------- assemble


def assemble(
    case: Case,
    chosen: tuple[Option, ...],
    reasons: dict[str, Reason],
    gap: float | None,
    status: str,
    predicted: Prediction | None = None,
) -> Plan:
    """The plan of one option per group; its prediction comes from the scores where none is given."""
    order = [layer.name for layer in case.catalogue.layers]
    assignments = assignments_of(case, chosen)
    context = case.context
    return Plan(
        model=case.catalogue.model,
        request=case.request,
        assignments=assignments,
        predicted=predicted or predict(case.profile, assignments),
        memory=estimate_memory(case.catalogue, assignments, context.engine, context.hardware, case.request.budget),
        latency=estimate_latency(case.catalogue, assignments, context.engine, context.hardware, case.request.budget),
        reasons={name: reasons[name] for name in order},
        optimality_gap=gap,
        provenance={
            "profile_id": case.profile.id,
            "calibration": case.profile.calibration.model_dump(include={"text", "samples", "seq_len", "seed"}),
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
        if not fits(find_format(fmt), layers[name]):
            raise PlanError(
                f"assignments.{name}: the layer has no input that {fmt} could round; choose another format."
            )
