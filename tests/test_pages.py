"""Every page's states, run by streamlit's own test driver over a real database and real jobs."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from streamlit.testing.v1 import AppTest

from advisor import pipeline
from advisor.ui.common import PAGES, UNEXPECTED
from tests import sample_results
from tests.page_driver import REQUEST, ROOT, button, opened, said


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


# ---------------------------------------------------------------------------------------------- results


def test_results_stand_beside_the_prediction_with_an_honest_verdict(store, saved_plan):
    measured = {"original": None, "uniform int8": 0.002, "uniform int4_g64": 0.27, "plan": 0.03}
    for variant, delta in measured.items():
        store.save_evaluation(sample_results.evaluation(variant, delta, 10**8), plan_id=saved_plan)
    app = opened("apply", plan=saved_plan)
    assert "beats uniform INT4 group 64" in said(app) and "is worse than uniform INT8 per channel" in said(app)
    table = app.dataframe[0].value.set_index("Variant")
    assert list(table.index) == ["original", "plan", "uniform INT4 group 64", "uniform INT8 per channel"]
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


def test_the_page_recommends_a_method_with_its_reason_and_compares_all(store, profile):
    request = REQUEST.model_copy(update={"engine": "vllm"})
    plan = store.save_plan(pipeline.make_plan(profile, request), profile.id, "for vLLM")
    app = opened("apply", plan=plan)
    assert app.selectbox(key="choose_method").options == ["Recommended: GPTQ", "Round to nearest", "GPTQ", "AWQ"]
    assert "Recommended, since INT4 group 64 loses enough" in said(app)
    assert list(app.table[0].value.index)[:2] == ["Round to nearest", "GPTQ"]
    assert opened("apply", plan=plan, method="awq").selectbox(key="choose_method").value == "awq"
    quanto = opened("apply", plan=plan, to="quanto")
    assert [box.key for box in quanto.selectbox if box.key == "choose_method"] == [] and not quanto.exception


def test_text_that_cannot_be_read_is_refused_before_applying(store, saved_plan):
    app = opened("apply", plan=saved_plan, text="file")
    app.text_input(key="path").set_value("/nowhere.txt").run()
    button(app, "Apply and evaluate").click().run()
    assert len(app.error) == 1 and "/nowhere.txt" in app.error[0].value
    assert store.jobs() == []


# ---------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize("name", ["model", "plan", "apply", "blind", "history"])
def test_formats_engines_and_devices_are_called_by_their_labels(store, profile, name):
    request = REQUEST.model_copy(update={"engine": "vllm"})
    plan_id = store.save_plan(pipeline.make_plan(profile, request), profile.id)
    for variant, loss in {"original": None, "plan": 0.02, "uniform int4_g64": 0.2}.items():
        store.save_evaluation(sample_results.evaluation(variant, loss, 10**8), plan_id)
    app = opened(name, device="rtx-4090", engine="vllm", **({"plan": plan_id} if name != "plan" else {}))
    words = [said(app), *(f"{one.label} {one.value} {one.help}" for one in app.metric)]
    words += [option for box in app.selectbox for option in box.options]
    words += [table.value.to_csv(index=False) for table in app.dataframe]
    raw = re.compile(r"(?<![\w./=&-])(?:vllm|rtx-4090|int8|int4_g64)(?![\w/=-])")
    assert [line for line in "\n".join(words).splitlines() if raw.search(line)] == []
