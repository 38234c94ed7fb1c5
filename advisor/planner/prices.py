"""What a byte is worth in a plan, read from its reasons: the price of every step that a layer could take. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

from advisor.knowledge import find_engine
from advisor.planner.groups import decision_groups
from advisor.planner.regret import exchange
from advisor.types import Alternative, Catalogue, LayerGroup, Plan


class Step(NamedTuple):
    """Another format for a layer, and all that its engine fuses with it.

    Attributes:
        larger: whether it takes more bytes; then `price` is what one of them would win, else what saving one would
            cost, in nats per token and byte of the plan's limit. Below zero where a larger format loses more, or a
            smaller one less.
    """

    layer: str
    chosen: str
    other: str
    larger: bool
    price: float


def steps_of(plan: Plan, catalogue: Catalogue) -> list[Step]:
    """Every step that rules allow and scores tell, in the catalogue's order; none for plans without reasons."""
    groups = decision_groups(catalogue, find_engine(plan.request.engine), plan.assignments)
    return [step for group in groups for step in _steps(plan, group)]


def worth_of(steps: list[Step]) -> float:
    """What one more byte is worth in the whole plan (`regret.Rates.exchange`), nats per token."""
    win = max((step.price for step in steps if step.larger), default=0.0)
    charge = min((step.price for step in steps if not step.larger), default=math.inf)
    return exchange(max(win, 0.0), max(charge, 0.0))


def _steps(plan: Plan, group: LayerGroup) -> list[Step]:
    offered = [_possible(plan, layer.name) for layer in group.layers]
    found = []
    for other in offered[0]:
        alike = [options[other] for options in offered if other in options]
        more = sum(one.delta_bytes for one in alike)
        if len(alike) < len(offered) or more == 0:
            continue
        price = -math.fsum(one.delta_loss for one in alike) / more
        found += [Step(layer.name, plan.assignments[layer.name], other, more > 0, price) for layer in group.layers]
    return found


def _possible(plan: Plan, layer: str) -> dict[str, Alternative]:
    alternatives = plan.reasons[layer].alternatives if layer in plan.reasons else ()
    return {
        one.format: one
        for one in alternatives
        if one.delta_loss is not None and all(verdict.allowed for verdict in one.verdicts)
    }
