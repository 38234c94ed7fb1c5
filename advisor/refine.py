"""Improves a plan where it stands: gradients with the plan in place, an exact step, and the truth on held-back text.

Scores of single layers say little of a model whose every layer is quantized. Each round here takes the gradient of
KL(p_full || p_plan) and the Fisher information at the plan's own weights, for every other format that a group may have;
solves the same knapsack for the change of loss; and keeps the new plan only if it is better on text that no gradient
saw. The second order is damped, as Levenberg and Marquardt damp a step: it counts 1 + damping times, so that a large
damping changes little. Several dampings are solved and measured, since measuring costs a forward pass and the gradients
cost ten.

The plans that need no advisor compete on the same text: whichever is best within the budget is what comes out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from operator import contains
from typing import Literal, Protocol

import numpy as np

from advisor.candidates import Case, Option, Score, parts, prepare
from advisor.errors import InfeasibleBudget
from advisor.estimates import DAMPING, Change, Losses, standard_error, together
from advisor.knapsack import Candidate
from advisor.memory import decided_bits, weights_bytes
from advisor.planning import assemble, assignments_of, chosen_options, make_plan
from advisor.prediction import Loss, prediction_of
from advisor.reasons import explain
from advisor.simple_plans import simple_choices
from advisor.solver import solve_min_loss
from advisor.types import (
    Contender,
    Format,
    Layer,
    LayerGroup,
    Plan,
    PlanRequest,
    Prediction,
    Refinement,
    RefinementRound,
    SensitivityProfile,
    Verdict,
)

DAMPINGS = (0.25, 0.5, 1.0, 2.0)
BY_SCORES, REFINED = "scores alone", "refined"

Part = Literal["gradients", "choice", "prediction"]
Assignments = Mapping[str, str]
Changes = Mapping[tuple[str, str], Change]
Choice = tuple[Option, ...]


class Probe(Protocol):
    """The model on its texts: what plans and changes of plans do to it."""

    def tokens(self, part: Part) -> int:
        """Predicted tokens of a part of the text."""

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

    Where the request has a tolerance, the size of its plan is kept and the loss lowered.

    Args:
        text: what the probe reads, for the record.
        tell: called with rounds done and a sentence.

    Raises:
        InfeasibleBudget, PlanError, KnowledgeError: as `make_plan`.
    """
    started = time.monotonic()
    tell(0, "Measuring the plan by scores, and the simple plans that fit")
    by_scores = make_plan(profile, request)
    case = prepare(profile, request)
    first = choice_of(case, by_scores.assignments)
    limit = _limit(case, first)
    tried = {BY_SCORES: Tried(first, probe.losses(by_scores.assignments, "choice"))}
    for name, choice in _simple_choices(profile, request, case, limit).items():
        tried[name] = Tried(choice, probe.losses(assignments_of(case, choice), "choice"))
    winner = min(tried, key=lambda name: tried[name].losses.expected)
    best, around = tried[winner], None
    calibration_kl = before = _calibration_kl(case, probe, best)
    told: list[RefinementRound] = []
    for number, found in enumerate(_rounds(case, best, limit, probe), 1):
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
    seen = _around(part, around) if around is not None else part
    plan = assemble(
        seen,
        best.choice,
        explain(seen, best.choice),
        by_scores.optimality_gap,
        winner,
        measured_prediction(probe.losses(assignments_of(case, best.choice), "prediction"), by_scores.predicted),
    )
    return plan.model_copy(update={"refinement": refinement})


def measured_prediction(losses: Losses, by_scores: Prediction) -> Prediction:
    """What a whole plan did on text that had no part in it, as the prediction for other text."""
    return prediction_of(
        Loss(
            delta_nll=losses.expected,
            delta_nll_stderr=standard_error(losses.delta_nll),
            kl=float(losses.kl.mean()),
            kl_stderr=standard_error(losses.kl),
        ),
        by_scores.base_perplexity,
        by_scores.unmeasured_layers,
        measured=True,
    )


# -------------------------------------------------------------------------------------------- rounds


def _rounds(case: Case, start: Tried, limit: int, probe: Probe) -> Iterator[Round]:
    """Rounds from `start` on, until none of a round's steps is an improvement."""
    now = start
    while True:
        changes = probe.changes(assignments_of(case, now.choice), _others(case, now.choice))
        steps: list[Tried] = []
        for damping in DAMPINGS:
            choice = _step(case, now.choice, changes, damping, limit)
            if choice == now.choice:
                break  # more damping changes no more
            if all(choice != step.choice for step in steps):
                steps.append(Tried(choice, probe.losses(assignments_of(case, choice), "choice"), damping))
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


def _step(case: Case, now: Choice, changes: Changes, damping: float, limit: int) -> Choice:
    """The best plan by the changes of single groups, exactly; prices of rules count as they do for scores.

    For an engine that holds one quantized format, the best of the plans with each.
    """

    def candidate(group: LayerGroup, option: Option, held: Option) -> Candidate:
        loss = option.price
        if option.format.name != held.format.name:
            loss += together([changes[layer.name, option.format.name] for layer in group.layers]).loss(damping)
        return Candidate(option.format.name, loss, option.cost)

    found: list[tuple[float, Choice]] = []
    for part in parts(case):
        groups = [
            [candidate(group, option, held) for option in options]
            for group, options, held in zip(part.groups, part.options, now, strict=True)
        ]
        with suppress(InfeasibleBudget):  # never all of them: the plan at hand is within the limit
            solution = solve_min_loss(groups, limit)
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


def _limit(case: Case, by_scores: Choice) -> int:
    """In the case's cost, for the decided groups together."""
    if case.limit_bytes is None or case.request.budget.max_ppl_increase is not None:
        return _cost(by_scores)
    return case.limit_bytes - case.fixed_bytes


def _simple_choices(profile: SensitivityProfile, request: PlanRequest, case: Case, limit: int) -> dict[str, Choice]:
    """The simple plans that keep the limit and everything that the request asks for."""
    found = {}
    for name, free in simple_choices(profile, request).items():
        choice = choice_of(case, assignments_of(case, free))
        if choice is not None and _cost(choice) <= limit:
            found[name] = choice
    return found


def _cost(choice: Choice) -> int:
    return sum(option.cost for option in choice)


def _changed(one: Choice, other: Choice) -> int:
    return sum(a.format.name != b.format.name for a, b in zip(one, other, strict=True))


# -------------------------------------------------------------------------------------------- record


def _calibration_kl(case: Case, probe: Probe, tried: Tried) -> float:
    return float(probe.losses(assignments_of(case, tried.choice), "gradients").kl.mean())


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
    assignments, losses = assignments_of(case, tried.choice), tried.losses
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


# ------------------------------------------------------------------------------------------- reasons


@dataclass(frozen=True)
class CaseAround(Case):
    """A case whose losses are changes around a plan instead of scores from the original weights."""

    before: Case | None = None
    changes: Changes = field(default_factory=dict)

    @cached_property
    def _own(self) -> set[tuple[str, str]]:
        """Layers and their formats in the plan that the changes are of."""
        possible = (
            (layer.name, option.format.name)
            for group, options in zip(self.before.groups, self.before.options, strict=True)
            for option in options
            for layer in group.layers
        )
        return {key for key in possible if key not in self.changes}

    def _score(self, layer: Layer, fmt: Format) -> Score:
        key = layer.name, fmt.name
        unchanged = 0.0 if key in self._own else math.nan  # what cannot be had was not asked for
        loss = self.changes[key].loss(DAMPING) if key in self.changes else unchanged
        return Score(loss, loss, self._bytes(layer, fmt))

    def _judged(self, layer: Layer, fmt: Format) -> tuple[Verdict, ...]:
        """What can be had is no matter of the plan."""
        return self.before._judged(layer, fmt)

    def difference_stderr(self, group: LayerGroup, one: Option, other: Option) -> float:
        """Standard error over the sequences of the difference of two options' changes."""
        return standard_error(self._by_sequence(group, other) - self._by_sequence(group, one))

    def _by_sequence(self, group: LayerGroup, option: Option) -> np.ndarray:
        found = [self.changes.get((layer.name, option.format.name)) for layer in group.layers]
        return sum((change.by_sequence(DAMPING) for change in found if change is not None), np.zeros(1))


def _around(case: Case, changes: Changes) -> CaseAround:
    known = {one.name: getattr(case, one.name) for one in fields(Case) if not one.name.startswith("_")}
    bare = CaseAround(**known, before=case, changes=changes)
    return replace(bare, options=tuple(bare.group_options(group) for group in case.groups))
