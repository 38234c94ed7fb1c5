"""Opening a database: migrations make the tables, at once from many processes, with safeguards on."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from advisor.errors import StorageError
from storage.engine import alembic_config, open_repository
from storage.tables import HEAD_REVISION, Base

ROOT = Path(__file__).resolve().parent.parent


def test_the_migrations_make_exactly_the_tables_that_the_code_declares(store):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_head_revision_in_the_code_is_the_newest_migration(store):
    from alembic.script import ScriptDirectory

    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [HEAD_REVISION]


def test_migrations_can_be_undone_to_an_empty_database(store):
    from alembic import command

    config = alembic_config()
    with store._engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        left = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'")).scalars().all()
    assert left == ["alembic_version"]


@pytest.mark.parametrize(
    "kind, before, after",
    [
        ("profile", r"layers\.0\.|mlp", r".*(?:layers\.0\.|mlp).*"),
        ("preview", "(?i)MLP", "(?i).*(?:MLP).*"),
        ("profile", "", ""),
        ("inspect", "mlp", "mlp"),
    ],
)
def test_jobs_of_earlier_versions_measure_the_layers_that_their_expression_was_found_in(store, kind, before, after):
    from alembic import command

    job, config = store.create_job(kind, {"layers": before, "samples": 3}), alembic_config()
    with store._engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0004")
        command.upgrade(config, "head")
    assert store.job(job.id).params == {"layers": after, "samples": 3}


def test_opening_an_up_to_date_database_loads_neither_torch_nor_alembic(url, store):
    code = f"import sys; from storage.engine import open_repository; open_repository({url!r}).profiles()"
    code += "; sys.exit(str(sorted({'torch', 'transformers', 'alembic', 'streamlit'} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_a_database_of_a_newer_version_is_left_alone(url, store):
    with store._engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match="another version of this program .*; update the program"):
        open_repository(url)


def test_processes_and_threads_that_start_at_once_all_open_the_same_new_database(tmp_path):
    url, signal = f"sqlite:///{tmp_path / 'folder' / 'new.db'}", tmp_path / "go"
    code = f"""
import pathlib, time
from storage.engine import open_repository
pathlib.Path({str(tmp_path)!r}, f"ready-{{time.time_ns()}}").touch()
while not pathlib.Path({str(signal)!r}).exists():
    time.sleep(0.001)
open_repository({url!r}).create_job("profile", {{}})
"""
    children = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("ready-*"))) < len(children) and time.monotonic() < deadline:
        time.sleep(0.01)
    signal.touch()
    failures = []

    def open_and_write():
        try:
            open_repository(url).create_job("profile", {})
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=open_and_write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [child.wait(timeout=30) for child in children] == [0, 0]
    assert failures == []
    assert len(open_repository(url).jobs()) == 6


def test_sqlite_is_opened_with_its_safeguards_on(store):
    with store._engine.connect() as connection:
        settings = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        ]
    assert settings == ["wal", 1, 15000]


def test_a_relative_address_means_the_same_file_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_repository("sqlite:///here.db")
    assert store.url == f"sqlite:///{tmp_path}/here.db"
    assert (tmp_path / "here.db").exists()


def test_the_address_is_taken_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVISOR_DATABASE_URL", f"sqlite:///{tmp_path}/from-environment.db")
    open_repository().close()
    assert (tmp_path / "from-environment.db").exists()
