"""The apply page: the text that a method calibrates on, the nearest plan, the stages of a job, and the zip file."""

from __future__ import annotations

import time
import zipfile

import pytest

from advisor import pipeline
from advisor.folders import CARD_FILE, RECORD_FILE
from advisor.types import ApplyRequest, ExportRecord, JobStatus, Progress
from tests import plan_pages, sample_results
from tests.page_driver import REQUEST, button, opened, said

PATIENCE_SECONDS = 60
store, profile = plan_pages.store, plan_pages.profile
Q, K = (f"model.layers.0.self_attn.{name}_proj" for name in "qk")


@pytest.fixture
def vllm_plan(store, profile):
    """The id of a plan for vLLM that GPTQ is recommended for."""
    request = REQUEST.model_copy(update={"engine": "vllm"})
    return store.save_plan(pipeline.make_plan(profile, request), profile.id, "for vLLM")


def ended(store, job_id):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (job := store.job(job_id)).status.ended and time.monotonic() < deadline:
        time.sleep(0.05)
    return job


# ------------------------------------------------------------------------------------- calibration text


def test_text_to_calibrate_on_stands_beside_a_method_that_reads_one(vllm_plan):
    app = opened("apply", plan=vllm_plan)
    field = app.selectbox(key="choose_calibration")
    assert field.value == "own" and field.options[0] == "As the plan's scores · python-docs" and field.help
    assert "Calibrated on 8 x 256 tokens of python-docs." in said(app)
    for other in ({"method": "rtn"}, {"to": "simulated"}):
        fields = [box.key for box in opened("apply", plan=vllm_plan, **other).selectbox]
        assert "choose_calibration" not in fields


def test_the_text_lives_in_the_link_and_goes_with_the_job(vllm_plan, submitted, tmp_path):
    app = opened("apply", plan=vllm_plan, calibration="mix")
    assert "Calibrated on 8 x 256 tokens of mix." in said(app)
    button(app, "Apply and evaluate").click().run()
    (tmp_path / "own.txt").write_text("some words")
    app = opened("apply", plan=vllm_plan, calibration="file", calibration_path=str(tmp_path / "own.txt"))
    assert app.text_input(key="calibration_path").value == str(tmp_path / "own.txt")
    assert app.selectbox(key="choose_text").value == "python-docs"  # the held-out text is another choice
    button(app, "Apply and evaluate").click().run()
    button(opened("apply", plan=vllm_plan), "Apply and evaluate").click().run()
    assert [params["calibration"] for _, params in submitted] == ["mix", str(tmp_path / "own.txt"), None]
    assert not app.exception and not app.error


def test_text_that_cannot_be_calibrated_on_is_refused_before_a_job_starts(store, vllm_plan):
    app = opened("apply", plan=vllm_plan, calibration="file")
    assert button(app, "Apply and evaluate").disabled
    app.text_input(key="calibration_path").set_value("/nowhere.txt").run()
    button(app, "Apply and evaluate").click().run()
    assert len(app.error) == 1 and "/nowhere.txt" in app.error[0].value
    assert store.jobs() == []


def test_every_calibration_text_has_a_folder_of_its_own():
    request = ApplyRequest(plan_id="plan", to="compressed-tensors", method="gptq")
    texts = (None, "mix", "/data/own.txt")
    folders = {pipeline.own_export_folder(request.model_copy(update={"calibration": text})).name for text in texts}
    assert len(folders) == 3 and "plan-compressed-tensors-gptq" in folders


# -------------------------------------------------------------------------------------- the nearest plan


def test_the_nearest_plan_is_saved_beside_the_given_one_and_shown(store, profile):
    store.save_catalogue(profile.catalogue)
    made = pipeline.make_plan(profile, REQUEST)
    unfit = made.model_copy(update={"assignments": made.assignments | {Q: "int8", K: "int4_g64"}})
    given = store.save_plan(unfit, profile.id, "mine")
    app = opened("apply", plan=given, to="compressed-tensors")
    assert "they share one kernel (qkv)" in app.warning[0].value and button(app, "Apply and evaluate").disabled
    assert "The nearest plan changes" in said(app) and "predicted change of perplexity" in said(app)
    button(app, "Take the nearest plan").click().run()
    saved = store.plans()[0]
    assert (saved.name, saved.profile_id) == ("mine, nearest for compressed-tensors (vLLM)", profile.id)
    assert app.query_params["plan"] == saved.id and app.query_params["to"] == "compressed-tensors"
    assert store.plan(given) == unfit
    taken = store.plan(saved.id)
    assert taken.assignments[Q] == taken.assignments[K] == "int8"
    app.run()
    assert not app.warning and not app.exception and not button(app, "Apply and evaluate").disabled


# -------------------------------------------------------------------------------------- a running job


@pytest.fixture
def running(store, vllm_plan):
    """An apply job of the plan that another machine runs."""
    job = store.create_job("apply", ApplyRequest(plan_id=vllm_plan, to="compressed-tensors").model_dump(mode="json"))
    store.enlist_job(job.id, 1, "another-machine")
    assert store.claim_job(job.id, 1)
    return job.id


STEPS = ("Measure the original", "Measure uniform plans", "Apply and write", "Verify the files", "Measure the plan")


@pytest.mark.parametrize(
    ("stage", "reached"),
    [("load", -1), ("evaluate original", 0), ("evaluate uniform int8", 1), ("apply", 2), ("verify", 3)],
)
def test_a_running_job_shows_which_of_its_steps_are_done(store, vllm_plan, running, stage, reached):
    store.report(running, Progress(stage=stage, done=1, total=4, message="doing it"))
    app = opened("apply", plan=vllm_plan, job=running)
    marks = ["check_circle"] * max(reached, 0) + ["pending"] * (reached >= 0)
    marks += ["circle"] * (len(STEPS) - len(marks))
    line = " ".join(f":material/{mark}: {step} " for mark, step in zip(marks, STEPS, strict=True)).strip()
    assert line in [caption.value.strip() for caption in app.caption]
    assert "doing it" in said(app) and button(app, "Pause") and button(app, "Apply and evaluate").disabled
    assert not app.exception and not app.error


def test_steps_that_a_resumed_job_leaves_out_count_as_done(store, vllm_plan, running):
    store.append_log(running, "12:00:01 evaluate original: done\n12:00:09 verify: Reading the files back\n")
    store.report(running, Progress(stage="read back", message="Reading the folder"))
    line = next(c.value for c in opened("apply", plan=vllm_plan, job=running).caption if STEPS[0] in c.value)
    assert line.count("check_circle") == 3 and ":material/pending: Verify the files" in line


# --------------------------------------------------------------------------------------- the zip file


def zip_downloads(app):
    labels = [offered.proto.label for offered in app.get("download_button")]
    return [label for label in labels if label.startswith("Download zip · ")]


def test_an_applied_plan_is_packed_into_a_zip_file_and_offered(store, vllm_plan, running, tmp_path):
    folder = tmp_path / "exports" / "model"
    folder.mkdir(parents=True)
    (folder / CARD_FILE).write_text("---\nlicense: mit\n---\nThe card of this model.")
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    record = ExportRecord(
        target="torchao", size_note="2.00 MiB, 1.00 MiB more than planned: int4_g64", over_limit="over"
    )
    (folder / RECORD_FILE).write_text(record.model_dump_json())
    store.save_evaluation(sample_results.evaluation("plan", 0.03, 10**8), plan_id=vllm_plan)
    store.finish_job(running, JobStatus.DONE, result={"folder": str(folder)})
    app = opened("apply", plan=vllm_plan)
    assert str(folder) in [code.value for code in app.code] and "The card of this model." in said(app)
    assert "Weights: 2.00 MiB, 1.00 MiB more than planned: INT4 group 64." in [one.value for one in app.caption]
    assert "Over." in [one.value for one in app.warning]
    assert zip_downloads(app) == []
    button(app, "Make a zip file").click().run()
    assert ended(store, app.query_params["job"]).status is JobStatus.DONE
    app.run()
    assert "The zip file is ready" in said(app) and not app.exception and not app.error
    assert len(zip_downloads(app)) == 1
    with zipfile.ZipFile(folder.with_name("model.zip")) as packed:
        assert packed.read("model/model.safetensors") == b"weights" * 100
    (folder / "model.safetensors").write_bytes(b"others")
    app = opened("apply", plan=vllm_plan)
    assert zip_downloads(app) == [] and button(app, "Make a zip file")


def test_a_link_to_a_plan_that_is_gone_says_so_where_nothing_is_stored(store):
    assert "the link asks for `gone`, which is no longer stored" in said(opened("apply", plan="gone"))
