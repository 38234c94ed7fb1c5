"""The multiple-choice knapsack: one candidate per group at the least of one measure, within limits of others. Exact.

HiGHS does the search (scipy.optimize), after steps that keep the optimum: dominated candidates are dropped; the linear
relaxation gives a Lagrangian bound, which strikes candidates that no better choice can contain; a core of promising
ones is searched first, so that more can be struck (Kellerer, Pferschy, Pisinger, "Knapsack Problems", 2004, chapters
5 and 11); and numbers are scaled so that HiGHS' absolute tolerances lie far below them. What comes back is checked
against the limits by exact sums.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from itertools import islice, product
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, vstack

from advisor.errors import InfeasibleBudget
from advisor.planner.measures import EQUAL, MEASURES, Candidate, Measure

# Whole numbers: their sums are exact, and a better total is better by a step at least.
_WHOLE = ("cost", "time")

# The best choice known beforehand is scaled to this objective: HiGHS' fixed absolute gap of 1e-6 is then 1e-11 of it.
_OBJECTIVE_SCALE = 1e5
# HiGHS holds a limit to about 1e-6 of a row's scale; a choice that exceeds it is cut off and the rest solved again.
_ATTEMPTS = 20
_ROUNDING = 1e-9
_OPTIMAL, _INFEASIBLE = 0, 2  # scipy's status
# How many candidates beside one for each group are searched before all; more rarely hold something better.
_CORE = 60
# A linear relaxation splits as many groups as there are limits; more are degenerate, and not all are tried.
_ROUNDINGS = 64
_PART = 1e-7
_SAME_SIZE = 1e-2


class Choice(NamedTuple):
    """Flat positions in a table, one per group, and how far their total may be from the least, as a share of it."""

    positions: np.ndarray
    gap: float


class _Relaxed(NamedTuple):
    """A lower bound of the objective, and what each candidate adds to it at least."""

    bound: float
    reduced: np.ndarray


class _Found(NamedTuple):
    """What a search found, what nothing it looked at goes below, and whether it looked at everything."""

    choice: np.ndarray | None
    bound: float
    complete: bool


def _undominated(groups: Sequence[Sequence[Candidate]], measures: Iterable[Measure]) -> tuple[np.ndarray, np.ndarray]:
    """(group, index) of the candidates that no other one of their group beats or equals in all of `measures`.

    Group by group, cheapest first; of equals the first is kept.
    """
    most = max(map(len, groups))
    table = np.full((len(MEASURES), len(groups), most), np.inf)
    for row, group in enumerate(groups):
        table[:, row, : len(group)] = [[getattr(candidate, name) for candidate in group] for name in MEASURES]
    order = np.lexsort(table[::-1])
    ranked = np.take_along_axis(table, order[None], 2)
    wanted = ranked[[MEASURES.index(name) for name in measures]]
    no_worse = (wanted[:, :, :, None] <= wanted[:, :, None, :]).all(0)  # the one than the other
    earlier = ~np.tri(most, dtype=bool)
    owner, place = np.nonzero(np.isfinite(ranked[0]) & ~(no_worse & earlier).any(1))
    return owner, order[owner, place]


class Table:
    """The candidates of all groups that may be chosen, as flat columns: `owner[k]` is the group of candidate k.

    Only candidates that no other one beats in every one of `measures` are kept. There is a group, and none is empty.
    """

    def __init__(self, groups: Sequence[Sequence[Candidate]], measures: Iterable[Measure]):
        measures = tuple(measures)
        self.owner, index = _undominated(groups, measures)
        self.starts = np.flatnonzero(np.diff(self.owner, prepend=-1))
        self._original = index.tolist()
        self._candidates = [groups[group][one] for group, one in zip(self.owner.tolist(), self._original, strict=True)]
        self._columns = {name: np.array([getattr(c, name) for c in self._candidates], dtype=float) for name in measures}

    def indices(self, choice: np.ndarray) -> list[int]:
        """The choice as indices into each group's candidates."""
        return [self._original[k] for k in choice]

    def total(self, measure: Measure, choice: np.ndarray) -> float:
        """The sum over the chosen candidates: exact for whole numbers, correctly rounded for losses."""
        values = [getattr(self._candidates[k], measure) for k in choice]
        return sum(values) if measure in _WHOLE else math.fsum(values)

    def keeps(self, choice: np.ndarray, limits: dict[Measure, float]) -> bool:
        return all(self.total(measure, choice) <= limit for measure, limit in limits.items())

    def minimize(
        self, objective: Measure, limits: dict[Measure, float], time_limit: float, start: np.ndarray | None = None
    ) -> Choice:
        """The choice of least total `objective` within the limits; never worse than a `start` that is given.

        Without any time it is what the linear relaxation shows, usually within a thousandth of the least. Raises
        InfeasibleBudget when nothing keeps the limits, or nothing was found in `time_limit` seconds.
        """
        deadline = time.monotonic() + time_limit
        a = self._spread(objective)
        step = _step(a) if objective in _WHOLE else 0.0
        relaxed, known = self._relax(a, limits, start)
        found, searched = _Found(None, relaxed.bound, False), np.zeros(len(a), dtype=bool)
        # First among the most promising candidates; what is found there leaves few others that could be better.
        for width, share in ((_CORE, 0.5), (len(a), 1.0)):
            open_ = self._open(a, relaxed, known, step)
            if not np.any(open_ & ~searched) or (known is not None and time_limit <= 0):
                break
            columns = self._most_promising(relaxed, open_, known, width)
            seconds = share * max(0.1, deadline - time.monotonic())
            found = self._branch(a, columns, limits, known, step, seconds)
            known = self._better(a, known, found.choice)
            searched[columns] = found.complete
        if known is None:
            raise InfeasibleBudget(
                "No choice keeps all the limits at once; loosen one of them."
                if found.complete
                else "No choice that keeps all the limits was found in time; loosen one of them."
            )
        if not np.any(self._open(a, relaxed, known, step) & ~searched):
            return Choice(known, 0.0)
        missing = math.fsum(a[known]) - max(found.bound, relaxed.bound)
        proven = missing <= _ROUNDING * math.fsum(a[known]) + 0.99 * step
        return Choice(known, 0.0 if proven else missing / (abs(self.total(objective, known)) or 1.0))

    def _open(self, a: np.ndarray, relaxed: _Relaxed, known: np.ndarray | None, step: float) -> np.ndarray:
        """Which candidates a better choice than `known` could contain: it costs at least bound + their reduced cost."""
        if known is None:
            return np.ones(len(a), dtype=bool)
        open_ = relaxed.bound + relaxed.reduced <= math.fsum(a[known]) * (1 + _ROUNDING) - 0.99 * step
        open_[known] = False
        return open_

    def _most_promising(self, relaxed: _Relaxed, open_: np.ndarray, known: np.ndarray | None, width: int) -> np.ndarray:
        """The `width` open candidates of least reduced cost, and one for every group: of `known`, or of least."""
        base = self._argmin(relaxed.reduced, self.owner) if known is None else known
        taken = np.zeros(len(open_), dtype=bool)
        order = np.argsort(relaxed.reduced, kind="stable")
        taken[order[open_[order]][:width]] = True
        taken[base] = True
        return np.flatnonzero(taken)

    def _spread(self, measure: Measure) -> np.ndarray:
        """Each candidate's measure above the least of its group, so that sums of large numbers lose no digits."""
        column = self._columns[measure]
        return column - np.minimum.reduceat(column, self.starts)[self.owner]

    def _slack(self, measure: Measure, limit: float) -> float:
        """What is left of a limit when every group takes its least; for losses with room for the rounding of sums.

        The room admits choices that are over the limit by rounding only; `keeps` then tells them apart.
        """
        column = self._columns[measure]
        least = np.minimum.reduceat(column, self.starts)
        room = 0.0 if measure in _WHOLE else EQUAL * (abs(limit) + math.fsum(np.abs(least)))
        return limit - math.fsum(least) + room

    def _better(self, a: np.ndarray, one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
        given = [choice for choice in (one, other) if choice is not None]
        return min(given, key=lambda choice: math.fsum(a[choice]), default=None)

    def _relax(
        self, a: np.ndarray, limits: dict[Measure, float], known: np.ndarray | None
    ) -> tuple[_Relaxed, np.ndarray | None]:
        """The Lagrangian of all limits at the multipliers of the linear relaxation, and the best choice known then.

        Raises InfeasibleBudget when not even fractions of candidates keep the limits.
        """
        possible = np.ones(len(a), dtype=bool)
        while True:
            columns = np.flatnonzero(possible)
            scale = _OBJECTIVE_SCALE / (float(a[columns].max()) or 1.0)
            rows = self._rows(columns, limits)
            result = linprog(
                a[columns] * scale,
                A_ub=rows.A,
                b_ub=rows.ub,
                A_eq=self._one_each(columns),
                b_eq=np.ones(len(self.starts)),
                bounds=(0, 1),
                method="highs-ds",
            )
            if result.x is None:
                if known is None and result.status == _INFEASIBLE:
                    raise InfeasibleBudget("No choice keeps all the limits at once; loosen one of them.")
                return self._lagrangian(a, limits, columns, np.zeros(len(limits))), known
            relaxed = self._lagrangian(a, limits, columns, -result.ineqlin.marginals / scale)
            rounded = self._rounded(a, columns, result.x, limits)
            if rounded is None and known is None:
                return relaxed, None
            known = self._better(a, known, None if rounded is None else self._filled(a, rounded, limits))
            # Whatever alone is more than the best known total has no part in a better one; without it, the numbers are
            # of one size again and the multipliers exact.
            possible = a <= math.fsum(a[known])
            if a[possible].max() > _SAME_SIZE * a[columns].max() or not a[possible].max():
                return relaxed, known

    def _lagrangian(
        self, a: np.ndarray, limits: dict[Measure, float], columns: np.ndarray, multipliers: np.ndarray
    ) -> _Relaxed:
        """The bound and reduced costs for choices from `columns`; no other candidate is worth anything."""
        priced, used = a.copy(), 0.0
        for (measure, limit), multiplier in zip(limits.items(), np.maximum(multipliers, 0.0), strict=True):
            b = self._spread(measure)
            rate = float(multiplier) / (float(b[columns].max()) or 1.0)
            priced += rate * b
            used += rate * self._slack(measure, limit)
        priced[np.setdiff1d(np.arange(len(a)), columns)] = np.inf
        least = np.minimum.reduceat(priced, self.starts)
        return _Relaxed(max(0.0, math.fsum(least) - used), priced - least[self.owner])

    def _rounded(
        self, a: np.ndarray, columns: np.ndarray, x: np.ndarray, limits: dict[Measure, float]
    ) -> np.ndarray | None:
        """The best choice among what the linear relaxation takes parts of: few groups are split, one for each limit."""
        parts = np.split(
            columns[x > _PART], np.searchsorted(self.owner[columns[x > _PART]], range(1, len(self.starts)))
        )
        choices = (np.array(choice) for choice in islice(product(*parts), _ROUNDINGS))
        kept = (choice for choice in choices if self.keeps(choice, limits))
        return min(kept, key=lambda choice: math.fsum(a[choice]), default=None)

    def _filled(self, a: np.ndarray, choice: np.ndarray, limits: dict[Measure, float]) -> np.ndarray:
        """Spends what a choice leaves of the limits on single changes, the one that saves most first."""
        while True:
            saved = a[choice][self.owner] - a
            for measure, limit in limits.items():
                b = self._spread(measure)
                saved[b - b[choice][self.owner] > self._slack(measure, limit) - math.fsum(b[choice])] = 0.0
            best = int(np.argmax(saved))
            changed = choice.copy()
            changed[self.owner[best]] = best
            if saved[best] <= 0.0 or not self.keeps(changed, limits):
                return choice
            choice = changed

    @staticmethod
    def _argmin(values: np.ndarray, owners: np.ndarray) -> np.ndarray:
        """The position of the least value of each group; `owners` is sorted."""
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        least = np.repeat(np.minimum.reduceat(values, starts), np.diff(starts, append=len(values)))
        hits = np.flatnonzero(values == least)
        return hits[np.flatnonzero(np.diff(owners[hits], prepend=-1))]

    def _branch(
        self,
        a: np.ndarray,
        columns: np.ndarray,
        limits: dict[Measure, float],
        known: np.ndarray | None,
        step: float,
        seconds: float,
    ) -> _Found:
        """HiGHS over some candidates: their best choice that keeps the limits exactly, if it is better than `known`."""
        size = (math.fsum(a[known]) if known is not None else float(a[columns].max())) or 1.0
        scale = 1 / step if step else _OBJECTIVE_SCALE / size
        constraints = [LinearConstraint(self._one_each(columns), 1, 1), self._rows(columns, limits)]
        bound, deadline = 0.0, time.monotonic() + seconds
        for _ in range(_ATTEMPTS):
            result = milp(
                a[columns] * scale,
                integrality=np.ones(len(columns)),
                bounds=Bounds(0, 1),
                constraints=constraints,
                options={"mip_rel_gap": 0.0, "time_limit": max(0.1, deadline - time.monotonic())},
            )
            if result.x is None:
                return _Found(None, bound, result.status == _INFEASIBLE)
            # A cut removes only choices that exceed a limit, so every attempt's bound holds for what is left.
            bound = max(bound, (result.mip_dual_bound or 0.0) / scale)
            choice = columns[self._argmin(-result.x, self.owner[columns])]
            exceeded = [measure for measure, limit in limits.items() if self.total(measure, choice) > limit]
            if not exceeded:
                return _Found(choice, bound, result.status == _OPTIMAL)
            constraints.append(self._cut(columns, choice, exceeded[0], limits[exceeded[0]]))
        return _Found(None, bound, False)

    def _one_each(self, columns: np.ndarray) -> csr_array:
        """One row per group: the sum of its candidates."""
        count = len(columns)
        return csr_array((np.ones(count), (self.owner[columns], np.arange(count))), shape=(len(self.starts), count))

    def _cut(self, columns: np.ndarray, choice: np.ndarray, measure: Measure, limit: float) -> LinearConstraint:
        """A cover inequality: groups that together exceed the limit may not all take this much of it, or more."""
        b, slack = self._spread(measure), self._slack(measure, limit)
        cover, used = list(choice), math.fsum(b[choice])
        for k in sorted(choice, key=lambda k: b[k]):
            if used - b[k] > slack:
                used -= b[k]
                cover.remove(k)
        least = np.full(len(self.starts), np.inf)
        least[self.owner[cover]] = b[cover]
        row = (b >= least[self.owner])[columns].astype(float)
        return LinearConstraint(csr_array(row[None, :]), -np.inf, len(cover) - 1)

    def _rows(self, columns: np.ndarray, limits: dict[Measure, float]) -> LinearConstraint:
        """One row per limit, scaled to coefficients up to 1."""
        rows, slacks = [], []
        for measure, limit in limits.items():
            b, slack = self._spread(measure)[columns], self._slack(measure, limit)
            if measure in _WHOLE:
                # They are multiples of a step: half a step of room keeps HiGHS' tolerance away from the limit.
                step = _step(b)
                slack = (math.floor(slack / step) + 0.5) * step
            unit = float(b.max()) or 1.0
            rows.append(csr_array(b[None, :] / unit))
            slacks.append(slack / unit)
        return LinearConstraint(vstack(rows, format="csr"), -np.inf, slacks)


def _step(costs: np.ndarray) -> float:
    """The largest number that divides all of these whole numbers."""
    return float(np.gcd.reduce(costs.astype(np.int64))) or 1.0
