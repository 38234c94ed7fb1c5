"""Picks one candidate per group at least loss or least cost, exactly: pure numbers, between the rules and the plan.

The problem is the multiple-choice knapsack. It goes to HiGHS (scipy.optimize.milp) after three steps that keep its
optimum: dominated candidates are dropped; a Lagrangian bound and a greedy choice strike candidates that no better
choice can contain (as in Kellerer, Pferschy, Pisinger, "Knapsack Problems", 2004, chapter 11); and numbers are scaled
so that HiGHS' absolute tolerances lie far below them. What comes back is checked against the limits by exact sums.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, vstack

from advisor.errors import InfeasibleBudget

TIME_LIMIT_S = 5.0
_TIE_LIMIT_S = 1.0

# The best choice known beforehand is scaled to this objective: HiGHS' fixed absolute gap of 1e-6 is then 1e-11 of it.
_OBJECTIVE_SCALE = 1e5
# Sums of floats that differ by less than this share count as equal.
_EQUAL = 1e-12
# HiGHS holds a limit to about 1e-6 of a row's scale; a choice that exceeds it is cut off and the rest solved again.
_ATTEMPTS = 20
_BISECTIONS = 80
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Candidate:
    """One thing that a group can be: its loss (any unit), its cost (bytes), and a second loss that may be bounded."""

    key: str
    loss: float
    cost: int
    side_loss: float = 0.0


@dataclass(frozen=True)
class Solution:
    """One candidate per group.

    Attributes:
        choice: index into each group's candidates.
        loss, cost: totals of the choice.
        gap: how far the objective may be from the optimum, as a share of it; 0 is proven optimal.
    """

    choice: list[int]
    loss: float
    cost: int
    gap: float = 0.0


def solve_min_loss(groups: Sequence[Sequence[Candidate]], limit: int, time_limit: float = TIME_LIMIT_S) -> Solution:
    """The choice of least total loss whose total cost is at most `limit`; of equal losses, one of least cost.

    Raises InfeasibleBudget, which carries the least possible cost, when even that exceeds the limit; ValueError for a
    group without candidates.
    """
    _refuse_empty(groups)
    smallest = sum(min(c.cost for c in group) for group in groups)
    if smallest > limit:
        raise InfeasibleBudget(
            f"The smallest choice costs {smallest:,}, which is {smallest - limit:,} more than the limit of {limit:,}; "
            "raise the limit or allow smaller candidates.",
            smallest_bytes=smallest,
            limit_bytes=limit,
        )
    table = _Table(_drop_dominated(groups))
    choice, gap = table.minimize("loss", {"cost": limit}, time_limit)
    best = table.total("loss", choice)
    # A second, smaller problem: the fewest bytes at this very loss, so that no byte is spent for nothing.
    tied, _ = table.minimize("cost", {"loss": best + abs(best) * _EQUAL}, min(time_limit, _TIE_LIMIT_S), start=choice)
    return table.solution(tied, gap)


def solve_min_cost(
    groups: Sequence[Sequence[Candidate]],
    max_loss: float,
    max_side_loss: float | None = None,
    time_limit: float = TIME_LIMIT_S,
) -> Solution:
    """The choice of least total cost whose total loss is at most `max_loss`; of equal costs, one of least loss.

    `max_side_loss` bounds the total of `side_loss` at the same time. Raises InfeasibleBudget when no choice keeps
    them; ValueError for a group without candidates.
    """
    if max_side_loss is not None:
        # One limit is much easier than two, and its optimum often keeps the other one as it is.
        easier = solve_min_cost(groups, max_loss, None, time_limit)
        if math.fsum(group[k].side_loss for group, k in zip(groups, easier.choice, strict=True)) <= max_side_loss:
            return easier
    _refuse_empty(groups)
    limits = {"loss": max_loss} if max_side_loss is None else {"loss": max_loss, "side_loss": max_side_loss}
    for measure, limit in limits.items():
        least = math.fsum(min(getattr(c, measure) for c in group) for group in groups)
        if least > limit:
            raise InfeasibleBudget(
                f"The least possible loss is {least:.4g}, more than the {limit:.4g} allowed; "
                "allow more loss or more precise candidates."
            )
    table = _Table(_drop_dominated(groups, with_side_loss=max_side_loss is not None))
    choice, gap = table.minimize("cost", limits, time_limit)
    cost = int(table.total("cost", choice))
    # Minimizing loss from a choice within `max_loss` keeps that limit by itself.
    ties = {"cost": cost} | {name: limit for name, limit in limits.items() if name != "loss"}
    tied, _ = table.minimize("loss", ties, min(time_limit, _TIE_LIMIT_S), start=choice)
    return table.solution(tied, gap)


def _refuse_empty(groups: Sequence[Sequence[Candidate]]) -> None:
    if not groups or not all(groups):
        raise ValueError("every group needs at least one candidate, and there must be a group")


def _drop_dominated(
    groups: Sequence[Sequence[Candidate]], with_side_loss: bool = False
) -> list[list[tuple[int, Candidate]]]:
    """Each group's (index, candidate) pairs without those that another one beats or equals in every measure."""
    return [_front(group, with_side_loss) for group in groups]


def _front(group: Sequence[Candidate], with_side_loss: bool) -> list[tuple[int, Candidate]]:
    order = sorted(enumerate(group), key=lambda item: (item[1].cost, item[1].loss, item[1].side_loss))
    front: list[tuple[int, Candidate]] = []
    for index, candidate in order:
        beaten = any(
            kept.loss <= candidate.loss and (not with_side_loss or kept.side_loss <= candidate.side_loss)
            for _, kept in front
        )
        if not beaten:
            front.append((index, candidate))
    return front


@dataclass
class _Table:
    """The remaining candidates of all groups as flat columns: `owner[k]` is the group of candidate k."""

    groups: list[list[tuple[int, Candidate]]]
    owner: np.ndarray = field(init=False)
    starts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        sizes = [len(group) for group in self.groups]
        self.owner = np.repeat(np.arange(len(sizes)), sizes)
        self.starts = np.array([0, *accumulate(sizes)][:-1])
        self._flat = [candidate for group in self.groups for _, candidate in group]
        self._original = [index for group in self.groups for index, _ in group]
        self._columns = {
            name: np.array([getattr(c, name) for c in self._flat], dtype=float)
            for name in ("loss", "cost", "side_loss")
        }

    def total(self, measure: str, choice: np.ndarray) -> float:
        """The sum over the chosen candidates: exact for costs (integers), correctly rounded for losses."""
        values = [getattr(self._flat[k], measure) for k in choice]
        return sum(values) if measure == "cost" else math.fsum(values)

    def keeps(self, choice: np.ndarray, limits: dict[str, float]) -> bool:
        return all(self.total(measure, choice) <= limit for measure, limit in limits.items())

    def solution(self, choice: np.ndarray, gap: float) -> Solution:
        indices = [self._original[k] for k in choice]
        return Solution(indices, self.total("loss", choice), int(self.total("cost", choice)), gap)

    def minimize(
        self, objective: str, limits: dict[str, float], time_limit: float, start: np.ndarray | None = None
    ) -> tuple[np.ndarray, float]:
        """The chosen flat indices, one per group, and the relative gap; never worse than a `start` that is given.

        Raises InfeasibleBudget when nothing keeps the limits.
        """
        a = self._spread(objective)
        known, bound = start, 0.0
        reduced_costs = []
        for measure in limits:
            known, by_measure, reduced = self._relax(a, measure, limits, known)
            reduced_costs.append((by_measure, reduced))
            bound = max(bound, by_measure)
        open_ = np.ones(len(a), dtype=bool)
        # Totals of costs are whole multiples of a step, so a better one is better by a step at least.
        step = _step(a) if objective == "cost" else 0.0
        if known is not None:
            # A choice that contains a candidate costs at least bound + its reduced cost: strike what cannot be better.
            best = math.fsum(a[known])
            for by_measure, reduced in reduced_costs:
                open_ &= by_measure + reduced <= best * (1 + _ROUNDING) - 0.99 * step
            open_[known] = True
            if np.count_nonzero(open_) == len(self.groups):
                return known, 0.0
        found, dual = self._branch(a, open_, limits, known, step, time_limit)
        chosen = self._better(a, known, found)
        if chosen is None:
            raise InfeasibleBudget("No choice keeps all the limits at once; loosen one of them.")
        missing = math.fsum(a[chosen]) - max(dual, bound)
        proven = missing <= _ROUNDING * math.fsum(a[chosen]) + 0.99 * step
        return chosen, 0.0 if proven else missing / (abs(self.total(objective, chosen)) or 1.0)

    def _spread(self, measure: str) -> np.ndarray:
        """Each candidate's measure above the least of its group, so that sums of large numbers lose no digits."""
        column = self._columns[measure]
        return column - np.minimum.reduceat(column, self.starts)[self.owner]

    def _slack(self, measure: str, limit: float) -> float:
        """What is left of a limit when every group takes its least; for losses with room for the rounding of sums.

        The room admits choices that are over the limit by rounding only; `keeps` then tells them apart.
        """
        column = self._columns[measure]
        least = np.minimum.reduceat(column, self.starts)
        room = 0.0 if measure == "cost" else _EQUAL * (abs(limit) + math.fsum(np.abs(least)))
        return limit - math.fsum(least) + room

    def _better(self, a: np.ndarray, one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
        given = [choice for choice in (one, other) if choice is not None]
        return min(given, key=lambda choice: math.fsum(a[choice])) if given else None

    def _relax(
        self, a: np.ndarray, measure: str, limits: dict[str, float], start: np.ndarray | None
    ) -> tuple[np.ndarray | None, float, np.ndarray]:
        """A known choice, a lower bound of the objective, and each candidate's reduced cost, from one limit alone.

        The bound is the Lagrangian of that limit; its best multiplier is found by bisection, as what a choice uses of
        the limit falls when the multiplier rises. Choices met on the way that keep all limits are candidates too.
        """
        b, slack = self._spread(measure), self._slack(measure, limits[measure])
        known, bound, reduced = start, 0.0, a
        low, high, rate = 0.0, _steepest(a, b), 0.0
        for _ in range(_BISECTIONS):
            priced = a + rate * b
            least = np.minimum.reduceat(priced, self.starts)
            value = math.fsum(least) - rate * slack
            if value >= bound:
                bound, reduced = value, priced - least[self.owner]
            choice = self._argmin(priced, self.owner)
            if self.keeps(choice, limits):
                known = self._better(a, known, self._fill(a, b, slack, choice, limits))
            fits = math.fsum(b[choice]) <= slack
            if fits and rate == 0.0:
                break
            low, high = (low, rate) if fits else (rate, high)
            if high - low <= 1e-12 * high:
                break
            rate = (low + high) / 2
        return known, bound, reduced

    def _fill(
        self, a: np.ndarray, b: np.ndarray, slack: float, choice: np.ndarray, limits: dict[str, float]
    ) -> np.ndarray:
        """Spends what a choice leaves of the limit on single changes, largest saving first."""
        left = slack - math.fsum(b[choice])
        filled = choice.copy()
        gain, more = a[choice][self.owner] - a, b - b[choice][self.owner]
        useful = np.flatnonzero((gain > 0) & (more <= left))
        for k in useful[np.argsort(-gain[useful], kind="stable")]:
            group = self.owner[k]
            if filled[group] == choice[group] and more[k] <= left:
                filled[group] = k
                left -= more[k]
        return filled if self.keeps(filled, limits) else choice

    @staticmethod
    def _argmin(values: np.ndarray, owners: np.ndarray) -> np.ndarray:
        """The position of the least value of each group; `owners` is sorted."""
        order = np.lexsort((values, owners))
        return order[np.flatnonzero(np.diff(owners, prepend=-1))]

    def _branch(
        self,
        a: np.ndarray,
        open_: np.ndarray,
        limits: dict[str, float],
        known: np.ndarray | None,
        step: float,
        time_limit: float,
    ) -> tuple[np.ndarray | None, float]:
        """HiGHS over the open candidates: a choice that keeps the limits exactly (None without one), a lower bound."""
        columns = np.flatnonzero(open_)
        count = len(columns)
        size = (math.fsum(a[known]) if known is not None else float(a.max())) or 1.0
        scale = 1 / step if step else _OBJECTIVE_SCALE / size
        one_each = csr_array((np.ones(count), (self.owner[columns], np.arange(count))), shape=(len(self.groups), count))
        constraints = [LinearConstraint(one_each, 1, 1), self._rows(columns, limits)]
        bound, deadline = 0.0, time.monotonic() + time_limit
        for _ in range(_ATTEMPTS):
            result = milp(
                a[columns] * scale,
                integrality=np.ones(count),
                bounds=Bounds(0, 1),
                constraints=constraints,
                options={"mip_rel_gap": 0.0, "time_limit": max(0.1, deadline - time.monotonic())},
            )
            if result.x is None:
                return None, bound
            # A cut removes only choices that exceed a limit, so every attempt's bound holds for what is left.
            bound = max(bound, (result.mip_dual_bound or 0.0) / scale)
            choice = columns[self._argmin(-result.x, self.owner[columns])]
            exceeded = [measure for measure, limit in limits.items() if self.total(measure, choice) > limit]
            if not exceeded:
                return choice, bound
            constraints.append(self._cut(columns, choice, exceeded[0], limits[exceeded[0]]))
        return None, bound

    def _cut(self, columns: np.ndarray, choice: np.ndarray, measure: str, limit: float) -> LinearConstraint:
        """A cover inequality: groups that together exceed the limit may not all take this much of it, or more."""
        b, slack = self._spread(measure), self._slack(measure, limit)
        cover, used = list(choice), math.fsum(b[choice])
        for k in sorted(choice, key=lambda k: b[k]):
            if used - b[k] > slack:
                used -= b[k]
                cover.remove(k)
        least = np.full(len(self.groups), np.inf)
        least[self.owner[cover]] = b[cover]
        row = (b >= least[self.owner])[columns].astype(float)
        return LinearConstraint(csr_array(row[None, :]), -np.inf, len(cover) - 1)

    def _rows(self, columns: np.ndarray, limits: dict[str, float]) -> LinearConstraint:
        """One row per limit, scaled to coefficients up to 1."""
        rows, slacks = [], []
        for measure, limit in limits.items():
            b, slack = self._spread(measure)[columns], self._slack(measure, limit)
            if measure == "cost":
                # Costs are whole multiples of a step: half a step of room keeps HiGHS' tolerance away from the limit.
                step = _step(b)
                slack = (math.floor(slack / step) + 0.5) * step
            unit = float(b.max()) or 1.0
            rows.append(csr_array(b[None, :] / unit))
            slacks.append(slack / unit)
        return LinearConstraint(vstack(rows, format="csr"), -np.inf, slacks)


def _step(costs: np.ndarray) -> float:
    """The largest number that divides all (whole) costs."""
    return float(np.gcd.reduce(costs.astype(np.int64))) or 1.0


def _steepest(a: np.ndarray, b: np.ndarray) -> float:
    """A multiplier above which every group takes what uses least of the limit."""
    using = b[b > 0]
    return 2 * float(a.max()) / float(using.min()) if len(using) else 0.0
