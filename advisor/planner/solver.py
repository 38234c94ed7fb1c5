"""Picks one candidate per group for what a budget asks: pure numbers, between the rules and the plan.

Three questions of one multiple-choice knapsack (`knapsack`): least loss within a cost, least cost within a loss, least
time within both. All are answered exactly, or with the gap to what could still be better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from advisor.errors import InfeasibleBudget
from advisor.planner.knapsack import EQUAL, Candidate, Measure, Table, undominated

# Nearly all is proven in half a second; what is open after this is stated as a gap.
TIME_LIMIT_S = 2.0
_TIE_LIMIT_S = 0.5
_SIZES = 128  # a step of more than this share of all sizes leaves a gap worth filling
_MOST = 1000  # supported solutions to choose from; of more, evenly many are left out

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

    They are the vertices of the lower convex hull of cost and loss over all choices, and where groups share a price,
    points on its edges: each has the least loss at its cost. Raises ValueError for a group without candidates.
    """
    sweep, steps = _sweep(groups)
    yield sweep.solution
    for step in steps:
        sweep.take(step)
        yield sweep.solution


def filled_solutions(groups: Groups) -> Iterator[Solution]:
    """Supported solutions, about 1,000 at most, and where the next is much larger, what later steps reach before it.

    No limit decides what is among them, so that a looser limit only ever adds some. Nothing is known of the gap of
    those between. Raises ValueError for a group without candidates.
    """
    sweep, steps = _sweep(groups)
    large, every = sum(step.cost for step in steps) / _SIZES, math.ceil(len(steps) / _MOST)
    yield sweep.solution
    for number, step in enumerate(steps, 1):
        if step.cost > large:
            yield from _fillings(sweep, step, steps[number : number + _SIZES])
        sweep.take(step)
        if number % every == 0 or number == len(steps):
            yield sweep.solution


def _fillings(sweep: _Sweep, next_step: _Step, later: Sequence[_Step]) -> Iterator[Solution]:
    """What later steps reach from here at less cost than the next one; the sweep is left as it was."""
    filled, blocked = sweep.copy(), {next_step.group}
    for step in later:
        if step.group in blocked or filled.cost + step.cost >= sweep.cost + next_step.cost:
            blocked.add(step.group)  # its further steps start from this one
            continue
        filled.take(step)
        yield replace(filled.solution, gap=None)


class _Step(NamedTuple):
    """One group to its next larger candidate: how much less loss for each cost, and what changes."""

    price: float
    group: int
    index: int
    before: Candidate
    after: Candidate

    @property
    def cost(self) -> int:
        return self.after.cost - self.before.cost


@dataclass
class _Sweep:
    """A choice on its way from the least cost to the least loss."""

    choice: list[int]
    losses: list[float]
    cost: int
    time: int

    @property
    def loss(self) -> float:
        return math.fsum(self.losses)

    @property
    def solution(self) -> Solution:
        return Solution(self.choice[:], self.loss, self.cost, self.time)

    def take(self, step: _Step) -> None:
        self.choice[step.group], self.losses[step.group] = step.index, step.after.loss
        self.cost += step.cost
        self.time += step.after.time - step.before.time

    def copy(self) -> _Sweep:
        return _Sweep(self.choice[:], self.losses[:], self.cost, self.time)


def _sweep(groups: Groups) -> tuple[_Sweep, list[_Step]]:
    """The choice of least cost, and the steps to the one of least loss, those that win most for their cost first."""
    _refuse_empty(groups)
    hulls = [_hull(group) for group in groups]
    steps = [
        _Step((before.loss - after.loss) / (after.cost - before.cost), group, index, before, after)
        for group, hull in enumerate(hulls)
        for (_, before), (index, after) in pairwise(hull)
    ]
    steps.sort(key=lambda step: -step.price)
    choice, chosen = map(list, zip(*(hull[0] for hull in hulls), strict=True))
    start = _Sweep(choice, [c.loss for c in chosen], sum(c.cost for c in chosen), sum(c.time for c in chosen))
    return start, steps


def _hull(group: Sequence[Candidate]) -> list[tuple[int, Candidate]]:
    """(index, candidate) pairs of a group that are best at some price, cheapest first."""
    hull: list[tuple[int, Candidate]] = []
    for index, candidate in undominated(group, ("cost", "loss")):
        while len(hull) > 1 and _above(hull[-2][1], hull[-1][1], candidate):
            hull.pop()
        hull.append((index, candidate))
    return hull


def _above(left: Candidate, middle: Candidate, right: Candidate) -> bool:
    """Whether the middle one is on or above the line between the others."""
    across, down = right.cost - left.cost, left.loss - right.loss
    return (left.loss - middle.loss) * across <= down * (middle.cost - left.cost)


def _limits(max_loss: float, max_side_loss: float | None) -> dict[Measure, float]:
    return {"loss": max_loss} | ({} if max_side_loss is None else {"side_loss": max_side_loss})


def _solve(
    groups: Groups, objective: Measure, limits: dict[Measure, float], tie: Measure, time_limit: float
) -> Solution:
    """The least `objective` within the limits; of equal ones, the least of `tie`."""
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
