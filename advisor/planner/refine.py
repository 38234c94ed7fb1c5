"""Improves a plan where it stands: gradients with the plan in place, an exact step, and the truth on held-back text.

Scores of single layers say little of a model whose every layer is quantized. Each round here takes the gradient of
KL(p_full || p_plan) and the Fisher information at the plan's own weights, for every other format that a group may have;
solves the same knapsack for the change of loss; and keeps the new plan only if it is better on text that no gradient
saw. The second order is damped, as Levenberg and Marquardt damp a step: it counts 1 + damping times, so that a large
damping changes little. Several dampings are solved and measured, since measuring costs a forward pass and the gradients
cost ten.

The plans that need no advisor compete on the same text, and so do plans by scores that are damped otherwise, since no
damping is best for all formats and sizes: whichever is best within the budget is what comes out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import contains
from typing import Literal, Protocol

from advisor.errors import InfeasibleBudget
from advisor.estimates import Losses, standard_error, together
from advisor.memory import decided_bits, weights_bytes
from advisor.planner.around import Changes, around_plan
from advisor.planner.candidates import parts, prepare
from advisor.planner.case import Case, Option
from advisor.planner.choosing import chosen_options
from advisor.planner.measures import Candidate
from advisor.planner.planning import assemble, make_plan
from advisor.planner.pool import damped, seconds_per_tick
from advisor.planner.prediction import Loss, prediction_of
from advisor.planner.reasons import explain
from advisor.planner.regret import rates_of
from advisor.planner.simple_plans import simple_choices
from advisor.planner.solver import solve_min_loss
from advisor.types import (
    Contender,
    LayerGroup,
    Plan,
    PlanRequest,
    Prediction,
    Refinement,
    RefinementRound,
    SensitivityProfile,
)

DAMPINGS = (0.25, 0.5, 1.0, 2.0)
SCORE_DAMPINGS = (0.0, 0.5, 1.0, 2.0)
BY_SCORES, REFINED = "scores alone", "refined"

Part = Literal["gradients", "choice", "prediction"]
Assignments = Mapping[str, str]
Choice = tuple[Option, ...]


class Probe(Protocol):
    """The model on its texts: what plans and changes of plans do to it."""

    def tokens(self, part: Part) -> int:
        """Predicted tokens of a part of the text."""

    def base_perplexity(self, part: Part) -> float:
        """Of the unquantized model on a part of the text."""

    def losses(self, assignments: Assignments, part: Part) -> Losses:
        """Of a plan, on the gradients' own text, on the text that plans are chosen by, or on text for neither."""

    def changes(self, assignments: Assignments, others: list[tuple[str, str]]) -> Changes:
        """Of a plan by giving a layer another format, for each (layer, format)."""


@dataclass(frozen=True)
class Tried:
    """A plan that was measured on the held-back text."""

    choice: Choice
    losses: Losses
    damping: float | None = None


@dataclass(frozen=True)
class Round:
    """One round: what was known around the plan, the steps that were measured, and the one taken, if any."""

    changes: Changes
    steps: tuple[Tried, ...]
    taken: Tried | None


def refine(
    profile: SensitivityProfile,
    request: PlanRequest,
    probe: Probe,
    rounds: int,
    text: str,
    tell: Callable[[int, str], None] = lambda done, message: None,
) -> Plan:
    """The best plan for the request that `rounds` rounds find, measured beside every simple plan of no greater size.

    Where the request has a tolerance, the size of its plan is kept and the loss lowered; where it asks for speed, the
    time of its decoding step is kept as well.

    Args:
        text: what the probe reads, for the record.
        tell: called with rounds done and a sentence.

    Raises:
        InfeasibleBudget, PlanError, KnowledgeError: as `make_plan`.
    """
    started = time.monotonic()
    tell(0, "Measuring plans by scores, and the simple plans that fit")
    by_scores = make_plan(profile, request)
    case = prepare(profile, request)
    first = choice_of(case, by_scores.assignments)
    limits = limits_of(case, first)
    tried = {BY_SCORES: Tried(first, probe.losses(by_scores.assignments, "choice"))}
    others = {**damped_otherwise(case, first, limits), **_simple_choices(profile, request, case, limits)}
    for name, choice in others.items():
        tried[name] = Tried(choice, probe.losses(case.assignments(choice), "choice"))
    winner = min(tried, key=lambda name: tried[name].losses.expected)
    best, around = tried[winner], None
    calibration_kl = before = _calibration_kl(case, probe, best)
    told: list[RefinementRound] = []
    for number, found in enumerate(rounds_from(case, best, limits, probe), 1):
        around = found.changes
        if found.taken is not None:
            changed = _changed(best.choice, found.taken.choice)
            best, winner = found.taken, REFINED
            calibration_kl = _calibration_kl(case, probe, best)
        told.append(_round_told(found, best, changed if found.taken else 0, calibration_kl))
        tell(number, f"KL {best.losses.kl.mean():.4f} on held-back text, {len(found.steps)} steps tried")
        if number == rounds:
            break
    if winner == REFINED:
        tried[REFINED] = best
    refinement = Refinement(
        winner=winner,
        contenders=tuple(_contender(case, name, one) for name, one in tried.items()),
        rounds=tuple(told),
        calibration_kl_before=before,
        tokens=probe.tokens("gradients"),
        held_back_tokens=probe.tokens("choice"),
        text=text,
        seconds=time.monotonic() - started,
    )
    part = next(part for part in parts(case) if all(map(contains, part.options, best.choice)))
    seen = around_plan(part, around) if around is not None else part
    rates = rates_of(seen, best.choice)
    plan = assemble(
        seen,
        best.choice,
        explain(seen, best.choice, rates),
        None,
        winner,
        measured_prediction(
            probe.losses(case.assignments(best.choice), "prediction"),
            probe.base_perplexity("prediction"),
            by_scores.predicted.unmeasured_layers,
        ),
        rates.exchange,
    )
    return plan.model_copy(update={"refinement": refinement})


def measured_prediction(losses: Losses, base_perplexity: float, unmeasured_layers: int) -> Prediction:
    """What a whole plan did on text that had no part in it, as the prediction for other text."""
    return prediction_of(
        Loss(
            delta_nll=losses.expected,
            delta_nll_stderr=standard_error(losses.delta_nll),
            kl=float(losses.kl.mean()),
            kl_stderr=standard_error(losses.kl),
        ),
        base_perplexity,
        unmeasured_layers,
        measured=True,
    )


# -------------------------------------------------------------------------------------------- rounds


def rounds_from(case: Case, start: Tried, limits: Limits, probe: Probe) -> Iterator[Round]:
    """Rounds from `start` on, until none of a round's steps is an improvement."""
    now = start
    while True:
        changes = probe.changes(case.assignments(now.choice), _others(case, now.choice))
        steps: list[Tried] = []
        for damping in DAMPINGS:
            choice = _step(case, now.choice, changes, damping, limits)
            if choice == now.choice:
                break  # more damping changes no more
            if all(choice != step.choice for step in steps):
                steps.append(Tried(choice, probe.losses(case.assignments(choice), "choice"), damping))
        better = [step for step in steps if step.losses.improves(now.losses)]
        taken = min(better, key=lambda step: step.losses.expected, default=None)
        yield Round(changes, tuple(steps), taken)
        if taken is None:
            return
        now = taken


def _others(case: Case, now: Choice) -> list[tuple[str, str]]:
    return [
        (layer.name, option.format.name)
        for group, options, held in zip(case.groups, case.options, now, strict=True)
        for option in options
        if option.format.name != held.format.name
        for layer in group.layers
    ]


def _step(case: Case, now: Choice, changes: Changes, damping: float, limits: Limits) -> Choice:
    """The best plan by the changes of single groups, exactly."""
    held = {group.name: option.format.name for group, option in zip(case.groups, now, strict=True)}

    def change(group: LayerGroup, option: Option) -> float:
        if option.format.name == held[group.name]:
            return 0.0
        return together([changes[layer.name, option.format.name] for layer in group.layers]).loss(damping)

    return _best(case, change, limits)


def _best(case: Case, loss: Callable[[LayerGroup, Option], float], limits: Limits) -> Choice:
    """The choice of least summed loss within the limits; prices of rules count as they do for scores.

    For an engine that holds one quantized format, the best of the plans with each.
    """
    found: list[tuple[float, Choice]] = []
    for part in parts(case):
        groups = [
            [Candidate(o.format.name, loss(group, o) + o.price, o.cost, time=limits.ticks(o.seconds)) for o in options]
            for group, options in zip(part.groups, part.options, strict=True)
        ]
        with suppress(InfeasibleBudget):  # never all of them: the plan at hand is within the limits
            solution = solve_min_loss(groups, limits.cost, max_time=limits.time)
            found.append((solution.loss, chosen_options(part, solution)))
    return min(found, key=lambda one: one[0])[1]


# ------------------------------------------------------------------------------------------- choices


def choice_of(case: Case, assignments: Assignments) -> Choice | None:
    """One option per group with these formats; None where the case does not allow one of them."""
    found = []
    for group, options in zip(case.groups, case.options, strict=True):
        names = {assignments.get(layer.name) for layer in group.layers}
        found += [option for option in options if names == {option.format.name}]
    return tuple(found) if len(found) == len(case.groups) else None


@dataclass(frozen=True)
class Limits:
    """What a step may not exceed, for the decided groups together.

    Attributes:
        cost: in the budget's own measure.
        time: ticks of a decoding step; None where speed was not asked for.
        tick: in seconds.
    """

    cost: int
    time: int | None = None
    tick: float = 1.0

    def ticks(self, seconds: float) -> int:
        return round(seconds / self.tick)

    def keep(self, choice: Choice) -> bool:
        return (self.time is None or self.time_of(choice) <= self.time) and _cost(choice) <= self.cost

    def time_of(self, choice: Choice) -> int:
        return sum(self.ticks(option.seconds) for option in choice)


def limits_of(case: Case, by_scores: Choice) -> Limits:
    """Of the request, or where it has a tolerance, those that its plan by scores keeps."""
    budget = case.request.budget
    tolerant = budget.max_ppl_increase is not None
    cost = _cost(by_scores) if tolerant or case.limit_bytes is None else case.limit_bytes - case.fixed_bytes
    limits = Limits(cost, tick=seconds_per_tick(case))
    return replace(limits, time=limits.time_of(by_scores)) if budget.fastest else limits


def damped_otherwise(case: Case, first: Choice, limits: Limits) -> dict[str, Choice]:
    """Plans of the least sum of scores, KL counted more or less often, apart from the first; none of exact scores."""
    if not case.has_estimates:
        return {}
    found: dict[str, Choice] = {}
    for damping in SCORE_DAMPINGS:
        choice = _best(case, partial(damped, case, damping=damping), limits)
        if choice not in (first, *found.values()):
            found[f"{BY_SCORES}, KL counted {1 + damping:g} x"] = choice
    return found


def _simple_choices(profile: SensitivityProfile, request: PlanRequest, case: Case, limits: Limits) -> dict[str, Choice]:
    """The simple plans that keep the limits and everything that the request asks for."""
    found = {}
    for name, free in simple_choices(profile, request).items():
        choice = choice_of(case, case.assignments(free))
        if choice is not None and limits.keep(choice):
            found[name] = choice
    return found


def _cost(choice: Choice) -> int:
    return sum(option.cost for option in choice)


def _changed(one: Choice, other: Choice) -> int:
    return sum(a.format.name != b.format.name for a, b in zip(one, other, strict=True))


# -------------------------------------------------------------------------------------------- record


def _calibration_kl(case: Case, probe: Probe, tried: Tried) -> float:
    return float(probe.losses(case.assignments(tried.choice), "gradients").kl.mean())


def _round_told(found: Round, best: Tried, changed: int, calibration_kl: float) -> RefinementRound:
    return RefinementRound(
        tried=len(found.steps),
        changed=changed,
        damping=found.taken.damping if found.taken else None,
        calibration_kl=calibration_kl,
        kl=float(best.losses.kl.mean()),
        delta_nll=float(best.losses.delta_nll.mean()),
        expected_loss=best.losses.expected,
    )


def _contender(case: Case, name: str, tried: Tried) -> Contender:
    assignments, losses = case.assignments(tried.choice), tried.losses
    return Contender(
        name=name,
        decided_bits=decided_bits(case.catalogue, assignments),
        weights_bytes=weights_bytes(case.catalogue, assignments, case.context.engine),
        kl=float(losses.kl.mean()),
        kl_stderr=standard_error(losses.kl),
        delta_nll=float(losses.delta_nll.mean()),
        delta_nll_stderr=standard_error(losses.delta_nll),
        expected_loss=losses.expected,
    )
