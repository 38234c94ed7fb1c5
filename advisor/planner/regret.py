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
_CONFIDENCE = 1.96


@dataclass(frozen=True)
class Rates:
    """What one byte is worth elsewhere in the plan, in nats per byte; of time, where speed is asked for (`taken`).

    win: the most that another byte would win in any group; charge: the least that taking one away would cost.
    room: bytes that a limit of memory has left, where the least loss within it is sought.
    together: of an option that is better by its own score, by its group's first layer and its format: how much more all
    layers together are predicted to lose with it, nats per token; nothing where losses of layers only add up.
    """

    win: float
    charge: float
    room: float = 0.0
    together: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @property
    def exchange(self) -> float:
        """The rate at which the plan trades bytes for loss: between the two, as the slopes of the best plans are.

        0 where no byte would win anything: the budget has room.
        """
        return exchange(self.win, self.charge)


def exchange(win: float, charge: float) -> float:
    """`Rates.exchange` of these two rates; where the one is none, the other alone."""
    return math.sqrt(win * charge) if 0 < charge < math.inf else win


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
    return Rates(max(wins), max(min(charges), 0.0), room, _together(case, chosen))


def _together(case: Case, chosen: tuple[Option, ...]) -> dict[tuple[str, str], float]:
    """`Rates.together`, all in one prediction: one by one they would take longer than the plan."""
    if case.in_place or not case.has_estimates:
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
    # As predictions go: no plan is better than the unquantized model.
    before, *after = (max(loss.delta_nll, 0.0) for loss in predictor.losses(np.stack(plans)))
    return {key: loss - before for key, loss in zip(better, after, strict=True)}


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
    within_noise = abs(_regret(case, best, now, rates)) < _CONFIDENCE * stderr
    return RunnerUp(best, best.loss - now.loss, best.cost - now.cost, stderr, within_noise)


def _regret(case: Case, other: Option, now: Option, rates: Rates) -> float:
    return other.loss - now.loss + rates.exchange * (taken(case, other) - taken(case, now))


def opposite_of(case: Case, others: list[Option], now: Option) -> Option | None:
    """The best of the smaller options where the runner-up is a larger one, and of the larger where it is smaller."""
    side = taken(case, others[0]) - taken(case, now)
    return next((other for other in others if side * (taken(case, other) - taken(case, now)) < 0), None)
