"""What can go wrong, said in one sentence that ends with what to do next."""

from collections.abc import Mapping
from typing import Any

WaysOut = Mapping[str, Mapping[str, Any]]


class AdvisorError(Exception):
    """A refusal the user can act on; its message is shown as it is, never as a traceback.

    Attributes:
        ways_out: of a refused plan, what would do in words -> the fields of `PlanRequest.changed`.
    """

    def __init__(self, message: str = "", ways_out: WaysOut | None = None):
        super().__init__(message)
        self.ways_out = ways_out or {}


class ModelError(AdvisorError):
    """A model cannot be found, downloaded, read or catalogued."""


class TextError(AdvisorError):
    """Calibration or evaluation text is missing, unreadable or too short."""


class TaskError(AdvisorError):
    """A downstream task is unknown, cannot be read or fetched, or would run code."""


class KnowledgeError(AdvisorError):
    """A table in `profiles/` is wrong, or a name is not in it."""


class InfeasibleBudget(AdvisorError):
    """No assignment meets the budget; carries the smallest possible size.

    Attributes:
        smallest_bytes: the least bytes that the allowed formats reach (same measure as the budget).
        limit_bytes: what the budget allowed.
    """

    def __init__(
        self,
        message: str,
        smallest_bytes: int | None = None,
        limit_bytes: int | None = None,
        ways_out: WaysOut | None = None,
    ):
        super().__init__(message, ways_out)
        self.smallest_bytes = smallest_bytes
        self.limit_bytes = limit_bytes


class PlanError(AdvisorError):
    """A plan document is malformed, or belongs to another model."""


class UnfitPlan(PlanError):
    """A plan that an engine cannot load as it is; carries the nearest one that it can.

    Attributes:
        nearest: layer name -> format name.
    """

    def __init__(self, message: str, nearest: dict[str, str]):
        super().__init__(message)
        self.nearest = nearest


class StorageError(AdvisorError):
    """Something could not be saved: the disk is full, or the database is out of reach."""


class JobCancelled(AdvisorError):
    """The user asked a running job to stop."""
