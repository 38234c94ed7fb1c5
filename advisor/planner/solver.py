"""Picks one candidate per group for what a budget asks: pure numbers, between the rules and the plan.

Three questions of one multiple-choice knapsack (`knapsack`): least loss within a cost, least cost within a loss, least
time within both. All are answered exactly, or with the gap to what could still be better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from advisor.errors import InfeasibleBudget
from advisor.planner.measures import EQUAL, Candidate, Measure
from advisor.planner.sweep import Sweep

# Nearly all is proven in half a second; what is open after this is stated as a gap.
TIME_LIMIT_S = 2.0
_TIE_LIMIT_S = 0.5

Groups = Sequence[Sequence[Candidate]]


@dataclass(frozen=True)
class Solution:
    """One candidate per group.

    Attributes:
        choice: index into each group's candidates.
        loss, cost, time: totals of the choice.
        gap: how far the objective may be from the optimum, as a share of it; 0 is proven optimal, None is not known.
    """

    choice: list[int]
    loss: float
    cost: int
    time: int = 0
    gap: float | None = 0.0


def solve_min_loss(
    groups: Groups, limit: int, time_limit: float = TIME_LIMIT_S, max_time: int | None = None
) -> Solution:
    """The choice of least total loss whose total cost is at most `limit`; of equal losses, one of least cost.

    `max_time` bounds the total of `time` as well. Raises InfeasibleBudget, which carries the least possible cost where
    even that exceeds the limit, when no choice keeps the limits; ValueError for a group without candidates.
    """
    limits: dict[Measure, float] = {"cost": limit} | ({} if max_time is None else {"time": max_time})
    return _solve(groups, "loss", limits, "cost", time_limit)


def solve_min_cost(
    groups: Groups, max_loss: float, max_side_loss: float | None = None, time_limit: float = TIME_LIMIT_S
) -> Solution:
    """The choice of least total cost whose total loss is at most `max_loss`; of equal costs, one of least loss.

    `max_side_loss` bounds the total of `side_loss` at the same time. Raises InfeasibleBudget when no choice keeps
    them; ValueError for a group without candidates.
    """
    return _solve(groups, "cost", _limits(max_loss, max_side_loss), "loss", time_limit)


def solve_min_time(
    groups: Groups,
    limit: int,
    max_loss: float,
    max_side_loss: float | None = None,
    time_limit: float = TIME_LIMIT_S,
) -> Solution:
    """The choice of least total time that costs at most `limit` and loses at most `max_loss`; of equals, of least loss.

    `max_side_loss` as in `solve_min_cost`. Raises InfeasibleBudget when no choice keeps the limits; ValueError for a
    group without candidates.
    """
    return _solve(groups, "time", _limits(max_loss, max_side_loss) | {"cost": limit}, "loss", time_limit)


def supported_solutions(groups: Groups) -> Iterator[Solution]:
    """Every solution that is best at some price per cost, from the least cost to the least loss, in one sweep.

    Raises ValueError for a group without candidates.
    """
    _refuse_empty(groups)
    most = max(map(len, groups))
    padded = [[*group, *[None] * (most - len(group))] for group in groups]
    costs = np.array([[one.cost if one else 0 for one in group] for group in padded])
    losses = np.array([[one.loss if one else math.inf for one in group] for group in padded])
    return (_solution(groups, choice.tolist()) for choice in Sweep(costs, losses).choices())


def _solution(groups: Groups, choice: list[int]) -> Solution:
    chosen = [group[index] for group, index in zip(groups, choice, strict=True)]
    return Solution(
        choice, math.fsum([c.loss for c in chosen]), sum(c.cost for c in chosen), sum(c.time for c in chosen)
    )


def _limits(max_loss: float, max_side_loss: float | None) -> dict[Measure, float]:
    return {"loss": max_loss} | ({} if max_side_loss is None else {"side_loss": max_side_loss})


def _solve(
    groups: Groups, objective: Measure, limits: dict[Measure, float], tie: Measure, time_limit: float
) -> Solution:
    """The least `objective` within the limits; of equal ones, the least of `tie`."""
    from advisor.planner.knapsack import Table  # HiGHS takes half a second to import, and estimates never ask it

    _refuse_empty(groups)
    table = Table(groups, dict.fromkeys((objective, *limits)))
    for measure, limit in limits.items():
        _refuse_below_least(groups, measure, limit)
    choice, gap = table.minimize(objective, limits, time_limit)
    # A second, smaller problem: no byte or loss more than the optimum needs.
    best = table.total(objective, choice)
    room = abs(best) * EQUAL if objective == "loss" else 0
    # What is minimized never grows from where it starts, so that its own limit is kept.
    kept = {objective: best + room} | {name: limit for name, limit in limits.items() if name != tie}
    choice, _ = table.minimize(tie, kept, min(time_limit, _TIE_LIMIT_S), start=choice)
    return Solution(table.indices(choice), *(table.total(name, choice) for name in ("loss", "cost", "time")), gap)


def _refuse_empty(groups: Groups) -> None:
    if not groups or not all(groups):
        raise ValueError("every group needs at least one candidate, and there must be a group")


def _refuse_below_least(groups: Groups, measure: Measure, limit: float) -> None:
    total = sum if measure == "cost" else math.fsum
    least = total(min(getattr(candidate, measure) for candidate in group) for group in groups)
    if least <= limit:
        return
    if measure == "cost":
        raise InfeasibleBudget(
            f"The smallest choice costs {least:,}, which is {least - limit:,} more than the limit of {limit:,}; "
            "raise the limit or allow smaller candidates.",
            smallest_bytes=least,
            limit_bytes=limit,
        )
    raise InfeasibleBudget(
        f"The least possible loss is {least:.4g}, more than the {limit:.4g} allowed; "
        "allow more loss or more precise candidates."
    )
