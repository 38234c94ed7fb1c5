"""What each group could have had instead, and at what price: the numbers that a plan's reasons are made of. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from advisor.planner.case import Case, Option
from advisor.planner.prediction import predictor_of
from advisor.types import Alternative, LayerGroup

# 95 % of a normal distribution lie within this many standard errors.
CONFIDENCE = 1.96
# Less than this share of a limit is what whole layers leave of it.
LITTLE = 0.02


@dataclass(frozen=True)
class Rates:
    """What one byte is worth elsewhere in the plan, in nats per byte; of time, where speed is asked for (`taken`).

    win: the most that another byte would win in any group; charge: the least that taking one away would cost.
    room: bytes that a limit of memory has left, where the least loss within it is sought; spare: whether they are more
    than whole layers leave of it, so that bytes are not what decides.
    together: of an option that is better by its own score, by its group's first layer and its format: how much more all
    layers together are predicted to lose with it and the standard error of that, nats per token; nothing where losses
    of layers only add up.
    """

    win: float
    charge: float
    room: float = 0.0
    spare: bool = False
    together: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    @property
    def exchange(self) -> float:
        """The rate at which the plan trades bytes for loss: between the two, as the slopes of the best plans are.

        0 where no byte would win anything or bytes are to spare; what they win, where taking some away costs nothing.
        """
        if self.spare:
            return 0.0
        return math.sqrt(self.win * self.charge) if 0 < self.charge < math.inf else self.win


@dataclass(frozen=True)
class RunnerUp:
    """What the solver would take next: the option that is worth least less at the plan's exchange rate.

    The two are within noise when their difference in loss, bytes counted at that rate, is less than 1.96 of its
    standard errors: |delta loss + rate x delta bytes| < 1.96 stderr. Then chance may have decided between them.
    """

    option: Option
    delta_loss: float
    delta_bytes: int
    stderr: float
    within_noise: bool

    @property
    def alternative(self) -> Alternative:
        return Alternative(
            format=self.option.format.name,
            delta_loss=self.delta_loss,
            delta_bytes=self.delta_bytes,
            delta_loss_stderr=self.stderr,
        )


def taken(case: Case, option: Option) -> float:
    """What the plan has as little as possible of: bytes, or seconds of a decoding step where speed is asked for."""
    return option.seconds if case.fastest else option.cost


def rates_of(case: Case, chosen: tuple[Option, ...]) -> Rates:
    wins, charges = [0.0], [math.inf]
    for options, now in zip(case.options, chosen, strict=True):
        for other in options:
            if taken(case, other) > taken(case, now):
                wins.append(rate(case, other, now))
            elif taken(case, other) < taken(case, now):
                charges.append(rate(case, now, other))
    # A price can have a smaller format of no more loss refused: nothing is charged for its bytes.
    budget = case.request.budget
    spent = case.fixed_bytes + sum(option.cost for option in chosen)
    room = case.limit_bytes - spent if budget.max_ppl_increase is None else 0
    spare = room > LITTLE * (case.limit_bytes or 0)
    return Rates(max(wins), max(min(charges), 0.0), room, spare, _together(case, chosen))


def _together(case: Case, chosen: tuple[Option, ...]) -> dict[tuple[str, str], tuple[float, float]]:
    """`Rates.together`, all in one prediction: one by one they would take longer than the plan."""
    if case.in_place or not case.has_estimates or case.adds_up:
        return {}
    predictor = predictor_of(case.profile)
    assignments = case.assignments(chosen)
    column = {layer: number for number, layer in enumerate(assignments)}

    def places(formats: Mapping[str, str]) -> list[int]:
        return [next(iter(predictor.rows({layer: fmt})), -1) for layer, fmt in formats.items()]

    plans, better = [np.array(places(assignments))], []
    for group, options, now in zip(case.groups, case.options, chosen, strict=True):
        for other in (option for option in options if option.loss < now.loss):
            swap = {layer.name: other.format.name for layer in group.layers}
            plan = plans[0].copy()
            plan[[column[layer] for layer in swap]] = places(swap)
            plans.append(plan)
            better.append((group.layers[0].name, other.format.name))
    found = predictor.changes(np.stack(plans))
    if not found:
        return {}
    if predictor.losses(plans[0][None])[0].delta_nll <= 0:  # no plan is predicted to be better than the original
        found = [(max(change, 0.0), error) for change, error in found]
    return dict(zip(better, found, strict=True))


def rate(case: Case, larger: Option, smaller: Option) -> float:
    return (smaller.loss - larger.loss) / (taken(case, larger) - taken(case, smaller))


def others_of(case: Case, options: tuple[Option, ...], now: Option, rates: Rates) -> list[Option]:
    """What else there is, that of the least regret first."""
    others = [option for option in options if option.format.name != now.format.name]
    return sorted(others, key=lambda other: (_regret(case, other, now, rates), other.cost))


def runner_up(case: Case, group: LayerGroup, others: list[Option], now: Option, rates: Rates) -> RunnerUp | None:
    if not others:
        return None
    best = others[0]
    stderr = case.difference_stderr(group, now, best)
    within_noise = abs(_regret(case, best, now, rates)) < CONFIDENCE * stderr
    return RunnerUp(best, best.loss - now.loss, best.cost - now.cost, stderr, within_noise)


def _regret(case: Case, other: Option, now: Option, rates: Rates) -> float:
    return other.loss - now.loss + rates.exchange * (taken(case, other) - taken(case, now))


def opposite_of(case: Case, others: list[Option], now: Option) -> Option | None:
    """The best of the smaller options where the runner-up is a larger one, and of the larger where it is smaller."""
    side = taken(case, others[0]) - taken(case, now)
    return next((other for other in others if side * (taken(case, other) - taken(case, now)) < 0), None)
