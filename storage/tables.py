"""The tables: what the repository stores of each noun; a change here needs a file in `migrations/versions`.

Columns hold what is listed, sorted or joined; the rest of a noun is one JSON document, so that a noun can grow a
field with a default without a migration. Numbers that are large in quantity (measurements) are plain columns.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

# The newest revision in `migrations/versions`; known here so that opening an up-to-date database need not load Alembic.
HEAD_REVISION = "0006"


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes, stored as naive UTC because SQLite keeps no time zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    # Named constraints: SQLite's nameless ones cannot be altered by a later migration.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: JSON(none_as_null=True), datetime: UtcDateTime}


class Deletable:
    """A row that a deletion hides while `deletion_id` names it."""

    deletion_id: Mapped[str | None] = mapped_column(String(32))


class DeletionRow(Base):
    """One deletion that can be undone; `also` counts what it hid beside the thing itself, by kind."""

    __tablename__ = "deletions"

    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    kind: Mapped[str] = mapped_column(String(32))
    label: Mapped[str] = mapped_column(Text)
    also: Mapped[dict[str, Any]]
    created: Mapped[datetime]


class ModelRow(Deletable, Base):
    """A catalogue; the same weights reached by two sources are two rows, so that each source finds its own."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("fingerprint", "source"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    source: Mapped[str] = mapped_column(String(1024), index=True)
    name: Mapped[str] = mapped_column(Text)
    label: Mapped[str] = mapped_column(Text, server_default=text("''"))
    catalogue: Mapped[dict[str, Any]]
    saved: Mapped[datetime]


class ProfileRow(Deletable, Base):
    """A sensitivity profile without its measurements."""

    __tablename__ = "sensitivity_profiles"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(Text)
    method: Mapped[str] = mapped_column(String(32))
    around: Mapped[dict[str, Any]] = mapped_column(JSON, server_default="{}")
    dtype: Mapped[str] = mapped_column(String(16))
    calibration: Mapped[dict[str, Any]]
    baseline: Mapped[dict[str, Any]]
    provenance: Mapped[dict[str, Any]]
    schema_version: Mapped[int]
    created: Mapped[datetime]


class MeasurementRow(Base):
    """One layer in one format; `id` keeps the order in which they were measured."""

    __tablename__ = "measurements"
    __table_args__ = (UniqueConstraint("profile_id", "layer", "format"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    profile_id: Mapped[str] = mapped_column(ForeignKey("sensitivity_profiles.id", ondelete="CASCADE"))
    layer: Mapped[str] = mapped_column(String(512))
    format: Mapped[str] = mapped_column(String(32))
    delta_nll: Mapped[float]
    delta_nll_stderr: Mapped[float]
    kl: Mapped[float]
    kl_stderr: Mapped[float]
    tokens: Mapped[int]
    delta_nll_by_sequence: Mapped[list[float]] = mapped_column(JSON)
    method: Mapped[str] = mapped_column(String(32))
    seconds: Mapped[float]
    projections: Mapped[str] = mapped_column(Text, server_default=text("''"))


class PlanRow(Deletable, Base):
    """A plan as a document, with the columns that a list of plans shows; `profile_id` is empty for a foreign plan."""

    __tablename__ = "plans"

    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    profile_id: Mapped[str | None] = mapped_column(
        ForeignKey("sensitivity_profiles.id", ondelete="CASCADE"), index=True
    )
    name: Mapped[str] = mapped_column(Text)
    model_name: Mapped[str] = mapped_column(Text)
    hardware: Mapped[str] = mapped_column(Text)
    engine: Mapped[str] = mapped_column(Text)
    decided_bits: Mapped[float]
    total_bytes: Mapped[int] = mapped_column(BigInteger)
    perplexity: Mapped[float]
    formats: Mapped[dict[str, Any]] = mapped_column(JSON, server_default="{}")
    refined: Mapped[bool] = mapped_column(server_default=false())
    document: Mapped[dict[str, Any]]
    created: Mapped[datetime]


class EvaluationRow(Deletable, Base):
    """One variant measured on held-out text, under the plan it belongs to, if any."""

    __tablename__ = "evaluations"

    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    plan_id: Mapped[str | None] = mapped_column(ForeignKey("plans.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(Text, server_default=text("''"))
    document: Mapped[dict[str, Any]]
    created: Mapped[datetime]


class BlindTestRow(Deletable, Base):
    """Prompts that the original and a plan were asked; `shuffle` draws the sides, `revealed` ends the voting."""

    __tablename__ = "blind_tests"

    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.id", ondelete="CASCADE"), index=True)
    request: Mapped[dict[str, Any]]
    prompts: Mapped[int]
    shuffle: Mapped[str] = mapped_column(String(32))
    created: Mapped[datetime]
    revealed: Mapped[datetime | None]


class AnswerRow(Base):
    """What a variant says to one prompt of a blind test; `key` finds the same answer for other tests."""

    __tablename__ = "answers"
    __table_args__ = (UniqueConstraint("test_id", "number", "variant"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    test_id: Mapped[str] = mapped_column(ForeignKey("blind_tests.id", ondelete="CASCADE"))
    number: Mapped[int]
    variant: Mapped[str] = mapped_column(String(16))
    key: Mapped[str] = mapped_column(String(64), index=True)
    text: Mapped[str] = mapped_column(Text)
    cut: Mapped[bool]
    seconds: Mapped[float]


class VoteRow(Base):
    """What a rater prefers of one pair; `id` keeps the order of the votes."""

    __tablename__ = "votes"
    __table_args__ = (UniqueConstraint("test_id", "number", "rater"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    test_id: Mapped[str] = mapped_column(ForeignKey("blind_tests.id", ondelete="CASCADE"))
    number: Mapped[int]
    rater: Mapped[str] = mapped_column(Text)
    choice: Mapped[str] = mapped_column(String(16))
    plan_left: Mapped[bool]
    created: Mapped[datetime]


class JobRow(Deletable, Base):
    """A long piece of work; `number` is its place in the queue."""

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "status", "number"),)

    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    kind: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(16))
    params: Mapped[dict[str, Any]]
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[str] = mapped_column(Text)
    log_tail: Mapped[str] = mapped_column(Text)
    pid: Mapped[int | None]
    host: Mapped[str] = mapped_column(Text)
    cancel_requested: Mapped[bool]
    created: Mapped[datetime]
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    heartbeat: Mapped[datetime | None]
