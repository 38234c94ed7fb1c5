"""Fixtures that several rooms' tests share; every test gets a data folder of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Where tests run beside one another, each process keeps to one core, and the processes that it starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from advisor import jobs, paths
from advisor.errors import ModelError
from storage.engine import open_repository
from storage.repository import Repository
from tests.databases import BOTH, emptied, postgresql_cluster
from tests.job_bench import Bench

REPOSITORY = Path(__file__).parents[1]
ON_BOTH_DATABASES = ("test_storage", "test_stored_jobs", "test_deletions", "test_many_people")


def pytest_generate_tests(metafunc):
    """Tests of storage run on SQLite, and on PostgreSQL where its server is found."""
    if "url" in metafunc.fixturenames and metafunc.module.__name__.rpartition(".")[2] in ON_BOTH_DATABASES:
        metafunc.parametrize("url", BOTH, indirect=True)


@pytest.fixture(scope="session")
def demo_models_dir() -> Path:
    """The models folder with the demo model in it, fetched by the product's own way and kept between runs."""
    from advisor.demo import demo_gguf

    folder = paths.models_dir()
    try:
        demo_gguf(lambda progress: None)
    except ModelError as error:
        # In CI the road must be walked; elsewhere a missing network is a reason to skip, a wrong file never is.
        if os.environ.get("CI") or "could not be fetched" not in str(error):
            raise
        pytest.skip(str(error))
    return folder


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch, request) -> Path:
    """No test reads or writes the user's own data; fetched models alone are shared."""
    folder = tmp_path / "advisor-home"
    monkeypatch.setenv("ADVISOR_MODELS", str(request.getfixturevalue("shared_models")))
    monkeypatch.setenv("ADVISOR_HOME", str(folder))
    monkeypatch.delenv("ADVISOR_DATABASE_URL", raising=False)
    return folder


@pytest.fixture(scope="session")
def shared_models() -> Path:
    return paths.models_dir()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    with postgresql_cluster() as address:
        yield address


@pytest.fixture
def url(tmp_path, request) -> str:
    """The address of a database without rows: a SQLite file that is not there yet, or one in the tests' cluster."""
    if getattr(request, "param", "sqlite") == "postgresql":
        return emptied(request.getfixturevalue("postgresql"))
    return f"sqlite:///{tmp_path / 'advisor.db'}"


@pytest.fixture
def store(url) -> Iterator[Repository]:
    """An empty database, closed after the test."""
    repository = open_repository(url)
    yield repository
    repository.close()


@pytest.fixture
def bench(tmp_path, url) -> Iterator[Bench]:
    """Real jobs over a database of their own; what still runs after the test is ended."""
    bench = Bench(tmp_path, url)
    yield bench
    for job in bench.store.jobs(active_only=True):
        jobs.cancel(bench.store, job.id, force=True)
    bench.store.close()


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs a command; returns exit status, standard output, standard error."""
    from advisor.cli import commands

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["advisor", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            commands.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return command


@pytest.fixture
def own_tables(tmp_path, monkeypatch):
    """Writes one file of a folder of own tables that ADVISOR_PROFILES names, and returns how."""

    def write(relative: str, text: str) -> Path:
        file = tmp_path / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    monkeypatch.setenv("ADVISOR_PROFILES", str(tmp_path))
    return write


@pytest.fixture
def submitted(monkeypatch) -> list[tuple[str, dict[str, Any]]]:
    """What pages ask to be run, kind and parameters; nothing is."""
    asked = []

    def submit(store, kind, request, **_):
        params = request if isinstance(request, dict) else request.model_dump(mode="json")
        asked.append((kind, params))
        return store.create_job(kind, params)

    monkeypatch.setattr(jobs, "submit", submit)
    monkeypatch.setattr(jobs, "reap", lambda store, **_: [])
    return asked
