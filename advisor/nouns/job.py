"""The nouns of long work: a job, how far it is, and what can be asked of one."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, model_validator

from advisor.nouns.base import Noun
from advisor.nouns.evaluation import EvaluationOptions
from advisor.nouns.methods import MethodName
from advisor.nouns.profile import FormatName, Method
from advisor.nouns.request import PlanRequest

_SUBJECTS = {"plan": "plan_id", "profile": "profile_id", "test": "test_id"}


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED)


class Progress(Noun):
    """How far a long piece of work is: `done` of `total` units of `stage`; total 0 means not known yet.

    `subject` is the id of what is being made (a sensitivity profile), so that a page can show it growing.
    """

    stage: str
    done: int = 0
    total: int = 0
    message: str = ""
    subject: str = ""


class Job(Noun):
    """A long piece of work in a child process; the row is the only thing the page and the child share.

    `pid` on `host` runs the job, or waits for its turn; `heartbeat` is that process's last sign of life. `person` is
    who asked for it, as far as that is known: the queue serves persons in turn.
    """

    id: str
    kind: Literal["inspect", "preview", "profile", "refine", "apply", "zip", "answers"]
    status: JobStatus
    params: dict[str, Any]
    progress: Progress | None = None
    result: dict[str, Any] | None = None
    error: str = ""
    log_tail: str = ""
    pid: int | None = None
    cancel_requested: bool = False
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    heartbeat: datetime | None = None
    host: str = ""
    person: str = ""

    @property
    def subjects(self) -> dict[str, str]:
        """The ids of the stored things that its request names, by what they are: plan, profile, test."""
        return {name: self.params[key] for name, key in _SUBJECTS.items() if self.params.get(key)}


class ProfileRequest(Noun):
    """What to measure.

    Attributes:
        samples: sequences of text; None takes what suits method and device.
        method: `fisher` estimates all layers from a few backward passes, `exact` runs the model for every layer and
            format, `auto` estimates first and measures exactly where that leaves decisions open.
        draws: labels that `fisher` draws per token.
        layers: which ones, named like those of locks; empty means all quantizable ones.
        around: formats of a plan: measure what giving back each of its layers wins, all others staying quantized.
    """

    model: str
    text: str = "python-docs"
    samples: int | None = Field(default=None, gt=0)
    seq_len: int = Field(default=256, ge=8)
    formats: tuple[str, ...] = Field(default=("int8", "int4_g64"), min_length=1)
    method: Method = "fisher"
    draws: int = Field(default=8, ge=1, le=64)
    layers: str = ""
    around: dict[str, FormatName] = {}
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    seed: int = 0

    @model_validator(mode="after")
    def _around_is_measured(self) -> ProfileRequest:
        if self.around and self.method != "exact":
            raise ValueError("around a plan, layers are measured with the method `exact`")
        return self


class RefineRequest(Noun):
    """Improve the plan of a request on its model, from a stored sensitivity profile, and store what wins."""

    profile_id: str
    plan: PlanRequest
    rounds: int = Field(default=3, ge=1, le=20)
    name: str = ""


class ApplyRequest(EvaluationOptions):
    """Apply a stored plan and measure it beside the original and the uniform plans on held-out text.

    `to` is a row of `profiles/targets.toml`, `method` says how codes are chosen, `recover` for how many steps the
    original is then distilled into scales and norms, and `calibration` is text for both other than the plan's own.
    """

    plan_id: str
    to: str = "quanto"
    method: MethodName = "auto"
    recover: int = Field(default=0, ge=0)
    calibration: str | None = None
    out: str | None = None
    text: str = "python-docs"
    tokens: int = Field(default=4096, gt=0)
    seq_len: int = Field(default=256, ge=8)
    baselines: tuple[str, ...] = ("int8", "int4_g64")


class ZipRequest(Noun):
    """Make one file of the folder that an applied plan lies in."""

    plan_id: str
    folder: str
