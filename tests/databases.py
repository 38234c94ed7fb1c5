"""A PostgreSQL cluster for the tests that run on both databases: one a session, emptied for each test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from storage.engine import open_repository
from storage.tables import Base

BOTH = ("sqlite", "postgresql")
_INITDB = ("--auth=trust", "--username=advisor", "--encoding=UTF8", "--locale=C", "--no-sync")
# Nothing in it has to survive the tests, so nothing waits for the disk.
_SETTINGS = "-c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c full_page_writes=off"


@contextmanager
def postgresql_cluster() -> Iterator[str]:
    """A running cluster of its own on a free port of this machine; yields its database's address."""
    pytest.importorskip("psycopg", reason="psycopg, PostgreSQL's driver, is not installed")
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server: initdb was found neither on the PATH nor in /usr/lib/postgresql")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Not below pytest's own folder, which an account other than root's may not enter.
    with tempfile.TemporaryDirectory() as home:
        account = _account()
        if account:
            shutil.chown(home, *account)
        data = f"{home}/data"

        def call(program: str, *arguments: str) -> None:
            command = [str(programs / program), "-D", data, *arguments]
            user, group = account or (None, None)
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.run(command, cwd=home, user=user, group=group, check=True, timeout=60, **quiet)

        call("initdb", *_INITDB)
        call("pg_ctl", "-w", "-l", f"{home}/log", "-o", f"-p {port} {_SETTINGS}", "start")
        try:
            yield f"postgresql+psycopg://advisor@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-w", "-m", "immediate", "stop")


def emptied(address: str) -> str:
    """The address again, of the same database with all tables and no rows."""
    store = open_repository(address)
    tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
    with store._engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
    store.close()
    return address


def _programs() -> Path | None:
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def _account() -> tuple[str, str] | None:
    """Whom to run the server as, user and group: it refuses root, for whom Debian's package makes an account."""
    return ("postgres", "postgres") if os.geteuid() == 0 else None
