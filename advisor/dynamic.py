"""Exact search of a small multiple-choice knapsack by dynamic programming: what a relaxation left open of a large one.

Groups are decided one after another. Of all partial choices only those are kept that could still end better than what
is known, and that no other one beats in the objective and in every limit (Kellerer, Pferschy, Pisinger, "Knapsack
Problems", 2004, chapter 11): a few hundred at any time where few candidates are open.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Where more partial choices are alive at once, branching and cutting is faster.
_MOST_STATES = 50_000
# With several limits each is compared with every other.
_MOST_COMPARED = 800


class Open(NamedTuple):
    """The candidates that may be chosen, by group: positions in a table, at least one each.

    `objective`, `reduced` (what a choice's bound grows by) and `used` (a row for each limit) are of all of the table.
    """

    groups: list[np.ndarray]
    objective: np.ndarray
    reduced: np.ndarray
    used: np.ndarray


class _States(NamedTuple):
    """Partial choices: their totals so far, and behind each the one that it continues and the candidate it took."""

    objective: np.ndarray
    reduced: np.ndarray
    used: np.ndarray
    parent: np.ndarray
    taken: np.ndarray


class Found(NamedTuple):
    """Choices, the best first, as positions of one candidate a group, and whether nothing better was passed over."""

    choices: Iterator[np.ndarray]
    complete: bool


def best_choices(found: Open, slacks: np.ndarray, room: float, width: int | None = None) -> Found | None:
    """Choices within the limits whose reduced costs stay within `room`, but those that another beats in everything.

    Args:
        slacks: of each limit, what may be used.
        width: how many partial choices to keep, those of the best bound; None keeps all.

    Returns:
        None where all are to be kept and that would take too long.
    """
    settled = np.array([group[0] for group in found.groups if len(group) == 1], dtype=int)
    # The widest choices first: what they leave decides most.
    groups = sorted((group for group in found.groups if len(group) > 1), key=lambda g: -np.ptp(found.reduced[g]))
    least_reduced, least_used = _least_of_the_rest(found, groups)
    totals = (
        column[..., settled].sum(axis=-1, keepdims=True) for column in (found.objective, found.reduced, found.used)
    )
    states, complete = [_States(*totals, *np.zeros((2, 1), dtype=int))], True
    for number, group in enumerate(groups):
        grown = _grown(found, states[-1], group)
        possible = grown.reduced + least_reduced[number] <= room
        possible &= np.all(grown.used + least_used[:, number, None] <= slacks[:, None], axis=0)
        grown = _picked(grown, np.flatnonzero(possible))
        if len(grown.objective) > (_MOST_STATES if len(slacks) == 1 else _MOST_COMPARED):
            return None
        grown = _picked(grown, _undominated(grown))
        if width is not None and len(grown.objective) > width:
            grown, complete = _picked(grown, np.argsort(grown.reduced, kind="stable")[:width]), False
        states.append(grown)
    order = np.argsort(states[-1].objective, kind="stable")
    return Found((np.array(sorted([*settled, *_traced(states[1:], end)])) for end in order), complete)


def _least_of_the_rest(found: Open, groups: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What the groups after each one add at least: to the bound `(groups,)`, and to every limit `(limits, groups)`."""
    reduced = np.array([found.reduced[group].min() for group in groups])
    used = np.array([found.used[:, group].min(axis=1) for group in groups]).reshape(-1, len(found.used)).T
    return reduced[::-1].cumsum()[::-1] - reduced, used[:, ::-1].cumsum(axis=1)[:, ::-1] - used


def _grown(found: Open, states: _States, group: np.ndarray) -> _States:
    """Every partial choice with every candidate of the next group."""
    count = len(states.objective)
    parent, taken = np.tile(np.arange(count), len(group)), np.repeat(group, count)
    return _States(
        states.objective[parent] + found.objective[taken],
        states.reduced[parent] + found.reduced[taken],
        states.used[:, parent] + found.used[:, taken],
        parent,
        taken,
    )


def _picked(states: _States, rows: np.ndarray) -> _States:
    return _States(*(column[..., rows] for column in states))


def _undominated(states: _States) -> np.ndarray:
    """Rows that no other one equals or beats in the objective and in everything used."""
    order = np.lexsort((*states.used[1:], states.objective, states.used[0]))
    objective = states.objective[order]
    if len(states.used) == 1:
        best_before = np.minimum.accumulate(objective)[:-1]
        return order[np.concatenate([[True], objective[1:] < best_before])] if len(order) else order
    values = np.vstack([objective, states.used[:, order]])
    beats = np.all(values[:, :, None] <= values[:, None, :], axis=0)
    return order[~np.triu(beats, 1).any(axis=0)]


def _traced(states: list[_States], end: int) -> list[int]:
    """The candidates of a whole choice, from its last group back to the first."""
    taken = []
    for state in reversed(states):
        taken.append(state.taken[end])
        end = state.parent[end]
    return taken
