"""The plans that estimates are chosen from: those of least sum at every size, with their predictions. Pure.

Estimates interact, so that a plan of a smaller sum may well be predicted to lose more. What is chosen is the best
prediction among plans that no budget decides, so that a looser budget never makes the prediction worse. Large errors
can be taken more or less seriously (`estimates.damped_loss`), and no one way finds the best plan of every size: the
plans of several are held against one another.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from advisor.estimates import DAMPING
from advisor.planner.case import Case, Option
from advisor.planner.kept import kept
from advisor.planner.knapsack import Candidate
from advisor.planner.layer_losses import layer_losses
from advisor.planner.prediction import Loss, predictor_of
from advisor.planner.solver import Solution, filled_solutions, supported_solutions
from advisor.types import LayerGroup, SensitivityProfile

Groups = Sequence[Sequence[Candidate]]

DAMPINGS = (0.5, 0.7, DAMPING, 1.4, 2.0)
_KEPT = 8  # pools of one profile
_TICKS = 10**8  # of the slowest plan's decoding step


def has_estimates(case: Case) -> bool:
    """Whether losses are damped ones, of Fisher projections."""
    return any(score.projections for score in case.scores.values())


@dataclass(frozen=True)
class LeastSum:
    """The least sum of losses at every cost, by the linear relaxation: its corners, smallest cost first."""

    costs: np.ndarray
    losses: np.ndarray

    def gap(self, loss: float, cost: int) -> float:
        """How much less than `loss` the sum within a cost could be, as a share of it."""
        return float(self.gaps(np.array([loss]), np.array([cost]))[0])

    def gaps(self, losses: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """`gap` of many."""
        least = np.interp(costs, self.costs, self.losses)
        return np.where(losses > 0, np.maximum(1 - least / np.where(losses > 0, losses, 1.0), 0.0), 0.0)


class Pool(NamedTuple):
    """Solutions with their gap to the least sum at their own cost, and what each is predicted to lose; aligned."""

    solutions: tuple[Solution, ...]
    losses: tuple[Loss, ...]
    least: LeastSum

    @property
    def ranks(self) -> list[tuple[float, float, int]]:
        """What solutions are compared by, the best least: predicted loss, KL where no loss is predicted, and cost."""
        return [
            (max(loss.delta_nll, 0.0), loss.kl, one.cost) for one, loss in zip(self.solutions, self.losses, strict=True)
        ]


def pool_of(case: Case) -> Pool:
    """The plans of a case of estimates, whatever its limit and load; kept while the profile is, as sliders move often.

    Time has no part in them: their solutions take none.
    """
    groups, known = _untimed(case, DAMPING), _pools(case.profile)
    key = tuple(group.name for group in case.groups), groups
    if key not in known:
        known[key] = _pool(case, groups)
        if len(known) > _KEPT:
            known.popitem(last=False)
    known.move_to_end(key)
    return known[key]


@kept
def _pools(profile: SensitivityProfile) -> OrderedDict[tuple[object, ...], Pool]:
    return OrderedDict()


def _untimed(case: Case, damping: float) -> tuple[tuple[Candidate, ...], ...]:
    return tuple(
        tuple(Candidate(one.format.name, _loss(case, group, one, damping), one.cost) for one in options)
        for group, options in zip(case.groups, case.options, strict=True)
    )


def _pool(case: Case, groups: Groups) -> Pool:
    found: dict[tuple[int, ...], Solution] = {}
    for damping in DAMPINGS:
        for one in filled_solutions(_untimed(case, damping)):
            found.setdefault(tuple(one.choice), one)
    choices = np.array(list(found))
    corners = list(supported_solutions(groups))
    least = LeastSum(np.array([one.cost for one in corners]), np.array([one.loss for one in corners]))
    sums = _picked([[one.loss for one in group] for group in groups], choices, 0.0).sum(1)
    gaps = least.gaps(sums, np.array([one.cost for one in found.values()]))
    solutions = [
        replace(one, loss=loss, gap=gap)
        for one, loss, gap in zip(found.values(), sums.tolist(), gaps.tolist(), strict=True)
    ]
    return Pool(tuple(solutions), tuple(_predicted(case, choices)), least)


def _picked(values: Sequence[Sequence[float]], choices: np.ndarray, rest: float) -> np.ndarray:
    """Of each group the value that a choice picks: `(choices, groups)`."""
    table = np.full((len(values), max(map(len, values))), rest)
    for row, own in zip(table, values, strict=True):
        row[: len(own)] = own
    return table[np.arange(len(values)), choices]


def _predicted(case: Case, choices: np.ndarray) -> list[Loss]:
    """Of each choice `(choices, groups)`."""
    predictor = predictor_of(case.profile)
    rows = [
        [predictor.rows({layer.name: option.format.name for layer in group.layers}) for option in options]
        for group, options in zip(case.groups, case.options, strict=True)
    ]
    most = max(len(own) for of_group in rows for own in of_group)
    picked = [
        _picked([[own[place] if place < len(own) else -1 for own in of_group] for of_group in rows], choices, -1)
        for place in range(most)
    ]
    changed = np.stack(picked, 2).reshape(len(choices), -1).astype(int) if picked else np.empty((len(choices), 0), int)
    return predictor.losses([own[own >= 0] for own in changed])


def solver_candidates(case: Case) -> list[list[Candidate]]:
    """The solver's view of the options, with time in ticks."""
    tick = seconds_per_tick(case)
    return [
        [
            Candidate(o.format.name, _loss(case, group, o, DAMPING), o.cost, o.delta_nll, round(o.seconds / tick))
            for o in options
        ]
        for group, options in zip(case.groups, case.options, strict=True)
    ]


def _loss(case: Case, group: LayerGroup, option: Option, damping: float) -> float:
    """What is summed: rules' prices count where the least loss is sought; a tolerance bounds the loss itself."""
    own = option.loss if damping == DAMPING else damped(case, group, option, damping)
    return own + option.price if case.request.budget.max_ppl_increase is None else own


def damped(case: Case, group: LayerGroup, option: Option, damping: float) -> float:
    """Summed loss of a group's option by estimates, KL counted 1 + damping times."""
    if option.format.name == case.original.name:
        return 0.0
    losses = layer_losses(case.profile)
    return math.fsum(losses.damped((layer.name, option.format.name), damping) for layer in group.layers)


def seconds_per_tick(case: Case) -> float:
    """The solver's unit of time, so fine that rounding to it does not matter."""
    slowest = math.fsum(max(option.seconds for option in options) for options in case.options)
    return slowest / _TICKS or 1.0
