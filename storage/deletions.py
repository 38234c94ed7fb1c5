"""Deletions: what is deleted is hidden at once with all that was made from it, comes back by undo, and goes later."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from sqlalchemy import ColumnElement, Select, Update, delete, or_, select, union_all, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from advisor.errors import StorageError
from advisor.types import DELETED_DAYS, DeletedKind, Deletion, JobStatus, now
from storage.sessions import Sessions, new_id
from storage.tables import (
    BlindTestRow,
    Deletable,
    DeletionRow,
    EvaluationRow,
    JobRow,
    ModelRow,
    PlanRow,
    ProfileRow,
)

_IDS: dict[DeletedKind, InstrumentedAttribute] = {
    "model": ModelRow.id,
    "profile": ProfileRow.id,
    "plan": PlanRow.id,
    "evaluation": EvaluationRow.id,
    "blind test": BlindTestRow.id,
    "job": JobRow.id,
}
_TABLES: dict[DeletedKind, type[Deletable]] = {kind: column.class_ for kind, column in _IDS.items()}
# Kind, what its rows point to, and as which kind; parents before their children.
_MADE_FROM: tuple[tuple[DeletedKind, InstrumentedAttribute, DeletedKind], ...] = (
    ("profile", ProfileRow.model_id, "model"),
    ("plan", PlanRow.profile_id, "profile"),
    ("evaluation", EvaluationRow.plan_id, "plan"),
    ("blind test", BlindTestRow.plan_id, "plan"),
)
_ENDED = tuple(status.value for status in JobStatus if status.ended)


class Deletions(Sessions):
    """Queries of the table `deletions`, and of the column `deletion_id` that hides rows of the other tables."""

    def delete(self, kind: DeletedKind, identifier: str | int, label: str = "") -> str:
        """Hide one stored thing and all that was made from it; returns the deletion's id, which undoes it.

        What was deleted long enough ago goes for good on this occasion.

        Args:
            label: what people call it, for the list of deletions.

        Raises:
            StorageError: there is no such thing, or it is a job that has not ended.
        """
        deletion_id, table, column = new_id(), _TABLES[kind], _IDS[kind]
        chosen = update(table).where(column == identifier, kept(table))
        with self._writing() as session:
            if kind == "job":
                chosen = chosen.where(JobRow.status.in_(_ENDED))
            if not _hide(session, chosen, deletion_id):
                unended = "; a job has to be stopped first" if kind == "job" else ""
                raise StorageError(f"There is no such {kind} to delete any more{unended}: reload the page.")
            hidden = {child: _hide_children(session, child, deletion_id) for child, _, _ in _MADE_FROM}
            also = {child: count for child, count in hidden.items() if count}
            name = label or str(identifier)
            session.add(DeletionRow(id=deletion_id, kind=kind, label=name, also=also, created=now()))
            session.flush()
            _purge(session, DeletionRow.created < now() - timedelta(days=DELETED_DAYS))
        return deletion_id

    def made_from(self, kind: DeletedKind, identifiers: Iterable[str | int]) -> dict[DeletedKind, list[str | int]]:
        """The ids, by kind, of what deleting these things would hide with them: all that was made from them."""
        made: dict[DeletedKind, Select] = {kind: select(_IDS[kind]).where(_IDS[kind].in_(list(identifiers)))}
        for child, reference, parent in _MADE_FROM:
            if parent in made:
                made[child] = select(_IDS[child]).where(kept(_TABLES[child]), reference.in_(made[parent]))
        with self._reading() as session:
            found = {child: list(session.scalars(query)) for child, query in made.items() if child != kind}
        return {child: ids for child, ids in found.items() if ids}

    def undelete(self, deletion_id: str) -> None:
        """Bring back what this deletion hid, and nothing else.

        Raises:
            StorageError: it is gone for good, or belongs to something that was deleted, too.
        """
        with self._writing() as session:
            if session.scalar(select(DeletionRow.id).where(DeletionRow.id == deletion_id)) is None:
                raise StorageError("This was deleted for good meanwhile, and cannot be brought back.")
            for child, reference, parent in _MADE_FROM:
                hidden = select(_IDS[parent]).where(_TABLES[parent].deletion_id != deletion_id)
                orphans = _TABLES[child].deletion_id == deletion_id, reference.in_(hidden)
                if session.scalar(select(_IDS[child]).where(*orphans).limit(1)) is not None:
                    raise StorageError(f"The {parent} that this {child} belongs to is deleted, too: undo that first.")
            for table in _TABLES.values():
                session.execute(update(table).where(table.deletion_id == deletion_id).values(deletion_id=None))
            forget_undone(session)

    def deletions(self) -> list[Deletion]:
        """What can still be brought back, newest first."""
        fields = [getattr(DeletionRow, name) for name in Deletion.model_fields]
        with self._reading() as session:
            rows = session.execute(select(*fields).order_by(DeletionRow.number.desc()))
            return [Deletion(**row._mapping) for row in rows]

    def purge(self, deletion_id: str | None = None) -> None:
        """Delete for good what one deletion hid, or what all did."""
        with self._writing() as session:
            _purge(session, DeletionRow.id == deletion_id if deletion_id else DeletionRow.id.is_not(None))

    def purge_expired(self) -> None:
        """Delete for good what was deleted long enough ago; only reads where there is nothing of that age."""
        expired = DeletionRow.created < now() - timedelta(days=DELETED_DAYS)
        with self._reading() as session:
            if session.scalar(select(DeletionRow.id).where(expired).limit(1)) is None:
                return
        with self._writing() as session:
            _purge(session, expired)


def kept(table: type[Deletable]) -> ColumnElement[bool]:
    """The condition that a row was not deleted."""
    return table.deletion_id.is_(None)


def deletion_of(session: Session, kind: DeletedKind, identifier: str | None) -> str | None:
    """Which deletion hides this; what is added to something deleted is hidden with it."""
    if identifier is None:
        return None
    return session.scalar(select(_TABLES[kind].deletion_id).where(_IDS[kind] == identifier))


def forget_undone(session: Session) -> None:
    """Drop the deletions that hide nothing any more."""
    session.flush()
    hidden = union_all(*(select(t.deletion_id).where(t.deletion_id.is_not(None)) for t in _TABLES.values()))
    session.execute(delete(DeletionRow).where(DeletionRow.id.not_in(hidden)))


def _hide_children(session: Session, child: DeletedKind, deletion_id: str) -> int:
    """Hide the rows of this kind that were made from what the deletion hides already; returns how many."""
    parents = [
        reference.in_(select(_IDS[parent]).where(_TABLES[parent].deletion_id == deletion_id))
        for kind, reference, parent in _MADE_FROM
        if kind == child
    ]
    table = _TABLES[child]
    return _hide(session, update(table).where(kept(table), or_(*parents)), deletion_id)


def _hide(session: Session, chosen: Update, deletion_id: str) -> int:
    marked = chosen.values(deletion_id=deletion_id)
    return session.execute(marked, execution_options={"synchronize_session": False}).rowcount


def _purge(session: Session, which: ColumnElement[bool]) -> None:
    gone = select(DeletionRow.id).where(which)
    for table in reversed(_TABLES.values()):
        session.execute(delete(table.__table__).where(table.__table__.c.deletion_id.in_(gone)))
    session.execute(delete(DeletionRow).where(which))
    forget_undone(session)  # what hid a part of what went now
