"""The nouns of lists: stored things without their measurements and documents, and what was deleted."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from advisor.nouns.base import Noun
from advisor.nouns.evaluation import Evaluation

DELETED_DAYS = 7
DeletedKind = Literal["model", "profile", "plan", "evaluation", "blind test", "job"]


class ModelSummary(Noun):
    """A stored catalogue as a list shows it; the same weights from two sources are two. `label` is one's own name."""

    id: int
    label: str = ""
    name: str
    source: str
    fingerprint: str
    saved: datetime


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
    """A stored plan as a list shows it; `profile_id` is None for a plan that was not made from a stored profile.

    `formats`: how many layers have which, the most first.
    """

    id: str
    name: str = ""
    profile_id: str | None
    model_name: str
    hardware: str
    engine: str
    decided_bits: float
    total_bytes: int
    perplexity: float
    formats: dict[str, int] = {}
    refined: bool = False
    created: datetime


class StoredEvaluation(Noun):
    """An evaluation as it is stored; `plan_id` is None for one that belongs to no plan."""

    id: str
    name: str = ""
    plan_id: str | None
    evaluation: Evaluation


class Deletion(Noun):
    """What was deleted and can still be brought back: its kind and label, and what went with it (kind -> how many)."""

    id: str
    kind: DeletedKind
    label: str
    also: dict[str, int] = {}
    created: datetime

    @property
    def gone_on(self) -> datetime:
        """From when on it is deleted for good."""
        return self.created + timedelta(days=DELETED_DAYS)


class DatabaseSize(Noun):
    """Bytes of the database; `spare_bytes` of them would be given back by compacting it, where it can be."""

    bytes: int
    spare_bytes: int
    compactable: bool


class UsedSpace(Noun):
    """Room that something takes: `what` it is, its `place`, and how much of it can be given back, and at which price.

    `removable` where the place itself can be removed.
    """

    what: str
    place: str
    bytes: int
    spare_bytes: int
    note: str = ""
    removable: bool = False
