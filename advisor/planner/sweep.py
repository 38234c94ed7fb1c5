"""Every choice that is best at some price per cost, in one sweep over the groups' convex hulls. Pure numbers.

The choices are the vertices of the lower convex hull of cost and loss over all choices, and where groups share a price,
points on its edges: each has the least loss at its cost (Kellerer, Pferschy, Pisinger, "Knapsack Problems", 2004,
chapter 11: the linear relaxation of the multiple-choice knapsack).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

_SIZES = 128  # a step of more than this share of all sizes leaves a gap worth filling


class Sweep:
    """From the choice of least cost to the one of least loss, by the steps that win most for their cost first.

    Args:
        costs, losses: `(groups, candidates)`; a group of fewer candidates has infinite losses at its end.

    Attributes:
        start: `(groups,)`, the candidate of least cost of each group, of equals the one of least loss.
        groups, candidates: `(steps,)`, the group that a step changes and the candidate that it gets.
        costs, losses: `(1 + steps,)`, totals at the start and after each step.
    """

    def __init__(self, costs: np.ndarray, losses: np.ndarray):
        every = np.arange(len(costs))
        costs = np.where(np.isfinite(losses), costs, np.iinfo(np.int64).max)
        self.start = np.where(costs == costs.min(1, keepdims=True), losses, np.inf).argmin(1)
        now, price, found = self.start, np.full(len(costs), np.inf), []
        while True:
            across, down = costs - costs[every, now, None], losses[every, now, None] - losses
            prices = np.where((across > 0) & (down > 0), down / np.maximum(across, 1), 0.0)
            best = prices.max(1)
            if not best.any():
                break
            # Of candidates on one line the last; rounding must not make a later step of a group the dearer one.
            ahead = np.where(prices == best[:, None], costs, -1).argmax(1)
            price, after = np.minimum(price, best), np.where(best > 0, ahead, now)
            moved = np.flatnonzero(best > 0)
            steps = (moved, after[moved], price[moved], across[moved, after[moved]], down[moved, after[moved]])
            found.append(steps)
            now = after
        numbers = np.concatenate([np.full(len(steps[0]), number) for number, steps in enumerate(found)] or [[]])
        columns = [np.concatenate(column) for column in zip(*found, strict=True)] or [np.empty(0, int)] * 5
        order = np.lexsort((numbers, columns[0], -columns[2]))
        self.groups, self.candidates, _, self._step_costs, step_losses = (column[order] for column in columns)
        self.costs = np.concatenate([[0], self._step_costs.cumsum()]) + costs[every, self.start].sum()
        self.losses = losses[every, self.start].sum() - np.concatenate([[0.0], step_losses.cumsum()])

    def choices(self) -> Iterator[np.ndarray]:
        """`(groups,)` each: the candidates at the start and after every step."""
        now = self.start.copy()
        yield now.copy()
        for group, candidate in zip(self.groups.tolist(), self.candidates.tolist(), strict=True):
            now[group] = candidate
            yield now.copy()

    def filled_choices(self, most: int) -> Iterator[np.ndarray]:
        """Of `choices` about `most`, evenly many left out, and where the next is much larger, what later steps reach
        before it.

        No limit decides what is among them, so that a looser limit only ever adds some.
        """
        steps = len(self.groups)
        large, every = self._step_costs.sum() / _SIZES, math.ceil(steps / most)
        for number, choice in enumerate(self.choices()):
            if number == steps or number % every == 0:
                yield choice
            if number < steps and self._step_costs[number] > large:
                yield from self._fillings(choice, number)

    def _fillings(self, choice: np.ndarray, next_step: int) -> Iterator[np.ndarray]:
        """What later steps reach from here at less cost than the next one."""
        filled, spent, blocked = choice.copy(), 0, {self.groups[next_step]}
        for step in range(next_step + 1, min(next_step + 1 + _SIZES, len(self.groups))):
            group, cost = self.groups[step], self._step_costs[step]
            if group in blocked or spent + cost >= self._step_costs[next_step]:
                blocked.add(group)  # its further steps start from this one
                continue
            filled[group], spent = self.candidates[step], spent + cost
            yield filled.copy()
