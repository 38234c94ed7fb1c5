"""Opens the database: connection settings, migration to the newest schema, and the repository over it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError, SQLAlchemyError

from advisor.errors import StorageError
from storage.failures import ELSEWHERE, storage_error
from storage.repository import Repository
from storage.tables import HEAD_REVISION

MIGRATIONS = Path(__file__).resolve().parent / "migrations"
# Any fixed number: writers of the same PostgreSQL database wait for each other on it.
_ADVISORY_LOCK = 7_216_534
# Alembic keeps its current operation in module globals, so the threads of one process take turns.
_MIGRATION_TURN = threading.Lock()
_PSYCOPG = "postgresql+psycopg"
_DRIVERS = {_PSYCOPG: 'it with `pip install "psycopg[binary]"`'}


def open_repository(url: str | None = None, busy_seconds: float = 15.0) -> Repository:
    """The repository over the database at `url`, created and migrated to the newest schema where needed.

    Args:
        url: an SQLAlchemy address; None takes ADVISOR_DATABASE_URL.
        busy_seconds: how long a writer waits for another before it gives up.

    Raises:
        StorageError: the address is wrong, or the database cannot be opened, written or understood.
    """
    address = _parse(url or os.environ.get("ADVISOR_DATABASE_URL", ""))
    engine = make_engine(address, busy_seconds)
    where = address.render_as_string(hide_password=True)
    try:
        migrate(engine)
    except SQLAlchemyError as error:
        engine.dispose()
        raise storage_error(error, where) from error
    except StorageError:
        engine.dispose()
        raise
    return Repository(engine)


def make_engine(address: URL, busy_seconds: float = 15.0) -> Engine:
    """An engine with the settings that the repository counts on; nothing is opened yet."""
    sqlite = address.get_backend_name() == "sqlite"
    where = address.render_as_string(hide_password=True)
    if sqlite:
        _make_folder(address)
    try:
        # A server may have closed an idle connection; a SQLite file has not.
        engine = create_engine(address, pool_pre_ping=not sqlite)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        what = _DRIVERS.get(address.drivername, "it with pip")
        raise StorageError(f"No driver for {where} is installed ({error}); install {what}, {ELSEWHERE}.") from error
    if sqlite:
        _configure_sqlite(engine, busy_seconds)
    elif engine.dialect.name == "postgresql":
        _configure_postgresql(engine, busy_seconds)
    return engine


def migrate(engine: Engine) -> None:
    """Bring the schema to head; safe when several processes or threads do it at once, and one query when at head.

    Raises:
        StorageError: the database was written by a newer version.
    """
    with engine.connect() as connection:
        revision = _revision(connection)
    if revision == HEAD_REVISION:
        return
    with _MIGRATION_TURN:
        if engine.dialect.name == "sqlite":
            _use_wal(engine)
        with engine.execution_options(immediate=True).begin() as connection:
            if _revision(connection) != HEAD_REVISION:  # another process may have been first
                _upgrade(connection)


def alembic_config() -> Any:
    """Alembic's configuration for this package's migrations, without an ini file."""
    from alembic.config import Config  # a slow import, needed only where there is something to migrate

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.util import CommandError

    config = alembic_config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StorageError(
            f"The database was written by another version of this program ({error}); update the program, {ELSEWHERE}."
        ) from error


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _parse(url: str) -> URL:
    try:
        address = make_url(url)
    except ArgumentError as error:
        raise StorageError(
            "The database address in ADVISOR_DATABASE_URL cannot be read; write it like sqlite:////folder/advisor.db "
            "or postgresql+psycopg://user:password@host/name."
        ) from error
    if address.drivername in ("postgres", "postgresql"):  # as hosts of databases and psql write it
        return address.set(drivername=_PSYCOPG)
    if _is_file(address):
        # Absolute, because a job's process has another working directory.
        return address.set(database=str(Path(address.database or "").expanduser().resolve()))
    return address


def _is_file(address: URL) -> bool:
    name = address.database or ""
    return address.get_backend_name() == "sqlite" and name not in ("", ":memory:") and not name.startswith("file:")


def _make_folder(address: URL) -> None:
    if not _is_file(address):
        return
    folder = Path(address.database or "").parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The folder {folder} cannot be created ({error.strerror}); check its path and permissions, {ELSEWHERE}."
        ) from error


def _configure_sqlite(engine: Engine, busy_seconds: float) -> None:
    @event.listens_for(engine, "connect")
    def _settings(connection: Any, _record: Any) -> None:
        # Python's own transaction handling would commit before DDL; BEGIN is sent below instead.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {int(busy_seconds * 1000)}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = NORMAL")  # safe with WAL: a power cut loses no consistency

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A writer takes its lock at once: a reader that turns writer half-way is refused without waiting.
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _configure_postgresql(engine: Engine, busy_seconds: float) -> None:
    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # One writer at a time, as in SQLite: what a transaction looked at is still so when it writes. Otherwise two
        # could each start a job, or store the same layer's score.
        if connection.get_execution_options().get("immediate", False):
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(busy_seconds * 1000)}")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")


def _use_wal(engine: Engine, patience_seconds: float = 15.0) -> None:
    """Switch the file to write-ahead logging, so that pages read while a job writes; the file remembers it."""
    deadline = time.monotonic() + patience_seconds
    while True:
        raw = engine.raw_connection()
        try:
            raw.cursor().execute("PRAGMA journal_mode = WAL")
            return
        except Exception as error:
            # This switch does not honour busy_timeout when two processes attempt it at the same moment.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise OperationalError("PRAGMA journal_mode", {}, error) from error
            time.sleep(0.02)
        finally:
            raw.close()
