"""Tasks, speed and overlapping windows on the page: what is chosen is what is asked for, what was measured is shown."""

from streamlit.testing.v1 import AppTest

from advisor.types import EvaluationOptions, Speed, Spread, TaskScore
from tests import sample_results
from tests.page_driver import opened, said
from tests.test_pages import profile, saved_plan, store  # noqa: F401 - fixtures


def form(length: int = 64) -> AppTest:
    def draw(length):
        import streamlit as st

        from advisor.ui import evaluation_options

        st.session_state["found"] = evaluation_options.choose(length)

    return AppTest.from_function(draw, args=(length,)).run()


def test_nothing_more_is_measured_unless_it_is_chosen():
    assert form().session_state["found"] == EvaluationOptions()


def test_what_is_chosen_is_asked_for_with_paths_that_any_process_finds():
    app = form()
    app.multiselect(key="eval_tasks").set_value(["mmlu", "arc_easy"])
    app.text_input(key="eval_tasks_from").set_value("own/tasks")
    app.number_input(key="eval_stride").set_value(16)
    app.toggle(key="eval_speed").set_value(True).run()
    found = app.session_state["found"]
    assert (found.tasks, found.limit, found.stride, found.speed) == (("mmlu", "arc_easy"), 100, 16, True)
    assert found.tasks_from.startswith("/") and found.tasks_from.endswith("/own/tasks")


def test_a_stride_stays_below_the_length_of_a_window():
    app = form()
    assert app.number_input(key="eval_stride").max == 63


def test_tasks_and_speed_stand_beside_each_other(store, saved_plan):  # noqa: F811
    spread = Spread(median=20.0, low=18.0, high=21.0)
    speed = Speed(
        prompt_tokens=224,
        new_tokens=32,
        runs=5,
        prefill_tokens_per_s=spread,
        decode_tokens_per_s=spread,
        first_token_s=spread,
        peak_memory_bytes=2**30,
        memory_of="process",
        device="cpu",
    )
    for variant, value, change in (("original", 0.5, None), ("plan", 0.46, -0.04)):
        score = TaskScore(
            task="arc_easy", metric="acc", value=value, stderr=0.05, samples=100, change=change, change_stderr=0.02
        )
        found = sample_results.evaluation(variant, None if change is None else 0.03, 10**8)
        found = found.model_copy(update={"tasks": (score,), "speed": speed, "kl_p99": 0.4, "kl_max": 2.5})
        store.save_evaluation(found, plan_id=saved_plan)
    app = opened("apply", plan=saved_plan)
    perplexities, tasks, speeds = (frame.value for frame in app.dataframe)
    assert list(perplexities["KL, largest"]) == ["2.500", "2.500"]
    (row,) = tasks.to_dict("records")
    assert row["original"] == "0.500 ± 0.050" and row["plan"] == "0.460 ± 0.050 (−0.040 ± 0.020)"
    assert list(speeds["Decoding, tokens/s"]) == ["20.0 (18.0 to 21.0)"] * 2
    assert list(speeds["Memory of the process"]) == ["1.00 GiB"] * 2
    assert "paired document by document" in said(app)
