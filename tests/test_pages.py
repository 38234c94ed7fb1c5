"""Every page's states, run by streamlit's own test driver over a real database and real jobs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from streamlit.testing.v1 import AppTest

from advisor import jobs, pipeline
from advisor.types import Budget, JobStatus, ProfileRequest
from advisor.ui import frames, plan_table
from advisor.ui.common import PAGES, UNEXPECTED
from tests import sample_results
from tests.page_driver import REQUEST, ROOT, button, numbers, opened, said


@pytest.fixture
def store(data_folder):
    return pipeline.open_store()


@pytest.fixture
def profile(store):
    return store.open_profile(sample_results.profile())


@pytest.fixture
def saved_plan(store, profile):
    return store.save_plan(pipeline.make_plan(profile, REQUEST), profile.id, "five bits")


# ------------------------------------------------------------------------------------------ every page


@pytest.mark.parametrize(
    "name, sentence, way_out",
    [
        ("sensitivity", "No sensitivity profile yet", "Profile a model"),
        ("plan", "No sensitivity profile yet", "Profile a model"),
        ("apply", "No plan yet", "Make a plan"),
        ("history", "Nothing stored yet", "Start with a model"),
    ],
)
def test_an_empty_page_says_why_and_links_the_way_out(store, name, sentence, way_out):
    app = opened(name)
    assert sentence in said(app)
    assert way_out in [link.value for link in app.get("page_link")]
    assert not app.exception and not app.error


@pytest.mark.parametrize("name", PAGES)
def test_pages_draw_a_full_store_without_complaint(saved_plan, name):
    app = opened(name)
    assert not app.exception and not app.error
    assert app.title


@pytest.mark.parametrize("name", PAGES)
def test_every_field_has_help(saved_plan, name):
    app = opened(name)
    for elements in (app.selectbox, app.text_input, app.number_input, app.multiselect, app.slider, app.radio):
        for element in elements:
            assert element.help, f"{element.label} on {name}"


def test_the_web_process_never_loads_torch(saved_plan):
    script = f"""
import sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file({str(ROOT / "app.py")!r}, default_timeout=60).run()
for page in {list(PAGES.values())!r}:
    app.switch_page(page).run()
    assert app.title and not app.exception and not app.error, page
print(*{{"torch", "transformers", "optimum", "datasets"}} & set(sys.modules))
"""
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == []


def test_an_unexpected_error_is_a_sentence_and_never_a_traceback():
    def broken():
        from advisor.ui.common import guarded

        guarded(lambda: {}["missing"])()

    app = AppTest.from_function(broken).run()
    assert [error.value for error in app.error] == [UNEXPECTED]
    assert not app.exception


def test_a_link_to_something_deleted_says_so_and_shows_the_newest(profile):
    app = opened("sensitivity", profile="gone")
    assert "no longer stored" in said(app)
    assert app.selectbox(key="choose_profile").value == profile.id


# ------------------------------------------------------------------------------------------------- plan


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
    assert (locked["Format"], bool(locked["Locked"])) == ("int8", True)
    assert table["Locked"].sum() == 1
    button(app, "Clear 1 lock").click().run()
    assert app.data_editor[0].value["Locked"].sum() == 0


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
    app.text_input(key="table_find").set_value("layers.7.").run()
    app.multiselect(key="table_roles").set_value(["MLP down"]).run()
    assert list(app.data_editor[0].value["Layer"]) == ["model.layers.7.mlp.down_proj"]


def test_every_layer_can_be_asked_why(profile):
    app = opened("plan")
    app.selectbox(key="why").set_value("model.layers.0.mlp.down_proj").run()
    assert any(text.value.startswith("**int") for text in app.markdown)


def test_a_saved_plan_is_stored_as_shown_and_reopens_by_its_link(store, profile):
    app = opened("plan", bits="4.6")
    app.text_input(key="plan_name").set_value("small").run()
    button(app, "Save plan").click().run()
    (summary,) = store.plans()
    assert (summary.name, summary.profile_id) == ("small", profile.id)
    assert f"{summary.decided_bits:.2f}" == numbers(app)["Average bits"]
    reopened = opened("plan", plan=summary.id)
    assert reopened.get_by_key("bits").value == pytest.approx(4.6)
    assert numbers(reopened)["Average bits"] == numbers(app)["Average bits"]


@pytest.mark.parametrize(
    "limit, key, shown",
    [
        ({"weight_bits": 17.0}, "bits", 17.0),
        ({"weight_bits": 20.5}, "bits", 20.5),
        ({"max_ppl_increase": 0.5}, "rise", 50.0),
        ({"weight_bytes": 2**27}, "weight_mib", 128.0),
        ({"weight_bits": 5.0, "sequences": 9000}, "sequences", 9000),
        ({"vram_bytes": 3 * 2**30}, "memory", 3.0),
    ],
)
def test_a_plan_reopens_with_its_settings_however_far_they_lie(store, profile, limit, key, shown):
    wanted = REQUEST.model_copy(update={"budget": Budget(**limit)})
    plan = pipeline.make_plan(profile, wanted)
    app = opened("plan", plan=store.save_plan(plan, profile.id))
    assert not app.error and not app.exception
    assert app.get_by_key(key).value == pytest.approx(shown)
    assert numbers(app)["Average bits"] == f"{plan.memory.decided_bits:.2f}"
    if key in ("bits", "rise"):
        app.get_by_key(key).set_value(6.0).run()
        assert app.get_by_key(key).value == 6.0 and not app.error


def test_a_link_to_a_context_beyond_the_model_says_so_in_one_sentence(profile):
    app = opened("plan", limit="bits", context="9000")
    assert [error.value for error in app.error] == [
        f"A context of 9,000 tokens is more than the 8,192 that {profile.catalogue.model.name} was made for: "
        "shorten the context."
    ]


@pytest.mark.parametrize("value", ["17", "-3", "0", "1e300", "nan", "many"])
@pytest.mark.parametrize("key, limit", [("bits", "bits"), ("rise", "ppl"), ("context", "bits"), ("memory", "memory")])
def test_a_link_with_an_odd_number_never_breaks_the_page(profile, key, limit, value):
    app = opened("plan", limit=limit, **{key: value})
    assert not app.exception and UNEXPECTED not in said(app)


def test_a_tiny_model_has_a_size_to_choose(store):
    layer = sample_results.catalogue(1).layers[1].model_copy(update={"shape": (8, 64)})
    whole = sample_results.profile(1)
    small = whole.catalogue.model_copy(update={"layers": (layer,)})
    scores = tuple(m for m in whole.measurements if m.layer == layer.name)
    store.open_profile(whole.model_copy(update={"catalogue": small, "measurements": scores}))
    app = opened("plan", limit="weights")
    assert not app.exception and UNEXPECTED not in said(app)
    assert app.get_by_key("weight_mib").value == pytest.approx(0.01)
    assert numbers(app)["Weights"] == "1.0 KiB"


def test_a_stored_plan_with_formats_that_this_profile_lacks_opens(store, profile):
    plan = pipeline.make_plan(profile, REQUEST)
    request = plan.request.model_copy(update={"formats": ("int8", "int3_g64")})
    app = opened("plan", plan=store.save_plan(plan.model_copy(update={"request": request}), profile.id))
    assert app.get_by_key("plan_formats").value == ["int8"]
    assert not app.exception and UNEXPECTED not in said(app)


def test_no_plan_is_made_from_a_profile_around_a_plan(store, profile):
    plan = pipeline.make_plan(profile, REQUEST)
    around = store.open_profile(sample_results.around_profile(plan.assignments))
    app = opened("plan", profile=around.id)
    assert [info.value for info in app.info if "measured around a plan" in info.value]
    chooser = app.selectbox(key="choose_profile")
    assert chooser.value == profile.id and len(chooser.options) == 1
    assert app.query_params["profile"] == profile.id
    store.delete_profile(profile.id)
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
    assignments = dict(zip(table["Layer"], table["Format"], strict=True))
    won = frames.gains(profile, assignments)
    assert list(table[plan_table.GAIN]) == [won[layer][0] for layer in table["Layer"]]
    assert len(app.get("vega_lite_chart") or app.get("arrow_vega_lite_chart")) == 4


def test_exact_scores_leave_that_column_out(profile):
    assert plan_table.GAIN not in opened("plan").data_editor[0].value


def test_measuring_around_the_plan_asks_for_the_profiles_own_text(store, monkeypatch):
    profile = sample_results.estimated_profile()
    calibration = profile.calibration.model_copy(update={"seed": 7, "samples": 5000})
    profile = store.open_profile(profile.model_copy(update={"calibration": calibration, "dtype": "fp16"}))
    monkeypatch.setattr(jobs, "submit", lambda store, kind, request: store.create_job(kind, request.model_dump()))
    monkeypatch.setattr(jobs, "reap", lambda store: [])
    app = opened("plan", profile=profile.id)
    table = app.data_editor[0].value
    button(app, "Measure what giving back each layer wins").click().run()
    (job,) = store.jobs()
    asked = ProfileRequest(**job.params)
    assert asked.around == dict(zip(table["Layer"], table["Format"], strict=True))
    assert (asked.method, asked.model, asked.text) == ("exact", "smollm2", "python-docs")
    assert (asked.samples, asked.seq_len, asked.seed, asked.dtype) == (5000, 256, 7, "auto")
    assert app.query_params["job"] == job.id and "Profiling smollm2 around a plan" in said(app)
    store.finish_job(job.id, JobStatus.DONE, result={"profile_id": "some"})
    assert not button(app.run(), "See what giving back wins").disabled
    assert not opened("model", job=job.id).exception  # more samples than the form of the model page has


def test_simple_plans_stand_beside_the_plan(profile):
    app = opened("plan")
    table = next(frame.value for frame in app.dataframe if "Plan" in frame.value)
    assert list(table["Plan"]) == ["this plan", "uniform int8", "uniform int4_g64", "role rule", "guide's strategy"]


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
    assert table["Format"].to_dict() == plan.assignments


# ---------------------------------------------------------------------------------------------- results


def test_results_stand_beside_the_prediction_with_an_honest_verdict(store, saved_plan):
    measured = {"original": None, "uniform int8": 0.002, "uniform int4_g64": 0.27, "plan": 0.03}
    for variant, delta in measured.items():
        store.save_evaluation(sample_results.evaluation(variant, delta, 10**8), plan_id=saved_plan)
    app = opened("apply", plan=saved_plan)
    assert "beats uniform int4_g64" in said(app) and "is worse than uniform int8" in said(app)
    table = app.dataframe[0].value.set_index("Variant")
    assert list(table.index) == ["original", "plan", "uniform int4_g64", "uniform int8"]
    assert table.loc["plan", "Change"] == "+3.0 %"


def test_size_and_files_are_told_apart_and_notes_stand_under_the_table(store, saved_plan):
    packed = sample_results.evaluation("plan", 0.03, 90 * 2**20)
    packed = packed.model_copy(update={"file_bytes": 100 * 2**20, "notes": ("2 layers simulated",)})
    for evaluation in (sample_results.evaluation("original", None, 270 * 2**20), packed):
        store.save_evaluation(evaluation, plan_id=saved_plan)
    app = opened("apply", plan=saved_plan)
    table = app.dataframe[0].value.set_index("Variant")
    assert list(table.loc["plan", ["Size", "On disk"]]) == ["90.00 MiB", "100.00 MiB"]
    assert list(table.loc["original", ["Size", "On disk"]]) == ["270.00 MiB", "–"]
    assert "plan: 2 layers simulated" in said(app)


@pytest.mark.parametrize("page, key", [("apply", "eval_seq_len"), ("model", "seq_len")])
def test_sequences_are_no_longer_than_the_models_context(store, saved_plan, page, key):
    store.save_catalogue(sample_results.catalogue().model_copy(update={"max_context": 128}))
    app = opened(page)
    field = app.number_input(key=key)
    assert (field.value, field.max) == (128, 128)
    assert not opened(page, **{key: "5000"}).exception


def test_text_that_cannot_be_read_is_refused_before_applying(store, saved_plan):
    app = opened("apply", plan=saved_plan, text="file")
    app.text_input(key="path").set_value("/nowhere.txt").run()
    button(app, "Apply and evaluate").click().run()
    assert len(app.error) == 1 and "/nowhere.txt" in app.error[0].value
    assert store.jobs() == []


# ---------------------------------------------------------------------------------------------- history


def test_history_deletes_only_after_confirmation(store, profile, saved_plan):
    app = opened("history")
    app.selectbox(key="delete_profile").set_value(profile.id).run()
    assert "cannot be undone" in said(app)
    assert [p.id for p in store.profiles()] == [profile.id]
    button(app, "Delete this profile").click().run()
    assert store.profiles() == [] and store.plans() == []
    assert not app.exception


def test_history_renames_what_is_stored(store, profile, saved_plan):
    app = opened("history")
    app.text_input(key="new_name_plan").set_value("for the laptop")
    button(app, "Rename this plan").click().run()
    app.text_input(key="new_name_profile").set_value("demo")
    button(app, "Rename this profile").click().run()
    assert (store.plans()[0].name, store.profiles()[0].name) == ("for the laptop", "demo")
    assert not app.exception and not app.error


def test_history_says_how_profiles_were_measured_and_offers_no_plan_around_a_plan(store):
    plain = store.open_profile(sample_results.auto_profile())
    store.open_profile(sample_results.around_profile(pipeline.make_plan(plain, REQUEST).assignments))
    rows = {row["Method"]: row for row in opened("history").dataframe[0].value.to_dict("records")}
    assert rows["auto, 11 of 58 exact"]["Plan"] == f"plan?profile={plain.id}"
    assert rows["exact around a plan"]["Plan"] == ""


def test_history_links_reopen_what_they_name(profile, saved_plan):
    tables = [frame.value for frame in opened("history").dataframe]
    assert list(tables[0]["Scores"]) == [f"sensitivity?profile={profile.id}"]
    assert list(tables[1]["Results"]) == [f"apply?plan={saved_plan}"]
