"""The plans that estimates are chosen from: those of least sum at every size, with their predictions. Pure.

Estimates interact, so that a plan of a smaller sum may well be predicted to lose more. What is chosen is the best
prediction among plans that no budget decides, so that a looser budget never makes the prediction worse. Large errors
can be taken more or less seriously (`estimates.damped_loss`), and no one way finds the best plan of every size: the
plans of several are held against one another. Within a tolerance, those of least sum at every decoding time are among
them too, whether memory or speed is asked for: what keeps both limits is then never smaller than the smallest.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from advisor.estimates import DAMPING, damped_loss
from advisor.planner.case import Case, Option
from advisor.planner.kept import kept
from advisor.planner.layer_losses import layer_losses
from advisor.planner.measures import Candidate
from advisor.planner.prediction import Loss, predictor_of
from advisor.planner.solver import Solution
from advisor.planner.sweep import Sweep
from advisor.types import LayerGroup, SensitivityProfile

DAMPINGS = (0.5, 0.7, DAMPING, 1.4, 2.0)
_MOST = 5000  # plans of large models; those of smaller ones are fewer by themselves
_KEPT = 8  # pools of one profile
_TICKS = 10**8  # of the slowest plan's decoding step


@dataclass(frozen=True)
class Pool:
    """Choices of options, what each costs, sums up to and is predicted to lose; aligned.

    Attributes:
        choices: `(choices, groups)`, an index into each group's options.
        costs, times, sums: `(choices,)`, in the budget's bytes, in the solver's ticks of a decoding step, and losses as
            the solver adds them up.
        losses: what each is predicted to lose.
        least: the sweep that knows the least sum at every cost.
        adds_up: whether labels are too few to compare choices by what they are predicted to lose.
    """

    choices: np.ndarray
    costs: np.ndarray
    times: np.ndarray
    sums: np.ndarray
    losses: tuple[Loss, ...]
    least: Sweep
    adds_up: bool = False

    @cached_property
    def ranks(self) -> list[tuple[float, float, int]]:
        """What choices are compared by, the best least: predicted loss, KL where no loss is predicted, and cost.

        The sum of losses where they add up.
        """
        if self.adds_up:
            return [(total, 0.0, cost) for total, cost in zip(self.sums.tolist(), self.costs.tolist(), strict=True)]
        return [
            (max(loss.delta_nll, 0.0), loss.kl, cost)
            for loss, cost in zip(self.losses, self.costs.tolist(), strict=True)
        ]

    def solution(self, number: int, limit: int | None = None) -> Solution:
        """A choice; its gap is how much less than its own the sum within `limit` could be, or within its own cost."""
        cost, total = int(self.costs[number]), float(self.sums[number])
        least = np.interp(cost if limit is None else limit, self.least.costs, self.least.losses)
        gap = max(1 - float(least) / total, 0.0) if total > 0 else 0.0
        return Solution(self.choices[number].tolist(), total, cost, int(self.times[number]), gap)


def pool_of(case: Case) -> Pool:
    """The plans of a case of estimates, whatever its limits; kept while the profile is, as sliders move often."""
    table, known = _Table(case), _pools(case.profile)
    key = tuple(group.name for group in case.groups), table.formats, *(part.tobytes() for part in table.numbers)
    if key not in known:
        known[key] = _pool(case, table)
        if len(known) > _KEPT:
            known.popitem(last=False)
    known.move_to_end(key)
    return known[key]


@kept
def _pools(profile: SensitivityProfile) -> OrderedDict[tuple[object, ...], Pool]:
    return OrderedDict()


class _Table:
    """Costs, times and losses of a case's options: `(groups, options)`, losses infinite after a group's own options.

    Times are 0 where the budget has no tolerance, so that whatever the load, a case has the same table.
    """

    def __init__(self, case: Case):
        shape = len(case.options), max(map(len, case.options))
        places = [(row, column) for row, options in enumerate(case.options) for column in range(len(options))]
        self._shape, self._own = shape, tuple(np.array(places).T)
        flat = [option for options in case.options for option in options]
        self.formats = tuple(option.format.name for option in flat)
        self.costs = self._spread(np.array([option.cost for option in flat]), 0)
        tick = seconds_per_tick(case) if _timed(case) else math.inf
        self.times = self._spread(np.array([round(option.seconds / tick) for option in flat]), 0)
        parts = [_parts(case, group, one) for group, own in zip(case.groups, case.options, strict=True) for one in own]
        self._option = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self._expected, self._kl = np.array([pair for part in parts for pair in part]).reshape(-1, 2).T
        self._prices = self._spread(np.array([_price(case, option) for option in flat]), 0.0)

    @property
    def numbers(self) -> tuple[np.ndarray, ...]:
        """All that tells one table of the same groups and formats from another."""
        return self.costs, self.times, self.losses(DAMPING)

    def losses(self, damping: float) -> np.ndarray:
        """What is summed, KL counted 1 + damping times."""
        each = damped_loss(self._expected, self._kl, damping)
        # Where nothing is quantized, numpy sums up nothing in integers, which have no infinity.
        sums = np.bincount(self._option, each, len(self.formats)).astype(float, copy=False)
        return self._spread(sums, np.inf) + self._prices

    def _spread(self, values: np.ndarray, rest: float) -> np.ndarray:
        found = np.full(self._shape, rest, values.dtype)
        found[self._own] = values
        return found


def _timed(case: Case) -> bool:
    return case.request.budget.max_ppl_increase is not None and case.roofline.tells("decode")


def _pool(case: Case, table: _Table) -> Pool:
    least = Sweep(table.costs, table.losses(DAMPING))
    axes = (table.costs, table.times) if _timed(case) else (table.costs,)
    sweeps = [Sweep(axis, table.losses(damping)) for axis in axes for damping in DAMPINGS]
    every = chain(_uniform(case), *(sweep.filled_choices(_MOST // len(sweeps)) for sweep in sweeps))
    every = (choice.astype(np.int16) for choice in every)
    choices = np.stack(list({choice.tobytes(): choice for choice in every}.values()))
    groups = np.arange(choices.shape[1])
    costs, times, sums = (part[groups, choices].sum(1) for part in (table.costs, table.times, table.losses(DAMPING)))
    return Pool(choices, costs, times, sums, tuple(_predicted(case, choices)), least, case.adds_up)


def _uniform(case: Case) -> Iterator[np.ndarray]:
    """All groups in one format, where all may have it: a uniform plan of no greater size is never predicted better."""
    indices = [{option.format.name: index for index, option in enumerate(options)} for options in case.options]
    for name in indices[0]:
        if all(name in own for own in indices):
            yield np.array([own[name] for own in indices])


def _predicted(case: Case, choices: np.ndarray) -> list[Loss]:
    """Of each choice `(choices, groups)`."""
    predictor = predictor_of(case.profile)
    places = max(len(group.layers) for group in case.groups)
    rows = np.full((len(case.groups), max(map(len, case.options)), places), -1)
    for number, (group, options) in enumerate(zip(case.groups, case.options, strict=True)):
        for index, option in enumerate(options):
            own = predictor.rows({layer.name: option.format.name for layer in group.layers})
            rows[number, index, : len(own)] = own
    return predictor.losses(rows[np.arange(len(rows)), choices].reshape(len(choices), -1))


def solver_candidates(case: Case) -> list[list[Candidate]]:
    """The solver's view of the options, with time in ticks."""
    tick = seconds_per_tick(case)
    return [
        [
            Candidate(o.format.name, o.loss + _price(case, o), o.cost, o.delta_nll, round(o.seconds / tick))
            for o in options
        ]
        for options in case.options
    ]


def _price(case: Case, option: Option) -> float:
    """Rules' prices count where the least loss is sought; a tolerance bounds the loss itself."""
    return option.price if case.request.budget.max_ppl_increase is None else 0.0


def damped(case: Case, group: LayerGroup, option: Option, damping: float) -> float:
    """Summed loss of a group's option by estimates, KL counted 1 + damping times."""
    return math.fsum(damped_loss(*part, damping) for part in _parts(case, group, option))


def _parts(case: Case, group: LayerGroup, option: Option) -> list[tuple[float, float]]:
    """Of each layer that the option changes, the loss to expect and the KL that is damped."""
    if option.format.name == case.original.name:
        return []
    losses = layer_losses(case.profile)
    return [losses.parts((layer.name, option.format.name)) for layer in group.layers]


def seconds_per_tick(case: Case) -> float:
    """The solver's unit of time, so fine that rounding to it does not matter."""
    slowest = math.fsum(max(option.seconds for option in options) for options in case.options)
    return slowest / _TICKS or 1.0
