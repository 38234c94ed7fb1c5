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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from advisor.candidates import Case, Option
from advisor.estimates import Change, Losses, together
from advisor.solver import Candidate, solve_min_loss

DAMPINGS = (0.25, 0.5, 1.0, 2.0)

Assignments = Mapping[str, str]
Changes = Mapping[tuple[str, str], Change]
Choice = tuple[Option, ...]


class Bench(Protocol):
    """The model on its texts: what plans and changes of plans do to it."""

    def losses(self, assignments: Assignments) -> Losses:
        """Of a plan, on the text held back from the gradients."""

    def changes(self, assignments: Assignments, others: list[tuple[str, str]]) -> Changes:
        """Of a plan by giving a layer another format, each (layer, format) on the gradients' text."""


@dataclass(frozen=True)
class Step:
    """A plan that was tried: how far from the one before, and how it did."""

    damping: float
    choice: Choice
    changed: int
    losses: Losses


@dataclass(frozen=True)
class RoundTried:
    """One round: what was known around the plan, the steps that were measured, and the one taken, if any."""

    changes: Changes
    steps: tuple[Step, ...]
    taken: Step | None


def rounds(case: Case, start: Choice, limit: int, bench: Bench, losses: Losses) -> Iterator[RoundTried]:
    """Rounds from `start` on, until none of a round's steps is an improvement; the caller stops earlier by not asking.

    Args:
        start: one option per group of the case, of at most `limit` cost; `losses` are its own.
        limit: in the case's cost, for the decided groups together.
    """
    now = start
    while True:
        changes = bench.changes(assignments_of(case, now), _others(case, now))
        steps: list[Step] = []
        for damping in DAMPINGS:
            choice = _step(case, now, changes, damping, limit)
            if choice == now:
                break  # more damping changes no more
            if all(choice != step.choice for step in steps):
                changed = sum(a.format != b.format for a, b in zip(now, choice, strict=True))
                steps.append(Step(damping, choice, changed, bench.losses(assignments_of(case, choice))))
        better = [step for step in steps if step.losses.improves(losses)]
        taken = min(better, key=lambda step: step.losses.expected, default=None)
        yield RoundTried(changes, tuple(steps), taken)
        if taken is None:
            return
        now, losses = taken.choice, taken.losses


def assignments_of(case: Case, choice: Choice) -> dict[str, str]:
    """Layer -> format of one option per group."""
    return {
        layer.name: option.format.name
        for group, option in zip(case.groups, choice, strict=True)
        for layer in group.layers
    }


def _others(case: Case, now: Choice) -> list[tuple[str, str]]:
    return [
        (layer.name, option.format.name)
        for group, options, held in zip(case.groups, case.options, now, strict=True)
        for option in options
        if option.format != held.format
        for layer in group.layers
    ]


def _step(case: Case, now: Choice, changes: Changes, damping: float, limit: int) -> Choice:
    """The best plan by the changes of single groups, exactly."""
    groups = []
    for group, options, held in zip(case.groups, case.options, now, strict=True):
        groups.append(
            [
                Candidate(
                    option.format.name,
                    0.0
                    if option.format == held.format
                    else together([changes[layer.name, option.format.name] for layer in group.layers]).loss(damping),
                    option.cost,
                )
                for option in options
            ]
        )
    solution = solve_min_loss(groups, limit)
    return tuple(options[index] for options, index in zip(case.options, solution.choice, strict=True))
