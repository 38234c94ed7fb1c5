"""Turns a database driver's errors into one sentence that says what to do; used by everything in this room."""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from advisor.errors import StorageError

ELSEWHERE = "or set ADVISOR_DATABASE_URL to another place"

# What drivers say (lower case) -> what a person can do; the first match counts.
_SENTENCES = (
    (
        ("disk is full", "no space left", "disk full"),
        "The disk is full, so nothing was saved; free some space and retry.",
    ),
    (
        ("database is locked", "table is locked", "lock timeout", "deadlock"),
        "Another program holds the database {where}, so nothing was saved; close it or try again in a moment.",
    ),
    (
        ("readonly", "read-only", "permission denied"),
        f"The database {{where}} cannot be written to; allow this user to write there, {ELSEWHERE}.",
    ),
    (
        ("unable to open",),
        f"The database {{where}} cannot be opened; check that its folder exists and can be written to, {ELSEWHERE}.",
    ),
    (
        ("not a database", "malformed"),
        f"The file at {{where}} is not a readable database; restore or remove it, {ELSEWHERE}.",
    ),
    (("disk i/o error",), f"The disk failed while using the database {{where}}; check the disk, {ELSEWHERE}."),
)


def storage_error(error: SQLAlchemyError, where: str) -> StorageError:
    """The sentence for `error`; `where` is the database's address without its password."""
    original = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
    if isinstance(error, IntegrityError):
        return StorageError(_refused(original))
    lowered = original.lower()
    for phrases, sentence in _SENTENCES:
        if any(phrase in lowered for phrase in phrases):
            return StorageError(sentence.format(where=where))
    first_line = original.splitlines()[0].rstrip(".")
    return StorageError(f"The database {where} failed ({first_line}); check that it can be reached, then try again.")


def _refused(original: str) -> str:
    if "foreign key" in original.lower():
        return "What this belongs to is no longer stored, so nothing was saved; reload the page and choose again."
    first_line = original.splitlines()[0].rstrip(".")
    return f"The database refused the entry ({first_line}), so nothing was saved; reload and try again."
