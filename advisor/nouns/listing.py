"""The nouns of lists: stored profiles and plans without their measurements and documents."""

from __future__ import annotations

from datetime import datetime

from advisor.nouns.base import Noun


class ProfileSummary(Noun):
    """A stored sensitivity profile as a list shows it.

    `measured` counts its measurements, which are not loaded, `exact` those that are no estimates, and `tokens` adds up
    what they were measured on; `around` says whether it was measured around a plan.
    """

    id: str
    name: str = ""
    model_name: str
    source: str
    fingerprint: str
    text: str
    samples: int
    seq_len: int
    method: str
    around: bool = False
    dtype: str
    created: datetime
    measured: int = 0
    exact: int = 0
    tokens: int = 0
    formats: tuple[str, ...] = ()

    @property
    def scores_key(self) -> tuple[str, int, int, int]:
        """Another one whenever scores are: they are added, read more tokens, or are replaced by exact ones."""
        return self.id, self.measured, self.exact, self.tokens


class PlanSummary(Noun):
    """A stored plan as a list shows it; `profile_id` is None for a plan that was not made from a stored profile."""

    id: str
    name: str = ""
    profile_id: str | None
    model_name: str
    hardware: str
    engine: str
    decided_bits: float
    total_bytes: int
    perplexity: float
    created: datetime
