"""The planning problem around a plan: changes from where it stands, not scores from the original weights. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np

from advisor.estimates import DAMPING, Change, standard_error
from advisor.planner.case import Case, Option
from advisor.planner.layer_losses import LayerLoss
from advisor.types import Format, Layer, LayerGroup, Verdict

Changes = Mapping[tuple[str, str], Change]


@dataclass(frozen=True)
class CaseAround(Case):
    """A case whose losses are changes around a plan instead of scores from the original weights."""

    before: Case | None = None
    changes: Changes = field(default_factory=dict)

    @property
    def in_place(self) -> bool:
        return True

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

    def _losses(self, layer: Layer, fmt: Format) -> LayerLoss:
        key = layer.name, fmt.name
        unchanged = 0.0 if key in self._own else math.nan  # what cannot be had was not asked for
        loss = self.changes[key].loss(DAMPING) if key in self.changes else unchanged
        return LayerLoss(loss, loss)

    def _judged(self, layer: Layer, fmt: Format) -> tuple[Verdict, ...]:
        """What can be had is no matter of the plan."""
        return self.before._judged(layer, fmt)

    def difference_stderr(self, group: LayerGroup, one: Option, other: Option) -> float:
        """Standard error over the sequences of the difference of two options' changes."""
        return standard_error(self._by_sequence(group, other) - self._by_sequence(group, one))

    def _by_sequence(self, group: LayerGroup, option: Option) -> np.ndarray:
        found = [self.changes.get((layer.name, option.format.name)) for layer in group.layers]
        return sum((change.by_sequence(DAMPING) for change in found if change is not None), np.zeros(1))


def around_plan(case: Case, changes: Changes) -> CaseAround:
    """The case with the changes of the plan that they were taken around, so that its formats can be explained."""
    known = {one.name: getattr(case, one.name) for one in fields(Case) if not one.name.startswith("_")}
    bare = CaseAround(**known, before=case, changes=changes)
    return replace(bare, options=tuple(bare.group_options(group) for group in case.groups))
