"""What a model's scores say of each role, held against what the guide expects: where it departs, and where not. Pure.

A departure is claimed only where chance does not explain it: layers share their text, so the errors within a role are
taken to go all the same way, which is the most that they can add up to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from typing import Literal, NamedTuple

from advisor.types import Role, RoleAdvice

LEVELS = ("low", "medium", "high", "very high")  # as `profiles/roles.toml` names them; roles of other names have none

Per = Literal["layer", "byte"]
Outcome = Literal["agrees", "departs", "open"]

_CONFIDENCE = 1.96  # standard errors: within 95 % of chance, two roles are not told apart


class LayerScore(NamedTuple):
    """One layer in one format: its KL in nats per token, that score's standard error, and the bytes that it saves."""

    role: Role
    kl: float
    kl_stderr: float
    saved_bytes: int


class Mean(NamedTuple):
    """A mean and the largest that its standard error can be."""

    value: float
    stderr: float

    def exceeds(self, other: Mean) -> bool:
        """Whether it is larger by more than chance explains."""
        return self.value - other.value > _CONFIDENCE * math.hypot(self.stderr, other.stderr)


class RoleSensitivity(NamedTuple):
    """The layers of one role together.

    Attributes:
        per_layer: mean KL of a layer (nats per token).
        per_byte: KL of all layers over the bytes that they save; None where they save none.
        largest: KL of the most sensitive layer.
        half_in: the fewest layers that hold half of the role's KL.
    """

    layers: int
    saved_bytes: int
    per_layer: Mean
    per_byte: Mean | None
    largest: float
    half_in: int

    def mean(self, per: Per) -> Mean | None:
        return self.per_layer if per == "layer" else self.per_byte


class Ordering(NamedTuple):
    """Two roles of which the guide expects `more` to be the more sensitive one, and whether the model agrees."""

    more: Role
    less: Role
    outcome: Outcome


def role_sensitivities(scores: Iterable[LayerScore]) -> dict[Role, RoleSensitivity]:
    """What the layers of each role do together, in the order first met; scores of one format, or of one plan."""
    by_role: dict[Role, list[LayerScore]] = {}
    for score in scores:
        by_role.setdefault(score.role, []).append(score)
    return {role: _together(found) for role, found in by_role.items()}


def orderings(found: Mapping[Role, RoleSensitivity], advice: Mapping[Role, RoleAdvice], per: Per) -> list[Ordering]:
    """Every pair of roles that the guide puts on different levels, and what the scores say of it.

    `agrees` and `departs` where the means differ by more than chance explains, else `open`.

    Args:
        per: compare what a layer costs, or what a byte saved costs.
    """
    return [
        Ordering(more, less, _outcome(found[more].mean(per), found[less].mean(per)))
        for more, less in permutations(found, 2)
        if _level(advice, more) > _level(advice, less) >= 0
    ]


def _level(advice: Mapping[Role, RoleAdvice], role: Role) -> int:
    """From 0 (low); -1 where nothing is expected of the role."""
    expected = advice[role].sensitivity if role in advice else ""
    return LEVELS.index(expected) if expected in LEVELS else -1


def _outcome(more: Mean | None, less: Mean | None) -> Outcome:
    if more is None or less is None:
        return "open"
    return "agrees" if more.exceeds(less) else "departs" if less.exceeds(more) else "open"


def _together(scores: Sequence[LayerScore]) -> RoleSensitivity:
    kl, stderr = math.fsum(s.kl for s in scores), math.fsum(s.kl_stderr for s in scores)
    saved = sum(s.saved_bytes for s in scores)
    return RoleSensitivity(
        layers=len(scores),
        saved_bytes=saved,
        per_layer=Mean(kl / len(scores), stderr / len(scores)),
        per_byte=Mean(kl / saved, stderr / saved) if saved > 0 else None,
        largest=max(s.kl for s in scores),
        half_in=_half_in([s.kl for s in scores]),
    )


def _half_in(values: Iterable[float]) -> int:
    """How many of the largest values hold half of all that is positive."""
    largest_first = sorted((value for value in values if value > 0), reverse=True)
    half, held = math.fsum(largest_first) / 2, 0.0
    for count, value in enumerate(largest_first, 1):
        held += value
        if held >= half:
            return count
    return 0
