"""Short sessions over one engine: reading, or writing all or nothing; what every query in this room runs in."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, TimeoutError
from sqlalchemy.orm import Session

from advisor.errors import StorageError
from advisor.types import wrong_field
from storage.failures import storage_error

N = TypeVar("N", bound=BaseModel)


class Sessions:
    """Opens and closes the sessions of one database; safe to share between threads."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._writer = engine.execution_options(immediate=True)

    @property
    def url(self) -> str:
        """The full address, password included: for the environment of a job's process, not for showing."""
        return self._engine.url.render_as_string(hide_password=False)

    @property
    def address(self) -> str:
        """The address as it may be shown, without its password."""
        return self._engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Give back every connection; the next call opens new ones."""
        self._engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with self._explained(), Session(self._engine) as session:
            yield session

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        """One transaction: committed at the end of the block, rolled back when anything in it fails."""
        with self._explained(), Session(self._writer) as session, session.begin():
            yield session

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, TimeoutError) as error:
            raise storage_error(error, self.address) from error


def new_id() -> str:
    """A fresh random identifier of 12 hexadecimal digits."""
    return uuid.uuid4().hex[:12]


def to_document(noun: BaseModel) -> dict[str, Any]:
    """`noun` as plain JSON values."""
    return noun.model_dump(mode="json")


def from_document(kind: type[N], document: dict[str, Any]) -> N:
    """The noun that a stored document holds.

    Raises:
        StorageError: it is damaged, or another version of the program wrote it; the message has the field's path.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()
        raise StorageError(
            f"A stored {words} has a wrong field, {wrong_field(error)}. It is damaged, or another version wrote it: "
            "delete it and make it again."
        ) from error
