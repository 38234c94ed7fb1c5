"""The History: everything stored is found by its words, renamed, compared, deleted, and brought back."""

from __future__ import annotations

import os

import pytest

from advisor import paths, pipeline
from advisor.errors import StorageError
from advisor.types import AnswersRequest, Budget, JobStatus, Progress
from advisor.ui import history_rows, wording
from advisor.ui.common import LONGEST_NAME
from tests import sample_results
from tests.page_driver import REQUEST, button, opened, said
from tests.stored_nouns import Statements


@pytest.fixture
def store(data_folder):
    return pipeline.open_store()


@pytest.fixture
def profile(store):
    return store.open_profile(sample_results.profile(2))


@pytest.fixture
def plans(store, profile):
    """Two plans, the second one evaluated."""
    ids = []
    for name, bits in (("for the laptop", 5.0), ("for the server", 6.0)):
        request = REQUEST.model_copy(update={"budget": Budget(weight_bits=bits)})
        ids.append(store.save_plan(pipeline.make_plan(profile, request), profile.id, name))
    store.save_evaluation(sample_results.evaluation("plan", 0.03, 10**8), plan_id=ids[-1])
    return ids


def rows(app):
    return app.dataframe[0].value


def tick(app, *numbers):
    """Tick rows of the table, as a click on their boxes does."""
    app.session_state[app.dataframe[0].key] = {"selection": {"rows": list(numbers), "columns": [], "cells": []}}
    return app.run()


def test_every_kind_is_listed_with_links_that_reopen_it(store, profile, plans):
    assert list(rows(opened("history", list="models"))["Open"]) == ["./?from=demo"]
    assert list(rows(opened("history", list="profiles"))["Scores"]) == [f"sensitivity?profile={profile.id}"]
    table = rows(opened("history"))  # plans come first where there are some
    assert list(table["Results"]) == [f"apply?plan={plan}" for plan in reversed(plans)]
    assert list(rows(opened("history", list="evaluations"))["Results"]) == [f"apply?plan={plans[-1]}"]


def test_a_stopped_job_is_paused_where_something_of_it_is_stored_else_cancelled(store):
    for kind in ("profile", "inspect"):
        job = store.create_job(kind, {"model": "smollm2"})
        store.enlist_job(job.id, 1, "here")
        store.claim_job(job.id, 1)
        store.finish_job(job.id, JobStatus.CANCELLED)
    assert {row["What"]: row["State"] for row in rows(opened("history", list="jobs")).to_dict("records")} == {
        "Profiling smollm2": "paused",
        "Looking inside smollm2": "cancelled",
    }


def test_a_job_that_a_later_one_of_its_request_took_up_is_not_called_paused_or_failed(store):
    for params, status in (({"model": "a"}, "cancelled"), ({"model": "b"}, "failed"), ({"model": "a"}, None)):
        job = store.create_job("profile", params)
        store.enlist_job(job.id, os.getpid(), "elsewhere")
        if status:
            store.finish_job(job.id, JobStatus(status))
    states = [(row["What"], row["State"]) for row in rows(opened("history", list="jobs")).to_dict("records")]
    assert states == [
        ("Profiling a", "waits for its turn"),
        ("Profiling b", "failed"),
        ("Profiling a", "taken up again"),
    ]


def test_jobs_are_listed_with_the_model_and_plan_that_they_are_about(store, profile, plans):
    store.create_job("apply", {"plan_id": plans[0]})
    store.create_job("refine", {"profile_id": profile.id})
    done = store.create_job("refine", {"profile_id": profile.id, "rounds": 1})
    store.finish_job(done.id, JobStatus.DONE, result={"plan_id": plans[1]})
    store.create_job("zip", {"plan_id": "deleted"})
    (first, second) = (f"{plan.model_name} · {plan.decided_bits:.2f} bits" for plan in reversed(store.plans()))
    table = rows(opened("history", list="jobs"))
    assert list(table["What"]) == [
        "Making a zip file",
        f"Refining a plan: for the server · {second}",
        f"Refining a plan: {profile.catalogue.model.name}",
        f"Applying and evaluating: for the laptop · {first}",
    ]
    assert len(rows(opened("history", list="jobs", q="laptop"))) == 1


def test_listing_more_jobs_takes_no_more_queries(store, plans):
    counts = []
    for more in (1, 10):
        for _ in range(more):
            store.finish_job(store.create_job("apply", {"plan_id": plans[0]}).id, JobStatus.FAILED)
        with Statements(store) as seen:
            assert len(history_rows.listings(store)["jobs"].rows) >= more
        counts.append(len(seen))
    assert counts[0] == counts[1]


def test_a_model_of_ones_own_reopens_by_its_source(store):
    store.save_catalogue(sample_results.catalogue(1, source="/models/a b"))
    assert list(rows(opened("history", list="models"))["Open"]) == ["./?from=own&source=%2Fmodels%2Fa%20b"]


def test_history_says_how_profiles_were_measured_and_offers_no_plan_around_a_plan(store):
    plain = store.open_profile(sample_results.auto_profile())
    store.open_profile(sample_results.around_profile(pipeline.make_plan(plain, REQUEST).assignments))
    found = {row["Method"]: row for row in rows(opened("history", list="profiles")).to_dict("records")}
    assert found["auto, 11 of 58 exact"]["Plan"] == f"plan?profile={plain.id}"
    assert found["exact around a plan"]["Plan"] == ""


def test_the_search_of_the_link_leaves_what_has_all_its_words(store, plans):
    app = opened("history", q="LAPTOP rtx")
    assert list(rows(app)["Name"]) == ["for the laptop"]
    app.text_input(key="q").set_value(plans[1]).run()
    assert list(rows(app)["Name"]) == ["for the server"]
    app.text_input(key="q").set_value("no such thing").run()
    assert "None of the plans has all of these words" in said(app) and not app.dataframe


def test_plans_are_found_by_their_formats_and_by_being_refined(store, profile, plans):
    refined = sample_results.refined(store.plan(plans[0]))
    assignments = dict.fromkeys(refined.assignments, "int3_g64")
    store.save_plan(refined.model_copy(update={"assignments": assignments}), profile.id, "tiny")
    assert "format" in opened("history").text_input(key="q").placeholder
    assert list(rows(opened("history", list="plans", q="INT4 group 64"))["Name"]) == [
        "for the server",
        "for the laptop",
    ]
    for words in ("int3 group 64", "int3_g64", "refined"):
        (row,) = rows(opened("history", list="plans", q=words)).to_dict("records")
        assert (
            row["Layers by format"] == f"{len(assignments)} × INT3 group 64 asymmetric" and row["Refined"] == "refined"
        )
    assert " bits · refined · " in wording.plan_label(store.plans()[0])
    assert "refined" not in wording.plan_label(store.plans()[1])


def test_the_search_reaches_every_list(store, profile, plans):
    store.create_job("profile", {"model": "needle"})
    app = opened("history", q="needle", list="jobs")
    assert list(rows(app)["What"]) == ["Profiling needle"]
    app = opened("history", q="no such thing", list="evaluations")
    assert "None of the evaluations" in said(app)


def test_deleting_hides_at_once_and_undo_brings_it_back(store, profile, plans):
    app = tick(opened("history", list="profiles"), 0)
    button(app, "Delete 1 profile").click().run()
    assert store.profiles() == [] and store.plans() == []
    assert "with 2 plans, 1 evaluation" in said(app) and "No sensitivity profiles yet" in said(app)
    button(app, "Undo").click().run()
    assert len(store.plans()) == 2 and len(store.evaluations()) == 1 and store.deletions() == []
    assert len(rows(app)) == 1 and not app.error and not app.exception


def test_what_goes_with_it_is_counted_before_it_is_deleted(store, profile, plans):
    store.open_blind_test(AnswersRequest(plan_id=plans[0], prompts=("One?",)))
    for which, goes in (("profiles", "2 plans, 1 evaluation, 1 blind test"), ("models", "1 profile, 2 plans")):
        assert f"what was made from it: {goes}" in said(tick(opened("history", list=which), 0))
    assert "what was made from it: 1 evaluation." in said(tick(opened("history", list="plans"), 0))
    assert "made from it" not in said(tick(opened("history", list="evaluations"), 0))
    (model,) = store.models()
    with Statements(store) as seen:
        store.made_from("model", [model.id])
    assert len(seen) == 4


def test_several_rows_are_deleted_and_undone_together(store, plans):
    app = tick(opened("history", list="plans"), 0, 1)
    button(app, "Delete 2 plans").click().run()
    assert store.plans() == []
    button(app, "Undo").click().run()
    assert [plan.id for plan in store.plans()] == list(reversed(plans))


def test_another_session_brings_back_what_was_deleted_or_lets_it_go(store, plans):
    for plan in plans:
        store.delete("plan", plan, plan)
    app = opened("history", list="deleted")
    assert list(rows(app)["Name"]) == list(reversed(plans)) and list(rows(app)["With it"]) == ["1 evaluation", "–"]
    assert "Undo" not in [one.label for one in app.button]  # that is for what this session deleted
    app = tick(app, 0)
    button(app, "Bring back 1 deletion").click().run()
    assert [plan.id for plan in store.plans()] == [plans[1]]
    button(app, "Delete 1 thing for good").click().run()
    assert store.deletions() == [] and "Nothing was deleted lately" in said(app)
    with pytest.raises(StorageError):
        store.rename_plan(plans[0], "gone")


def test_things_are_renamed_where_they_are_ticked(store, profile, plans):
    read = {
        "models": lambda: store.models()[0].label,
        "profiles": lambda: store.profiles()[0].name,
        "plans": lambda: store.plans()[0].name,
        "evaluations": lambda: store.stored_evaluations()[0].name,
    }
    for which, name in read.items():
        app = tick(opened("history", list=which), 0)
        (field,) = [one for one in app.text_input if one.label == "New name"]
        field.set_value(f" my {which} ")
        button(app, "Rename").click().run()
        assert name() == f"my {which}" and not app.error
        assert list(rows(app)["Name"])[0] == f"my {which}"


def test_a_name_is_as_long_where_a_plan_is_saved_as_where_it_is_renamed_and_none_is_cut(store, profile, plans):
    fields = {field.key: field for field in opened("plan").text_input}
    assert fields["plan_name"].proto.max_chars == LONGEST_NAME
    store.rename_plan(plans[0], "n" * (LONGEST_NAME + 50))
    for row, plan_id in enumerate(reversed(plans)):
        (field,) = [one for one in tick(opened("history", list="plans"), row).text_input if one.label == "New name"]
        assert field.value == {plan.id: plan.name for plan in store.plans()}[plan_id]
        assert field.proto.max_chars == max(LONGEST_NAME, len(field.value))


def test_two_ticked_plans_lead_to_their_comparison(store, profile, plans):
    app = tick(opened("history", list="plans"), 0, 1)
    (link,) = [link for link in app.get("page_link") if link.proto.label == "Compare these two"]
    assert f"plan={plans[1]}" in link.proto.query_string and f"against={plans[0]}" in link.proto.query_string


def test_plans_of_different_models_are_not_compared(store, plans):
    other = store.open_profile(sample_results.profile(2, fingerprint="cd" * 32))
    store.save_plan(pipeline.make_plan(other, REQUEST), other.id)
    app = tick(opened("history", list="plans"), 0, 1)
    assert "Plans of different models are not compared" in said(app)


def test_a_job_that_ended_is_deleted_and_one_that_is_gone_is_refused_in_a_sentence(store):
    job = store.create_job("preview", {})
    store.finish_job(job.id, JobStatus.CANCELLED)
    app, late = (tick(opened("history", list="jobs"), 0) for _ in range(2))
    button(app, "Delete 1 job").click().run()
    assert store.jobs() == []
    store.undelete(store.deletions()[0].id)
    store.purge(store.delete("job", job.id))
    assert "Undo" not in [one.label for one in button(late, "Delete 1 job").click().run().button]
    assert not late.exception


@pytest.mark.parametrize("which", ["plans", "profiles", "models"])
def test_what_a_running_or_waiting_job_needs_is_not_deleted_before_it_is_stopped(store, profile, plans, which):
    job = store.create_job("apply", {"plan_id": plans[1]})
    store.enlist_job(job.id, os.getpid(), "elsewhere")
    app = tick(opened("history", list=which), 0)
    app = button(app, f"Delete 1 {which[:-1]}").click().run()
    (refusal,) = [error.value for error in app.error]
    assert f"running or waiting and needs this {which[:-1]}" in refusal and "pause or cancel" in refusal
    assert len(store.plans()) == 2 and not store.deletions() and not app.exception
    store.finish_job(job.id, JobStatus.CANCELLED)
    button(app.run(), f"Delete 1 {which[:-1]}").click().run()
    assert len(store.deletions()) == 1


def test_where_a_job_needs_one_of_several_things_none_is_deleted(store, profile, plans):
    store.create_job("answers", {"plan_id": plans[0], "test_id": "t"})
    with pytest.raises(StorageError, match="needs one of these plans"):
        pipeline.delete_stored("plan", {plans[1]: "two", plans[0]: "one"}, store)
    assert len(store.plans()) == 2
    pipeline.delete_stored("plan", {plans[1]: "two"}, store)
    assert [plan.id for plan in store.plans()] == plans[:1]


def test_a_profile_that_a_job_measures_or_refines_from_is_not_deleted(store, profile):
    measuring = store.create_job("profile", {"model": "smollm2"})
    store.enlist_job(measuring.id, 1, "here")
    store.claim_job(measuring.id, 1)
    store.report(measuring.id, Progress(stage="layers", subject=profile.id))
    for job in (measuring, store.create_job("refine", {"profile_id": profile.id})):
        with pytest.raises(StorageError, match="needs this profile"):
            pipeline.delete_stored("profile", {profile.id: ""}, store)
        store.finish_job(job.id, JobStatus.CANCELLED)
    pipeline.delete_stored("profile", {profile.id: ""}, store)
    assert store.profiles() == []


def test_the_page_says_who_sees_and_deletes_what(store, plans):
    assert "Everybody who can open this page sees all of it" in said(opened("history"))


# ------------------------------------------------------------------------------------------ storage


def test_room_is_listed_with_what_can_be_freed(store, plans, monkeypatch, tmp_path):
    monkeypatch.setenv("ADVISOR_MODELS", str(tmp_path / "models"))
    model, export = paths.models_dir() / "tiny", paths.data_dir() / "exports" / "one"
    for folder, count in ((model, 3000), (export, 5000)):
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"0" * count)
    found = {one.what: one for one in pipeline.space_used(store)}
    assert (found["model"].bytes, found["export"].bytes) == (3000, 5000)
    assert found["database"].bytes > 50_000 and not found["database"].removable
    app = opened("history", list="space")
    table = rows(app).set_index("What")
    assert table.loc["export", "Size"] == "4.9 KiB"
    assert "in all, of which" in said(app)
    app = tick(app, list(table.index).index("export"))
    button(app, "Remove for good").click().run()
    assert not export.exists() and model.exists() and not app.error
    assert list(export.parent.iterdir()) == []


def test_a_converted_model_is_not_said_to_be_fetched_again(store, monkeypatch, tmp_path):
    monkeypatch.setenv("ADVISOR_MODELS", str(tmp_path / "models"))
    fetched, converted = paths.models_dir() / "smollm2", paths.converted_dir() / "mine-1234"
    for folder in (fetched, converted):
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"0")
    notes = {one.place: one.note for one in pipeline.space_used(store) if one.what == "model"}
    assert "fetched again" in notes[str(fetched)] and "from its GGUF file" in notes[str(converted)]
    pipeline.free_space(str(converted), store)
    assert fetched.exists() and not converted.exists()


def test_nothing_is_removed_that_is_not_ours_or_that_a_job_may_read(store, monkeypatch, tmp_path):
    monkeypatch.setenv("ADVISOR_MODELS", str(tmp_path / "models"))
    model = paths.models_dir() / "tiny"
    model.mkdir()
    (model / "weights").write_bytes(b"0")
    (tmp_path / "mine").mkdir()
    with pytest.raises(StorageError, match="not ours to remove"):
        pipeline.free_space(str(tmp_path / "mine"), store)
    store.create_job("profile", {})
    with pytest.raises(StorageError, match="job is running or waiting"):
        pipeline.free_space(str(model), store)
    assert model.exists() and (tmp_path / "mine").exists()
