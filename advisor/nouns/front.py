"""The nouns of what is possible: sizes, what each costs, and the range between the extremes."""

from __future__ import annotations

from pydantic import Field

from advisor.nouns.base import FiniteNoun, Noun
from advisor.nouns.expectation import Prediction
from advisor.nouns.model import ModelRef
from advisor.nouns.request import PlanRequest


class FrontPoint(FiniteNoun):
    """One size and what it costs in quality and gives in speed.

    Attributes:
        bytes: the plan's size in the measure of the request's limit (all of the deployment for VRAM).
        weights_bytes: all weights as the engine stores them; decided_bits: average over the decided layers.
        loss: what the solver minimizes, summed over layers, nats per token; `predicted` counts interactions too.
        least_tolerance: the smallest rise of perplexity that would allow it (0.05 is 5 %).
        tokens_per_s: of all sequences together; None where it cannot be told.
        gap: how far the loss may be from the least at this size, as a share of it; 0 is proven.
    """

    bytes: int = Field(ge=0)
    weights_bytes: int = Field(ge=0)
    decided_bits: float = Field(ge=0)
    loss: float
    predicted: Prediction
    least_tolerance: float = 0.0
    tokens_per_s: float | None = None
    gap: float = 0.0


class FeasibleRange(Noun):
    """What is possible before a limit is chosen: the smallest plan, the most precise one, and the limit given.

    `limit_bytes` is the request's limit in the measure of `bytes`; None for a tolerance alone.
    """

    smallest: FrontPoint
    largest: FrontPoint
    limit_bytes: int | None = None

    @property
    def missing_bytes(self) -> int:
        """By how much the limit is too small; 0 where a plan fits."""
        return max(0, self.smallest.bytes - self.limit_bytes) if self.limit_bytes is not None else 0


class Front(Noun):
    """The Pareto front of size against loss, from the smallest plan to the most precise one, beside simple plans.

    `limit_bytes` is what the request allows, in the measure of the points' `bytes`; `against_wishes` names the simple
    plans that its locks, exclusions, floors or formats forbid.
    """

    model: ModelRef
    request: PlanRequest
    points: tuple[FrontPoint, ...]
    simple: dict[str, FrontPoint] = {}
    against_wishes: tuple[str, ...] = ()
    limit_bytes: int | None = None

    @property
    def marked_simple(self) -> dict[str, FrontPoint]:
        """The simple plans by name, those that the request forbids marked so."""
        return {
            f"{name} (against your wishes)" if name in self.against_wishes else name: point
            for name, point in self.simple.items()
        }
