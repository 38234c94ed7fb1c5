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
from itertools import chain
from typing import NamedTuple

import numpy as np

from advisor.candidates import Case, Option
from advisor.estimates import DAMPING
from advisor.kept import kept
from advisor.knapsack import Candidate
from advisor.layer_losses import layer_losses
from advisor.prediction import Loss, predictor_of
from advisor.solver import Solution, filled_solutions, supported_solutions
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
        least = float(np.interp(cost, self.costs, self.losses))
        return max(1 - least / loss, 0.0) if loss > 0 else 0.0


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
    """The plans of a case of estimates, whatever its limit; kept while the profile is, as sliders move often."""
    groups, known = solver_candidates(case), _pools(case.profile)
    key = tuple(group.name for group in case.groups), tuple(map(tuple, groups))
    if key not in known:
        known[key] = _pool(case, groups)
        if len(known) > _KEPT:
            known.popitem(last=False)
    known.move_to_end(key)
    return known[key]


@kept
def _pools(profile: SensitivityProfile) -> OrderedDict[tuple[object, ...], Pool]:
    return OrderedDict()


def _pool(case: Case, groups: Groups) -> Pool:
    corners = list(supported_solutions(groups))
    least = LeastSum(np.array([one.cost for one in corners]), np.array([one.loss for one in corners]))
    found: dict[tuple[int, ...], Solution] = {}
    for damping in DAMPINGS:
        for one in filled_solutions(solver_candidates(case, damping)):
            loss = _sum(groups, one)
            found.setdefault(tuple(one.choice), replace(one, loss=loss, gap=least.gap(loss, one.cost)))
    solutions = tuple(found.values())
    return Pool(solutions, tuple(predicted_losses(case, solutions)), least)


def _sum(groups: Groups, solution: Solution) -> float:
    return math.fsum(group[index].loss for group, index in zip(groups, solution.choice, strict=True))


def predicted_losses(case: Case, solutions: Sequence[Solution]) -> list[Loss]:
    """What each solution is predicted to do to the model, interactions included where scores carry them."""
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


def solver_candidates(case: Case, damping: float = DAMPING) -> list[list[Candidate]]:
    """The solver's view of the options, with time in ticks.

    Rules' prices count where the least loss is sought; a tolerance bounds the loss itself.

    Args:
        damping: of estimates, how often KL counts beyond once.
    """
    priced, tick = case.request.budget.max_ppl_increase is None, seconds_per_tick(case)

    def loss(group: LayerGroup, option: Option) -> float:
        own = option.loss if damping == DAMPING else damped(case, group, option, damping)
        return own + option.price if priced else own

    return [
        [Candidate(o.format.name, loss(group, o), o.cost, o.delta_nll, round(o.seconds / tick)) for o in options]
        for group, options in zip(case.groups, case.options, strict=True)
    ]


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
