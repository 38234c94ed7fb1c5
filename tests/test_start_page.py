"""The start page beyond its form: anatomy, uploads, recent work, and scores that fill in."""

from __future__ import annotations

import io

import pytest

from advisor import jobs, pipeline, uploads
from advisor.errors import ModelError
from advisor.types import JobStatus, ProfileRequest, Progress
from advisor.ui import anatomy
from tests import sample_results
from tests.page_driver import REQUEST, opened, said

GGUF = b"GGUF" + (3).to_bytes(4, "little") + (7).to_bytes(8, "little") + bytes(8) + b"the rest"


@pytest.fixture
def store(data_folder, monkeypatch):
    monkeypatch.setattr(jobs, "reap", lambda store: [])
    return pipeline.open_store()


# --------------------------------------------------------------------------------------------- uploads


def test_an_uploaded_file_is_kept_under_its_content_and_found_again(data_folder):
    kept = uploads.keep_gguf("C:\\models\\my model.gguf", io.BytesIO(GGUF))
    assert kept.read_bytes() == GGUF and kept.name == "my_model.gguf"
    assert uploads.keep_gguf("my model.gguf", io.BytesIO(GGUF)) == kept
    assert uploads.keep_gguf("my model.gguf", io.BytesIO(GGUF + b"!")) != kept
    assert kept.is_relative_to(data_folder)
    assert uploads.keep_gguf("../../.gguf", io.BytesIO(GGUF)).is_relative_to(data_folder / "uploads")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK" + GGUF[2:], GGUF[:4] + bytes(30)])
def test_what_is_no_gguf_model_is_refused_and_leaves_nothing(data_folder, content):
    with pytest.raises(ModelError, match=r"model\.gguf is not a GGUF model"):
        uploads.keep_gguf("model.gguf", io.BytesIO(content))
    assert not list(data_folder.rglob("*gguf*"))


def test_an_upload_becomes_the_model_of_the_page(store):
    app = opened("model", **{"from": "upload"})
    app.file_uploader[0].set_value(("tiny.gguf", GGUF, "application/octet-stream")).run()
    assert not app.exception and not app.error
    assert app.get_by_key("choose_from").value == "own"
    assert app.text_input(key="source").value.endswith("/tiny.gguf")


def test_an_upload_that_is_no_model_is_refused_on_the_page(store):
    app = opened("model", **{"from": "upload"})
    app.file_uploader[0].set_value(("tiny.gguf", b"not a model", "application/octet-stream")).run()
    assert [error.value.split(" is ")[0] for error in app.error] == ["tiny.gguf"]


# --------------------------------------------------------------------------------------------- anatomy


def test_the_whole_model_takes_what_its_roles_take(store):
    catalogue = sample_results.catalogue()
    table = anatomy.role_table(catalogue).set_index("Role")
    whole, roles = table.loc["Whole model"], table.drop("Whole model")
    assert whole["Parameters"] == roles["Parameters"].sum() == catalogue.parameters
    assert whole["Layers"] == len(catalogue.layers) and whole["Share"] == 100
    assert roles.loc["Norm", "INT8 per channel"] == "kept" and whole["INT8 per channel"] != "kept"


# ----------------------------------------------------------------------------------------- recent work


def test_a_person_who_comes_back_finds_the_newest_work_and_a_stopped_job_first(store):
    assert "Go on with" not in said(opened("model"))
    profile = store.open_profile(sample_results.profile())
    store.save_plan(pipeline.make_plan(profile, REQUEST), profile.id, "five bits")
    (plan,) = store.plans()
    job = store.create_job("apply", {"plan_id": plan.id})
    assert store.enlist_job(job.id, 1, "here") and store.claim_job(job.id, 1)
    store.finish_job(job.id, JobStatus.CANCELLED)
    app = opened("model")
    links = [link.value for link in app.get("page_link")]
    assert [link for link in links if not link.startswith("Guide: ")] == ["Open", "Apply and evaluate", "Make a plan"]
    assert "**Applying and evaluating: five bits · SmolLM2-135M-Instruct · " in said(app) and "paused" in said(app)


# --------------------------------------------------------------------------------------- live progress


def test_a_running_profile_shows_its_scores_as_far_as_they_are_stored(store):
    whole = sample_results.profile()
    of_last_block = tuple(m for m in whole.measurements if ".29." in m.layer)
    store.open_profile(whole.model_copy(update={"measurements": of_last_block}))
    request = ProfileRequest(model="smollm2", formats=whole.formats)
    job = store.create_job("profile", request.model_dump(mode="json"))
    store.claim_job(job.id, 1)
    store.report(job.id, Progress(stage="estimate", done=2, total=31, subject=whole.id))
    app = opened("model", job=job.id)
    assert "7 of 211 layers scored" in said(app)
    assert len(app.get("vega_lite_chart")) == 2  # the scores, and the model's anatomy
    assert not app.exception and not app.error


def test_a_waiting_job_says_how_many_are_before_it(store):
    first, second = (store.create_job("profile", {"model": "smollm2"}, "somebody") for _ in range(2))
    store.claim_job(first.id, 1)
    app = opened("model", job=second.id)
    (bar,) = app.get("progress")
    assert "1 job before it" in bar.proto.text
