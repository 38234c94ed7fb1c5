"""The model page: the form, the estimate before a run, and jobs from their first breath to their end."""

from __future__ import annotations

import sys
import time
from typing import get_args

import pytest

from advisor import jobs, pipeline
from advisor.texts import default_samples
from advisor.types import JobStatus, Method, Preview, ProfileRequest, Progress, WorkEstimate
from advisor.ui.profile_form import METHOD_SENTENCES, METHODS
from tests import sample_results
from tests.page_driver import REQUEST, button, numbers, opened, said
from tests.tiny_models import tiny_folder

SLEEPER = [sys.executable, "-c", "import time; time.sleep(120)"]


@pytest.fixture
def store(data_folder):
    return pipeline.open_store()


@pytest.fixture
def sleeping_job(store, tmp_path):
    """A job whose process is real and does nothing."""
    job = jobs.submit(store, "profile", {"model": "smollm2"}, command=SLEEPER, folder=tmp_path)
    assert store.claim_job(job.id, job.pid)
    yield store.job(job.id)
    jobs.cancel(store, job.id, force=True)


def estimated(store, warnings=()):
    """A finished preview job's id."""
    found = Preview(
        method="auto",
        calibration=sample_results.estimated_profile().calibration.model_copy(
            update={"quality": sample_results.quality(warnings)}
        ),
        estimate=WorkEstimate(
            scores=422, tokens=4096, forward_passes=81.52, seconds=80, memory_bytes=3 * 2**29, at_most=True
        ),
    )
    asked = ProfileRequest(model="smollm2", method="auto")
    job = store.create_job("preview", asked.model_dump(mode="json"))
    store.finish_job(job.id, JobStatus.DONE, result=found.model_dump(mode="json"))
    return job.id


def test_a_model_that_does_not_exist_is_refused_before_any_job(store):
    app = opened("model", **{"from": "own", "source": "/nowhere/model.gguf"})
    button(app, "Profile").click().run()
    assert len(app.error) == 1 and "/nowhere/model.gguf" in app.error[0].value
    assert store.jobs() == []


def test_text_that_cannot_be_read_is_refused_before_any_job(store):
    app = opened("model", text="file", path="/nowhere/text.jsonl")
    button(app, "Profile").click().run()
    assert len(app.error) == 1 and "/nowhere/text.jsonl" in app.error[0].value
    assert store.jobs() == []


def test_a_pattern_that_is_no_regular_expression_is_said_and_cannot_be_submitted(store):
    app = opened("model", layers="layers.(")
    assert "nor a valid regular expression" in said(app)
    assert button(app, "Profile").disabled


def test_a_pattern_that_names_no_layer_of_a_known_model_is_said_before_the_model_is_loaded(store):
    store.save_catalogue(sample_results.catalogue())
    app = opened("model", layers="decoder")
    assert "matches no layer of SmolLM2-135M-Instruct" in said(app)
    assert button(app, "Profile").disabled and button(app, "Estimate first").disabled


def test_a_known_model_shows_its_anatomy_and_counts_the_work(store):
    store.save_catalogue(sample_results.catalogue())
    app = opened("model", layers="down_proj")
    assert numbers(app)["Quantizable layers"] == "211"
    assert "30 of 211 layers in 2 formats: 60 scores on 4,096 tokens (32,768 on an accelerator)" in said(app)
    assert "60 scores on 512 tokens." in said(opened("model", layers="down_proj", samples="2"))
    table = app.dataframe[0].value.set_index("Role")
    assert table.loc["MLP down", "Layers"] == 30
    assert table.loc["Norm", "INT4 group 64"] == "kept"


def test_a_real_tiny_model_is_estimated_then_profiled_and_ends_with_its_scores(store, tmp_path):
    folder = tiny_folder(tmp_path / "tiny")
    app = opened("model", **{"from": "own", "source": str(folder), "samples": "2", "seq_len": "32"})
    assert "32 scores" not in said(app)  # nothing is known of the model yet
    button(app, "Estimate first").click().run()
    first = ended(store, app)
    assert first.kind == "preview" and store.profiles() == []
    assert (numbers(app)["Scores"], numbers(app)["Tokens"]) == ("32", "64")
    assert any("64 tokens are few" in warning.value for warning in app.warning)
    assert "Fisher · python-docs, 2 × 32 tokens · all layers in INT8 per channel, INT4 group 64" in said(app)
    button(app, "Profile as estimated").click().run()
    job = ended(store, app)
    assert "Measured and stored" in said(app)
    assert "32 scores" in said(app)
    assert {key: job.params[key] for key in first.params} == first.params
    app = opened("sensitivity", profile=job.result["profile_id"])
    assert numbers(app)["Layers measured"] == "16 of 16"
    assert numbers(app)["Method"] == "Fisher, 8 draws"


def ended(store, app):
    """The job of the page once it is done, the page drawn again."""
    job_id = app.query_params["job"]
    deadline = time.monotonic() + 120
    while not store.job(job_id).status.ended and time.monotonic() < deadline:
        time.sleep(0.3)
    assert store.job(job_id).status is JobStatus.DONE, store.job(job_id).error
    app.run()
    return store.job(job_id)


def test_the_form_asks_for_what_it_shows(store, submitted):
    app = opened("model", method="auto", draws="8", seq_len="128", layers="mlp", text="mix")
    button(app, "Profile").click().run()
    (kind, params), *_ = submitted
    asked = ProfileRequest(**params)
    assert (kind, asked.method, asked.samples, asked.draws) == ("profile", "auto", None, 8)
    assert (asked.seq_len, asked.layers, asked.text) == (128, "mlp", "mix")


def test_every_method_says_what_it_does_and_fisher_is_the_first(store):
    app = opened("model")
    assert app.get_by_key("choose_method").value == "fisher"
    assert METHODS.keys() == METHOD_SENTENCES.keys() == set(get_args(Method))
    for method, sentence in METHOD_SENTENCES.items():
        assert sentence in said(opened("model", method=method))
    assert opened("model", method="exact").number_input(key="draws").disabled


@pytest.mark.parametrize("method", METHODS)
def test_empty_samples_say_what_the_profiler_takes(store, method):
    field = opened("model", method=method).number_input(key="samples")
    assert field.value is None and f"{default_samples(method, 'cpu')} on a CPU" in field.help


def test_random_text_is_the_last_to_calibrate_on_and_none_to_evaluate_on(store):
    options = opened("model").selectbox(key="choose_text").options
    assert "bad example" in options[-1] and not any("bad example" in option for option in options[:-1])
    plan = store.save_plan(pipeline.make_plan(sample_results.profile(), REQUEST), None)
    app = opened("apply", plan=plan, text="random")
    assert not any("random" in option for option in app.selectbox(key="choose_text").options)
    assert app.selectbox(key="choose_text").value == "python-docs"
    app = opened("apply", plan=plan, text="file")
    app.text_input(key="path").set_value("python-docs+random").run()
    button(app, "Apply and evaluate").click().run()
    assert len(app.error) == 1 and "noise" in app.error[0].value and store.jobs() == []


def test_a_finished_estimate_says_time_memory_work_and_what_the_text_is_worth(store):
    app = opened("model", job=estimated(store, warnings=("The text repeats itself: take it out.",)))
    shown = numbers(app)
    assert (shown["Time"], shown["Memory"], shown["Scores"]) == ("At most 1 min 20 s", "1.50 GiB", "422")
    assert (shown["Forward passes"], shown["Tokens"], shown["Distinct tokens"]) == ("81.5", "4,096", "1,203")
    assert (shown["Repeated"], shown["Perplexity"]) == ("2.1 %", "18.40")
    assert (shown["Distance from evaluation text"], shown["By chance alone"]) == ("0.21 bits", "0.18 bits")
    assert [warning.value for warning in app.warning] == ["The text repeats itself: take it out."]


def test_an_estimated_run_is_started_as_estimated(store, submitted):
    app = opened("model", job=estimated(store))
    app.number_input(key="samples").set_value(3).run()  # the form has moved on
    button(app, "Profile as estimated").click().run()
    (kind, params), *_ = submitted
    assert (kind, params) == ("profile", store.jobs()[-1].params)


def test_a_bare_link_to_a_job_brings_its_settings_into_the_form(store, tmp_path):
    text = tmp_path / "own.txt"
    text.write_text("words")
    asked = ProfileRequest(
        model="/models/own", text=str(text), samples=12, seq_len=64, formats=("int3_g64",), method="exact", layers="mlp"
    )
    job = store.create_job("profile", asked.model_dump(mode="json"))
    store.finish_job(job.id, JobStatus.CANCELLED)
    app = opened("model", job=job.id)
    assert not app.exception and not app.error
    assert (app.text_input(key="source").value, app.text_input(key="path").value) == ("/models/own", str(text))
    assert (app.number_input(key="samples").value, app.number_input(key="seq_len").value) == (12, 64)
    assert (app.multiselect(key="choose_formats").value, app.text_input(key="layers").value) == (["int3_g64"], "mlp")
    assert app.get_by_key("choose_method").value == "exact"
    other = opened("model", job=job.id, **{"from": "demo", "samples": "5"})
    assert other.number_input(key="samples").value == 5  # a link with settings of its own keeps them


def test_a_running_job_is_found_by_its_link_and_can_be_cancelled(store, sleeping_job):
    progress = Progress(stage="measure", done=30, total=120, message="layer 3 in int8", subject="some-profile")
    store.report(sleeping_job.id, progress)
    app = opened("model", job=sleeping_job.id)
    assert "See what is measured so far" in [link.value for link in app.get("page_link")]
    assert "layer 3 in INT8 per channel" in said(app)
    assert button(app, "Profile").disabled
    button(app, "Pause").click().run()
    assert store.cancel_requested(sleeping_job.id)
    assert "what is stored stays" in said(app)
    button(app, "Stop now").click().run()
    assert store.job(sleeping_job.id).status is JobStatus.CANCELLED
    assert "Paused" in said(app)


def test_a_failed_job_shows_its_error_and_last_lines_and_offers_to_resume(store):
    job = store.create_job("profile", {"model": "smollm2"})
    store.finish_job(job.id, JobStatus.FAILED, error="The disk is full; free some space.", log_tail="12:00 saving")
    app = opened("model", job=job.id)
    assert [error.value for error in app.error] == ["The disk is full; free some space."]
    assert app.code[0].value == "12:00 saving"
    assert not button(app, "Resume").disabled


def test_the_link_of_a_job_that_was_taken_up_again_leads_to_the_later_one(store):
    job, other = (store.create_job("profile", {"model": model}) for model in ("smollm2", "another"))
    store.finish_job(job.id, JobStatus.FAILED, error="The disk is full; free some space.")
    assert "taken up again" not in said(opened("model", job=job.id))
    store.create_job("profile", {"model": "smollm2"})
    app = opened("model", job=job.id)
    assert "taken up again" in said(app) and "Resume" not in [one.label for one in app.button]


def test_a_job_whose_process_died_is_shown_as_failed(store, tmp_path):
    job = jobs.submit(store, "profile", {"model": "smollm2"}, command=[sys.executable, "-c", "1/0"], folder=tmp_path)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not store.job(job.id).status.ended:
        app = opened("model", job=job.id)
        time.sleep(0.3)
    app = opened("model", job=job.id)
    assert len(app.error) == 1 and "resume" in app.error[0].value.lower()


def test_a_link_to_an_unknown_job_says_so(store):
    assert "no longer stored" in said(opened("model", job="nothing"))
