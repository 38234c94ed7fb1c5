"""The plan page's own settings: limits, locks, the table, gains of each layer, uploaded plans."""

from __future__ import annotations

import json

import pytest

from advisor import jobs, knowledge, pipeline
from advisor.types import JobStatus, ProfileRequest
from advisor.ui import frames, plan_table, wording
from advisor.ui.plan import GIVING_BACK, LAYERS, SIMPLE
from tests import sample_results
from tests.page_driver import REQUEST, button, labels, numbers, opened, said


@pytest.fixture
def store(data_folder):
    return pipeline.open_store()


@pytest.fixture
def profile(store):
    return store.open_profile(sample_results.profile())


def test_the_plan_keeps_the_budget_of_the_slider(profile):
    app = opened("plan")
    for bits in (5.0, 4.5):
        app.get_by_key("bits").set_value(bits).run()
        assert float(numbers(app)["Average bits"]) <= bits
        assert not app.error


def test_an_impossible_budget_gets_a_sentence_and_the_smallest_size_and_no_plan(profile):
    app = opened("plan", limit="memory", memory="0.5")
    assert len(app.error) == 1 and "smallest" in app.error[0].value
    assert "GiB" in numbers(app)["Smallest possible"]
    assert "Average bits" not in numbers(app) and not app.download_button


@pytest.mark.parametrize("query", [{"limit": "weights"}, {"limit": "ppl", "rise": "10"}, {"limit": "memory"}])
def test_each_kind_of_limit_gives_a_plan(profile, query):
    app = opened("plan", **query)
    assert not app.error
    assert float(numbers(app)["Average bits"]) > 4


def test_a_lock_is_kept_and_cleared(profile):
    app = opened("plan")
    app.text_input(key="lock_pattern").set_value(r".*layers\.3\..*k_proj").run()
    app.selectbox(key="lock_format").set_value("int8").run()
    button(app, "Hold").click().run()
    table = app.data_editor[0].value.set_index("Layer")
    locked = table.loc["model.layers.3.self_attn.k_proj"]
    assert (locked["Format"], bool(locked["Locked"])) == ("INT8 per channel", True)
    assert table["Locked"].sum() == 1
    button(app, "Clear 1 lock").click().run()
    assert app.data_editor[0].value["Locked"].sum() == 0
    for locked in (1, 0):  # back to the lock, and to none before it
        button(app, "Undo").click().run()
        assert app.data_editor[0].value["Locked"].sum() == locked
    assert "Undo" not in [b.label for b in app.button]


@pytest.mark.parametrize(
    "pattern, problem", [("layers.(", "nor a valid regular expression"), ("decoder", "matches no layer")]
)
def test_a_lock_that_cannot_hold_is_refused(profile, pattern, problem):
    app = opened("plan")
    app.text_input(key="lock_pattern").set_value(pattern).run()
    button(app, "Hold").click().run()
    assert problem in app.error[0].value
    assert app.data_editor[0].value["Locked"].sum() == 0


def test_the_table_is_filtered_by_role_and_name(profile):
    app = opened("plan")
    app.text_input(key="find").set_value("layers.7.").run()
    app.multiselect(key="in_roles").set_value(["MLP down"]).run()
    assert list(app.data_editor[0].value["Layer"]) == ["model.layers.7.mlp.down_proj"]


def test_every_layer_can_be_asked_why(profile):
    app = opened("plan")
    app.selectbox(key="choose_why").set_value("model.layers.0.mlp.down_proj").run()
    assert any(text.value.startswith("**INT") for text in app.markdown)


def test_a_layer_that_the_plan_does_not_decide_says_why_under_its_whole_name(profile):
    app = opened("plan")
    why = app.selectbox(key="choose_why")
    assert len(why.options) == 1 + len(pipeline.make_plan(profile, REQUEST).reasons) and "7 · down_proj" in why.options
    why.set_value("model.embed_tokens").run()
    assert any(text.value.startswith("Kept at **BF16**") for text in app.markdown)


def test_no_plan_is_made_from_a_profile_around_a_plan(store, profile):
    plan = pipeline.make_plan(profile, REQUEST)
    around = store.open_profile(sample_results.around_profile(plan.assignments))
    app = opened("plan", profile=around.id)
    assert [info.value for info in app.info if "measured around a plan" in info.value]
    chooser = app.selectbox(key="choose_profile")
    assert chooser.value == profile.id and len(chooser.options) == 1
    assert app.query_params["profile"] == profile.id
    store.delete("profile", profile.id)
    app = opened("plan", profile=around.id)
    assert "No sensitivity profile yet" in said(app) and not app.error


def test_the_plan_follows_scores_that_are_replaced_in_their_places(store):
    profile = store.open_profile(sample_results.estimated_profile(sequences=8))
    app = opened("plan")
    before = numbers(app)["Predicted perplexity"]
    store.add_measurements(profile.id, sample_results.estimated_profile(sequences=16).measurements)
    assert numbers(app.run())["Predicted perplexity"] != before


def test_estimates_say_what_giving_each_layer_of_the_plan_back_would_win(store):
    profile = store.open_profile(sample_results.estimated_profile())
    app = opened("plan", bits="5")
    table = app.data_editor[0].value
    ids = {fmt.label: name for name, fmt in knowledge.formats().items()}
    assignments = dict(zip(table["Layer"], table["Format"].map(ids), strict=True))
    won = frames.gains(profile, assignments)
    assert list(table[plan_table.GAIN]) == [won[layer][0] for layer in table["Layer"]]
    drawn = [len(charts(opened("plan", bits="5", tab=tab))) for tab in (LAYERS, GIVING_BACK)]
    assert drawn == [3, 4]


def charts(app) -> list:
    return app.get("vega_lite_chart") or app.get("arrow_vega_lite_chart")


def test_exact_scores_leave_that_column_out(profile):
    assert plan_table.GAIN not in opened("plan").data_editor[0].value


def test_measuring_around_the_plan_asks_for_the_profiles_own_text(store, monkeypatch):
    profile = sample_results.estimated_profile()
    calibration = profile.calibration.model_copy(update={"seed": 7, "samples": 5000})
    profile = store.open_profile(profile.model_copy(update={"calibration": calibration, "dtype": "fp16"}))
    monkeypatch.setattr(jobs, "submit", lambda store, kind, request, **_: store.create_job(kind, request.model_dump()))
    monkeypatch.setattr(jobs, "reap", lambda store: [])
    table = opened("plan", profile=profile.id).data_editor[0].value
    app = opened("plan", profile=profile.id, tab=GIVING_BACK)
    button(app, "Measure what giving back each layer wins").click().run()
    (job,) = store.jobs()
    asked = ProfileRequest(**job.params)
    around = {name: wording.format_label(fmt) for name, fmt in asked.around.items()}
    assert around == dict(zip(table["Layer"], table["Format"], strict=True))
    assert (asked.method, asked.model, asked.text) == ("exact", "smollm2", "python-docs")
    assert (asked.samples, asked.seq_len, asked.seed, asked.dtype) == (5000, 256, 7, "auto")
    assert app.query_params["job"] == job.id and "Profiling smollm2 around a plan" in said(app)
    store.finish_job(job.id, JobStatus.DONE, result={"profile_id": "some"})
    assert not button(app.run(), "See what giving back wins").disabled
    assert not opened("model", job=job.id).exception  # more samples than the form of the model page has


def test_simple_plans_stand_beside_the_plan(profile):
    app = opened("plan", tab=SIMPLE)
    table = next(frame.value for frame in app.dataframe if "Plan" in frame.value)
    assert list(table["Plan"]) == [
        *("this plan", "uniform INT8 per channel", "uniform INT4 group 64", "role rule", "guide's strategy")
    ]


def test_an_uploaded_plan_with_a_wrong_field_is_refused_by_its_path(profile):
    document = json.loads(pipeline.make_plan(profile, REQUEST).model_dump_json())
    document["memory"]["weights_bytes"] = "many"
    app = opened("plan")
    app.file_uploader[0].set_value(("plan.json", json.dumps(document).encode(), "application/json")).run()
    assert len(app.error) == 1 and "memory.weights_bytes" in app.error[0].value


def test_an_uploaded_plan_for_another_model_is_refused(store, profile):
    stranger = sample_results.profile(fingerprint="77" * 32)
    text = pipeline.make_plan(stranger, REQUEST).model_dump_json()
    app = opened("plan", profile=profile.id)
    app.file_uploader[0].set_value(("plan.json", text.encode(), "application/json")).run()
    assert len(app.error) == 1 and "not for SmolLM2" in app.error[0].value
    assert store.plans() == []


def test_an_uploaded_plan_can_be_locked_as_it_is(profile):
    plan = pipeline.make_plan(profile, REQUEST)
    app = opened("plan", bits="8")
    app.file_uploader[0].set_value(("plan.json", plan.model_dump_json().encode(), "application/json")).run()
    button(app, "Lock its formats here").click().run()
    table = app.data_editor[0].value.set_index("Layer")
    assert table["Format"].to_dict() == labels(plan)
