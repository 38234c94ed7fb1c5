"""What can go wrong with a database: a sentence each, and nothing half written."""

import json
import sqlite3
import sys

import pytest
from sqlalchemy import event, text

from advisor.documents import check_profile_document
from advisor.errors import PlanError, StorageError
from storage.engine import open_repository
from tests.stored_nouns import count_rows, make_catalogue, make_evaluation, make_header, make_measurement, make_plan


def test_a_full_disk_is_a_sentence_and_nothing_is_half_written(store):
    store.open_profile(make_header())
    store.add_measurements("p1", [make_measurement("before")])

    @event.listens_for(store._engine, "connect")
    def _small_disk(connection, _record):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 10}")

    store.close()
    batch = [make_measurement(f"layer {number}", sequences=(0.1,) * 100) for number in range(500)]
    with pytest.raises(StorageError, match="disk is full, so nothing was saved; free some space"):
        store.add_measurements("p1", batch)
    assert [m.layer for m in store.profile("p1").measurements] == ["before"]
    store.add_measurements("p1", [make_measurement()])
    assert len(store.profile("p1").measurements) == 2


def test_readers_go_on_while_another_program_writes_and_writers_say_who_blocks_them(url, store, tmp_path):
    store.open_profile(make_header())
    impatient = open_repository(url, busy_seconds=0.05)
    other = sqlite3.connect(tmp_path / "advisor.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        assert len(impatient.profiles()) == 1
        with pytest.raises(StorageError, match="Another program holds the database .*advisor.db.*try again"):
            impatient.add_measurements("p1", [make_measurement()])
    finally:
        other.execute("ROLLBACK")
        other.close()
    impatient.add_measurements("p1", [make_measurement()])
    impatient.close()


def test_a_database_that_may_only_be_read_is_read_and_refuses_to_save_in_a_sentence(store, tmp_path):
    store.save_catalogue(make_catalogue())
    reader = open_repository(f"sqlite:///file:{tmp_path / 'advisor.db'}?mode=ro&uri=true")
    assert reader.catalogue_for_source("smollm2") == make_catalogue()
    with pytest.raises(StorageError, match="cannot be written to; allow this user"):
        reader.save_plan(make_plan(), None)
    reader.close()


def test_saving_under_something_that_was_deleted_is_refused_in_a_sentence(store):
    for save in (
        lambda: store.save_plan(make_plan(), "gone"),
        lambda: store.save_evaluation(make_evaluation(), plan_id="gone"),
        lambda: store.add_measurements("gone", [make_measurement()]),
    ):
        with pytest.raises(StorageError, match="no longer stored"):
            save()
    assert [count_rows(store, table) for table in ("plans", "evaluations", "measurements")] == [0, 0, 0]


def test_an_unusable_database_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("words, and not a database " * 100)
    for address, sentence in {
        f"sqlite:///{tmp_path}/file/advisor.db": "folder .* cannot be created",
        f"sqlite:///{tmp_path}/file": "not a readable database",
        f"sqlite:///{tmp_path}": "cannot be opened",
        "not an address": "cannot be read; write it like",
        "nosuchdatabase://host/name": "No driver",
    }.items():
        with pytest.raises(StorageError, match=sentence):
            open_repository(address)


def test_a_missing_driver_of_postgresql_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as if it were not installed
    for scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        with pytest.raises(StorageError, match=r'No driver for .*; install it with `pip install "psycopg\[binary\]"`'):
            open_repository(f"{scheme}://somebody@127.0.0.1:1/name")


def test_no_message_shows_the_password():
    with pytest.raises(StorageError) as refusal:
        open_repository("nosuchdatabase://me:secret@host/name")
    assert "secret" not in str(refusal.value)


def test_a_document_of_another_version_is_refused_in_a_sentence(store):
    plan_id = store.save_plan(make_plan(), None)
    with store._engine.begin() as connection:
        connection.execute(text("""UPDATE plans SET document = '{"schema_version": 99}'"""))
    with pytest.raises(StorageError, match=r"^A stored plan has a wrong field, schema_version: .* make it again\.$"):
        store.plan(plan_id)


def test_a_stored_profile_that_is_damaged_is_refused_with_what_its_file_would_be_refused_with(store):
    profile = store.open_profile(make_header(measurements=(make_measurement(),)))
    with store._engine.begin() as connection:
        connection.execute(text("UPDATE measurements SET kl_stderr = -0.5"))
    damaged = profile.model_dump(mode="json")
    damaged["measurements"][0]["kl_stderr"] = -0.5
    with pytest.raises(PlanError, match="has a wrong field") as of_a_file:
        check_profile_document(json.dumps(damaged))
    said = str(of_a_file.value).removeprefix("This").removesuffix("Profile the model again.")
    assert "measurements.0 (a in int8): a standard error is negative" in said
    with pytest.raises(StorageError) as of_the_database:
        store.profile(profile.id)
    assert str(of_the_database.value).startswith(f"A stored{said}")
