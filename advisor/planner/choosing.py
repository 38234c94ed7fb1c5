"""What a budget asks of a planning problem, as one choice of options: least loss, least bytes, or least time. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np

from advisor.errors import InfeasibleBudget
from advisor.planner.case import Case, Option
from advisor.planner.knapsack import EQUAL, Candidate
from advisor.planner.pool import has_estimates, pool_of, solver_candidates
from advisor.planner.prediction import Loss, predictor_of
from advisor.planner.refusals import refuse_both, refuse_budget, refuse_speed, refuse_tolerance
from advisor.planner.solver import TIME_LIMIT_S, Solution, solve_min_cost, solve_min_loss, solve_min_time

_TIGHTENINGS = 12  # two or three suffice where layers add up to more than their sum


def solve(case: Case) -> Solution:
    """What the case's budget asks for. Raises InfeasibleBudget, PlanError as `planning.make_plan`."""
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

    How much less than its own the sum of losses could be is stated as the gap.
    """
    if not has_estimates(case):
        return solve_min_loss(groups, room)
    pool = pool_of(case)
    best = min(np.flatnonzero(pool.costs <= room).tolist(), key=pool.ranks.__getitem__)
    return pool.solution(best, room)


def _smallest(case: Case, groups: list[list[Candidate]]) -> Solution:
    """Least bytes within the tolerance."""
    if has_estimates(case):
        return _smallest_predicted(case)
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


def _smallest_predicted(case: Case) -> Solution:
    """Of the plans that least loss is chosen from, the smallest whose prediction keeps the tolerance."""
    pool = pool_of(case)
    losses = np.array([bounded_loss(case, loss) for loss in pool.losses])
    kept = np.flatnonzero(losses <= _tolerance(case))
    if not len(kept):
        raise refuse_tolerance(case, float(losses.min()))
    return replace(pool.solution(int(kept[pool.costs[kept].argmin()])), gap=None)


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
    seconds = sum(group[index].time for group, index in zip(groups, smallest.choice, strict=True))
    return _unproven(smallest, seconds, sum(min(c.time for c in group) for group in groups))


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
    bound = first = _smallest_predicted(case).loss * (1 + EQUAL) if estimated else limit
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


def _tolerance(case: Case) -> float:
    """In nats per token."""
    return math.log1p(case.request.budget.max_ppl_increase)


def _predicted(case: Case, solution: Solution) -> float:
    assignments = assignments_of(case, chosen_options(case, solution))
    return bounded_loss(case, predictor_of(case.profile).loss(assignments))


def bounded_loss(case: Case, loss: Loss) -> float:
    """What is compared with ln(1 + tolerance): of estimates the upper side, else the larger of the two sums."""
    return max(loss.delta_nll, 0.0) + loss.delta_nll_stderr if has_estimates(case) else max(loss.delta_nll, loss.kl)


def _unproven(solution: Solution, reached: int, least: int) -> Solution:
    """A solution to fall back on, with the gap to what no choice goes below."""
    return replace(solution, gap=1 - least / reached if reached else 0.0)


def chosen_options(case: Case, solution: Solution) -> tuple[Option, ...]:
    """One option per group."""
    return tuple(options[index] for options, index in zip(case.options, solution.choice, strict=True))


def assignments_of(case: Case, chosen: tuple[Option, ...]) -> dict[str, str]:
    """Layer -> format, in the catalogue's order."""
    by_layer = {
        layer.name: option.format.name
        for group, option in zip(case.groups, chosen, strict=True)
        for layer in group.layers
    }
    return {layer.name: by_layer[layer.name] for layer in case.catalogue.layers if layer.name in by_layer}
