"""Every step that the layers of a plan could take, with what it changes and its price, read from its reasons. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from advisor.knowledge import find_engine
from advisor.planner.groups import decision_groups
from advisor.types import Alternative, Catalogue, LayerGroup, Plan


@dataclass(frozen=True)
class Step:
    """Another format for a layer, and for all that its engine fuses with it.

    Attributes:
        delta_loss, delta_bytes: of all these layers, as reasons count them.
    """

    layer: str
    chosen: str
    other: str
    delta_loss: float
    delta_bytes: int

    @property
    def larger(self) -> bool:
        return self.delta_bytes > 0

    @property
    def price(self) -> float:
        """What a byte more would win, or a byte less would cost, nats per token: to hold against the exchange rate.

        Below zero where a larger format loses more, or a smaller one less; 0 for a format of as many bytes.
        """
        return -self.delta_loss / self.delta_bytes if self.delta_bytes else 0.0


def steps_of(plan: Plan, catalogue: Catalogue) -> list[Step]:
    """Every step that rules allow and scores tell, in the catalogue's order; none for plans without reasons."""
    groups = decision_groups(catalogue, find_engine(plan.request.engine), plan.assignments)
    return [step for group in groups for step in _steps(plan, group)]


def _steps(plan: Plan, group: LayerGroup) -> list[Step]:
    offered = [_possible(plan, layer.name) for layer in group.layers]
    found = []
    for other in offered[0]:
        alike = [options[other] for options in offered if other in options]
        if len(alike) == len(offered):
            loss, count = math.fsum(one.delta_loss for one in alike), sum(one.delta_bytes for one in alike)
            found += [Step(layer.name, plan.assignments[layer.name], other, loss, count) for layer in group.layers]
    return found


def _possible(plan: Plan, layer: str) -> dict[str, Alternative]:
    alternatives = plan.reasons[layer].alternatives if layer in plan.reasons else ()
    return {
        one.format: one
        for one in alternatives
        if one.delta_loss is not None and all(verdict.allowed for verdict in one.verdicts)
    }
