"""Deleting: hidden at once with all that was made from it, back by undo, gone for good later."""

from datetime import timedelta

import pytest
from sqlalchemy import inspect

from advisor.errors import StorageError
from advisor.types import DELETED_DAYS, AnswersRequest, JobStatus, now
from storage.engine import alembic_config, open_repository
from tests.stored_nouns import (
    Statements,
    count_rows,
    make_catalogue,
    make_evaluation,
    make_header,
    make_measurement,
    make_plan,
)

TABLES = ("models", "sensitivity_profiles", "measurements", "plans", "evaluations", "blind_tests", "deletions")


@pytest.fixture
def full(store):
    """A store with two profiles of one model; the first has a plan with an evaluation and a blind test."""
    store.save_catalogue(make_catalogue())
    for profile_id in ("p1", "p2"):
        store.open_profile(make_header(profile_id, (make_measurement(),)))
    plan_id = store.save_plan(make_plan(), "p1", "mine")
    store.save_evaluation(make_evaluation(), plan_id)
    store.open_blind_test(AnswersRequest(plan_id=plan_id, prompts=("one?",)))
    return store


def listed(store):
    """How many of each are seen."""
    found = store.models(), store.profiles(), store.plans(), store.stored_evaluations(), store.blind_tests()
    return [len(one) for one in found]


def counted(store):
    return [count_rows(store, table) for table in TABLES]


def test_deleting_hides_what_was_made_from_it_and_undo_brings_it_back(full):
    before, plan_id = counted(full), full.plans()[0].id
    deletion = full.delete("profile", "p1", "the first")
    assert listed(full) == [1, 1, 0, 0, 0]
    assert full.profile("p1") is None and full.plan(plan_id) is None and full.evaluations(plan_id) == []
    assert full.find_plan(make_plan()) is None
    (found,) = full.deletions()
    assert (found.id, found.kind, found.label) == (deletion, "profile", "the first")
    assert found.also == {"plan": 1, "evaluation": 1, "blind test": 1}
    full.undelete(deletion)
    assert listed(full) == [1, 2, 1, 1, 1] and full.deletions() == [] and counted(full) == before
    assert full.plan(plan_id) == make_plan()


def test_what_would_go_with_it_is_what_goes_with_it(full):
    kept = full.save_plan(make_plan(), "p2")
    full.delete("evaluation", full.stored_evaluations()[0].id)  # what is deleted already goes with nothing
    made = full.made_from("profile", ["p1"])
    full.delete("profile", "p1")
    assert {kind: len(ids) for kind, ids in made.items()} == full.deletions()[0].also == {"plan": 1, "blind test": 1}
    assert full.made_from("profile", ["p2"]) == {"plan": [kept]}


def test_deleting_a_model_hides_everything_of_it(full):
    full.save_catalogue(make_catalogue(source="/elsewhere", fingerprint="e" * 64))
    (model,) = [one for one in full.models() if one.source == "smollm2"]
    deletion = full.delete("model", model.id)
    assert listed(full) == [1, 0, 0, 0, 0] and full.catalogue_for_source("smollm2") is None
    full.undelete(deletion)
    assert listed(full) == [2, 2, 1, 1, 1]


def test_undo_brings_back_only_what_its_own_deletion_hid(full):
    (evaluation,) = full.stored_evaluations()
    earlier = full.delete("evaluation", evaluation.id)
    later = full.delete("plan", full.plans()[0].id)
    with pytest.raises(StorageError, match="plan that this evaluation belongs to is deleted, too"):
        full.undelete(earlier)
    full.undelete(later)
    assert listed(full) == [1, 2, 1, 0, 1]
    full.undelete(earlier)
    assert listed(full) == [1, 2, 1, 1, 1]


def test_purging_deletes_for_good_and_nothing_else(full):
    earlier = full.delete("evaluation", full.stored_evaluations()[0].id)
    deletion = full.delete("profile", "p1")
    full.purge(deletion)
    assert counted(full) == [1, 1, 1, 0, 0, 0, 0]  # the evaluation's own deletion has nothing left to bring back
    assert [p.id for p in full.profiles()] == ["p2"]
    for gone in (earlier, deletion):
        with pytest.raises(StorageError, match="deleted for good"):
            full.undelete(gone)


def test_what_was_deleted_long_enough_ago_goes_by_itself(full, monkeypatch):
    full.delete("plan", full.plans()[0].id)
    monkeypatch.setattr("storage.deletions.now", lambda: now() + timedelta(days=DELETED_DAYS - 1))
    full.purge_expired()
    assert len(full.deletions()) == 1
    monkeypatch.setattr("storage.deletions.now", lambda: now() + timedelta(days=DELETED_DAYS, minutes=1))
    full.purge_expired()
    assert full.deletions() == [] and count_rows(full, "plans") == 0
    with Statements(full) as statements:
        full.purge_expired()
    assert len(statements) == 1  # nothing is written where nothing is old enough


def test_an_old_deletion_goes_with_the_next_one(full, monkeypatch):
    full.delete("plan", full.plans()[0].id)
    monkeypatch.setattr("storage.deletions.now", lambda: now() + timedelta(days=DELETED_DAYS + 1))
    full.delete("profile", "p2")
    assert [one.kind for one in full.deletions()] == ["profile"] and count_rows(full, "plans") == 0


def test_measuring_a_deleted_profile_again_brings_its_scores_back(full):
    full.delete("model", full.models()[0].id)
    assert full.open_profile(make_header("p1")).measurements == (make_measurement(),)
    assert listed(full) == [1, 1, 0, 0, 0]
    full.undelete(full.deletions()[0].id)
    assert listed(full) == [1, 2, 1, 1, 1]


def test_what_is_added_to_something_deleted_stays_hidden_with_it(full):
    deletion = full.delete("profile", "p2")
    late = full.save_plan(make_plan(), "p2", "late")
    full.save_evaluation(make_evaluation(), late)
    assert listed(full) == [1, 1, 1, 1, 1]
    full.undelete(deletion)
    assert listed(full) == [1, 2, 2, 2, 1] and full.plan(late) is not None


def test_only_jobs_that_ended_are_deleted(store):
    job = store.create_job("profile", {})
    with pytest.raises(StorageError, match="stopped first"):
        store.delete("job", job.id)
    store.finish_job(job.id, JobStatus.DONE)
    deletion = store.delete("job", job.id)
    assert store.jobs() == [] and store.job(job.id) is None
    store.undelete(deletion)
    assert [one.id for one in store.jobs()] == [job.id]


def test_deleting_what_is_gone_is_refused(full):
    full.delete("profile", "p1")
    for gone in ("p1", "never"):
        with pytest.raises(StorageError, match="no such profile to delete"):
            full.delete("profile", gone)
    assert len(full.deletions()) == 1


def test_models_and_evaluations_have_names_of_ones_own(full):
    full.rename_model(full.models()[0].id, "the small one")
    full.rename_evaluation(full.stored_evaluations()[0].id, "on the laptop")
    assert (full.models()[0].label, full.models()[0].name) == ("the small one", "SmolLM2")
    assert full.stored_evaluations()[0].name == "on the laptop"
    full.save_catalogue(make_catalogue())
    assert full.models()[0].label == "the small one"


def test_compacting_gives_back_the_room_of_what_was_purged(store):
    store.open_profile(make_header("p1"))
    store.save_plan(make_plan().model_copy(update={"provenance": {"long": "x" * 2**20}}), "p1")
    full = store.database_size()
    store.delete("profile", "p1")
    store.purge()
    if not full.compactable:  # PostgreSQL gives room back by itself
        store.compact()
        assert store.database_size().spare_bytes == 0 < full.bytes
        return
    assert store.database_size().spare_bytes > 2**19
    store.compact()
    after = store.database_size()
    assert after.spare_bytes == 0 and after.bytes < full.bytes - 2**19 and after.compactable


def test_what_the_previous_schema_held_is_there_after_the_migration(url):
    from alembic import command

    store = open_repository(url)
    store.open_profile(make_header())
    plan_id = store.save_plan(make_plan(), "p1", "old")
    deleted = store.save_plan(make_plan(), "p1", "deleted")
    store.delete("plan", deleted)
    config = alembic_config()
    with store._engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0003")
        columns = {column["name"] for column in inspect(connection).get_columns("plans")}
    assert "deletion_id" not in columns
    store.close()
    again = open_repository(url)
    assert [plan.id for plan in again.plans()] == [plan_id] and again.deletions() == []
    assert [model.label for model in again.models()] == [""]
