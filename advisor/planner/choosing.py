"""What a budget asks of a planning problem, as one choice of options: least loss, least bytes, or least time. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from advisor.errors import InfeasibleBudget
from advisor.planner.case import Case, Option
from advisor.planner.measures import Candidate
from advisor.planner.pool import Pool, pool_of, solver_candidates
from advisor.planner.prediction import Loss
from advisor.planner.refusals import refuse_both, refuse_budget, refuse_speed, refuse_tolerance
from advisor.planner.solver import Solution, solve_min_cost, solve_min_loss, solve_min_time


def solve(case: Case) -> Solution:
    """What the case's budget asks for. Raises InfeasibleBudget, PlanError as `planning.make_plan`."""
    budget = case.request.budget
    if budget.limits_memory and case.smallest_bytes > case.limit_bytes:
        if budget.fastest:  # what to allow instead has to keep the tolerance too
            raise _refuse_size_and_tolerance(case)
        raise refuse_budget(case)
    if budget.max_ppl_increase is None:
        return _least_loss(case)
    return _fastest(case) if budget.fastest else _smallest(case)


def _refuse_size_and_tolerance(case: Case) -> InfeasibleBudget:
    """The refusal of a size that no plan has, with one that keeps the tolerance, or why none keeps it."""
    try:
        return refuse_both(case, case.fixed_bytes + _smallest(case).cost)
    except InfeasibleBudget as missed:
        size = refuse_budget(case)
        return InfeasibleBudget(f"{size} {missed}", size.smallest_bytes, size.limit_bytes, size.ways_out)


def _room(case: Case) -> int:
    """Bytes for what the case decides."""
    return case.limit_bytes - case.fixed_bytes


def _least_loss(case: Case) -> Solution:
    """Within memory, the least sum where losses are taken to add up, else the best prediction.

    How much less than its own the sum of losses could be is stated as the gap.
    """
    room = _room(case)
    if not case.has_estimates or case.adds_up:
        return solve_min_loss(solver_candidates(case), room)
    pool = pool_of(case)
    best = min(np.flatnonzero(pool.costs <= room).tolist(), key=pool.ranks.__getitem__)
    return pool.solution(best, room)


def _smallest(case: Case) -> Solution:
    """Least bytes within the tolerance; of estimates, of the plans that least loss is chosen from."""
    if case.has_estimates:
        pool, kept = _within_tolerance(case)
        return replace(pool.solution(int(kept[pool.costs[kept].argmin()])), gap=None)
    groups, tolerance = solver_candidates(case), _tolerance(case)
    try:
        return solve_min_cost(groups, tolerance, tolerance)
    except InfeasibleBudget:
        raise refuse_tolerance(case, _least_sum(groups)) from None


def _fastest(case: Case) -> Solution:
    """Least time within the tolerance and the limit of memory."""
    if not case.roofline.tells("decode"):
        raise refuse_speed(case)
    if case.has_estimates:
        return _fastest_predicted(case)
    tolerance = _tolerance(case)
    try:
        return solve_min_time(solver_candidates(case), _room(case), tolerance, tolerance)
    except InfeasibleBudget:
        raise refuse_both(case, case.fixed_bytes + _smallest(case).cost) from None


def _fastest_predicted(case: Case) -> Solution:
    """Of equally fast plans the one that is predicted best."""
    pool, kept = _within_tolerance(case)
    fitting = kept[pool.costs[kept] <= _room(case)]
    if not len(fitting):
        raise refuse_both(case, case.fixed_bytes + int(pool.costs[kept].min()))
    best = min(fitting.tolist(), key=lambda number: (pool.times[number], pool.ranks[number]))
    return replace(pool.solution(best), gap=None)


def _within_tolerance(case: Case) -> tuple[Pool, np.ndarray]:
    """The pool, and the numbers of its plans whose prediction keeps the tolerance. Raises InfeasibleBudget for none."""
    pool = pool_of(case)
    losses = np.array([bounded_loss(case, loss) for loss in pool.losses])
    kept = np.flatnonzero(losses <= _tolerance(case))
    if not len(kept):
        raise refuse_tolerance(case, float(losses.min()))
    return pool, kept


def _least_sum(groups: list[list[Candidate]]) -> float:
    """The larger of the least sums of both losses."""
    return max(
        math.fsum(min(getattr(candidate, measure) for candidate in group) for group in groups)
        for measure in ("loss", "side_loss")
    )


def _tolerance(case: Case) -> float:
    """In nats per token."""
    return math.log1p(case.request.budget.max_ppl_increase)


def bounded_loss(case: Case, loss: Loss) -> float:
    """What is compared with ln(1 + tolerance): of estimates the upper side, else the larger of the two sums."""
    return max(loss.delta_nll, 0.0) + loss.delta_nll_stderr if case.has_estimates else max(loss.delta_nll, loss.kl)


def chosen_options(case: Case, solution: Solution) -> tuple[Option, ...]:
    """One option per group."""
    return tuple(options[index] for options, index in zip(case.options, solution.choice, strict=True))
