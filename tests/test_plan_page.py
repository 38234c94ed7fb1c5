"""The plan page's what-if controls: deployments, limits, the load, wishes, the front and what is said of speed."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from advisor import knowledge, pipeline
from advisor.types import Budget, PlanRequest, Role
from advisor.ui import plan_controls, plan_limits, plan_presets, plan_table, wording
from tests import plan_pages, sample_results
from tests.page_driver import REQUEST, button, numbers, opened, said, sound

store, profile = plan_pages.store, plan_pages.profile


def reopened(store, profile, request: PlanRequest) -> AppTest:
    """The page as the link of a stored plan of this request opens it."""
    plan = pipeline.make_plan(profile, REQUEST).model_copy(update={"request": request})
    return opened("plan", plan=store.save_plan(plan, profile.id))


# ------------------------------------------------------------------------------------- deployments


@pytest.mark.parametrize("name", knowledge.scenarios())
def test_a_deployment_fills_the_fields_and_quotes_the_guide(profile, name):
    scenario = knowledge.scenarios()[name]
    app = opened("plan")
    app.selectbox(key="scenario").set_value(name).run()
    assert sound(app)
    assert app.selectbox(key="choose_device").value == scenario.hardware
    assert app.selectbox(key="choose_engine").value == scenario.engine
    loads = [app.number_input(key=key).value for key in ("gpus", "context", "sequences")]
    assert loads == [scenario.gpus, min(scenario.context, profile.catalogue.max_context), scenario.sequences]
    assert set(app.multiselect(key="plan_formats").value) == set(scenario.formats) & set(profile.formats)
    assert scenario.guide in said(app) and scenario.source in said(app)
    if scenario.max_ppl_increase is not None:
        assert app.slider(key="rise").value == pytest.approx(100 * scenario.max_ppl_increase)


def test_fields_can_be_changed_after_a_deployment_filled_them(profile):
    app = opened("plan")
    app.selectbox(key="scenario").set_value("production").run()
    app.number_input(key="sequences").set_value(7).run()
    app.selectbox(key="choose_device").set_value("h100-sxm-80gb").run()
    assert app.number_input(key="sequences").value == 7
    assert app.selectbox(key="choose_device").value == "h100-sxm-80gb"


def test_a_deployment_asks_for_no_context_beyond_the_models(profile):
    short = profile.model_copy(update={"catalogue": profile.catalogue.model_copy(update={"max_context": 512})})
    assert plan_presets.request_of(knowledge.scenarios()["consumer"], short).budget.context == 512


# ---------------------------------------------------------------------------------------- the load


def test_kv_bits_are_the_engines_own_and_others_fall_back_in_words(profile):
    assert opened("plan", engine="vllm", device="h100-sxm-80gb").error == []
    for engine in ("vllm", "transformers"):
        own = knowledge.find_engine(engine).kv_bits
        app = opened("plan", engine=engine, device="h100-sxm-80gb", kv_bits="5")
        assert sound(app)
        assert [group.options for group in app.button_group if group.key == "choose_kv_bits"] == [
            [str(bits) for bits in own]
        ]
        assert f"the link asks for `5`, which is not among the choices; shown instead: `{own[0]}`" in said(app)
    app = opened("plan", engine="transformers", device="h100-sxm-80gb", kv_bits="4")
    app.selectbox(key="choose_engine").set_value("vllm").run()
    assert "has no KV cache of 4 bits: planned with 16" in said(app) and "the link asks" not in said(app)


def test_gpus_that_do_not_divide_the_heads_are_refused_in_one_sentence(profile):
    app = opened("plan", engine="vllm", device="h100-sxm-80gb", gpus="7")
    assert sound(app) and len(app.error) == 1 and "7" in app.error[0].value
    assert app.number_input(key="gpus").value == 7


# --------------------------------------------------------------------------------------- the limits


def test_least_memory_keeps_the_rise_and_most_speed_keeps_both_limits(profile):
    app = opened("plan", goal="memory", rise="10")
    assert not app.error and float(numbers(app)["Change"].strip(" %").replace("−", "-")) <= 10
    smallest = float(numbers(app)["Average bits"])
    app = opened("plan", goal="speed", limit="bits", bits="9", rise="10")
    assert not app.error and smallest <= float(numbers(app)["Average bits"]) <= 9
    assert float(numbers(app)["Change"].strip(" %").replace("−", "-")) <= 10


def test_a_plan_of_exact_scores_is_said_to_be_proven(profile):
    app = opened("plan", limit="bits", bits="5")
    assert sound(app) and "Proven optimal by scores." in said(app)


def test_a_link_of_earlier_versions_still_limits_the_rise(profile):
    app = opened("plan", limit="ppl", rise="10")
    assert app.query_params["goal"] == "memory" and app.slider(key="rise").value == 10.0


def test_what_is_possible_stands_by_the_limit(profile):
    possible = pipeline.feasible_range(profile, REQUEST)
    app = opened("plan")
    low, high = possible.smallest.decided_bits, possible.largest.decided_bits
    assert f"Possible: {low:.2f} to {high:.2f} bits" in said(app)
    assert low <= float(app.select_slider(key="bits").options[0]) < low + 0.01


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "bits", "bits": "3"},
        {"limit": "memory", "memory": "0.5"},
        {"limit": "weights"},
        {"goal": "speed", "limit": "bits", "bits": "4.3", "rise": "0.5"},
    ],
)
def test_an_impossible_limit_says_by_how_much_and_one_click_makes_it_possible(profile, query):
    app = opened("plan", **query)
    if query == {"limit": "weights"}:
        app.number_input(key="weight_mib").set_value(3.0).run()
    assert len(app.error) == 1 and "Missing" in numbers(app)
    (allow,) = [b for b in app.button if b.label.startswith("Allow ")]
    allow.click().run()
    assert sound(app) and not app.error
    assert "Average bits" in numbers(app)


def test_the_refusal_of_the_most_speed_has_one_measure(profile):
    shown = numbers(opened("plan", goal="speed", limit="bits", bits="4.3", rise="0.5"))
    least, limit, missing = (shown[label] for label in ("Smallest possible", "Your limit", "Missing"))
    assert limit == "4.3 bits" and least.endswith(" bits") and missing.endswith(" bits")
    assert float(least.split()[0]) - 4.3 == pytest.approx(float(missing.split()[0]), abs=0.011)


def test_a_lock_raises_the_slider_to_what_is_possible_and_frees_it_again(profile):
    app = opened("plan", bits="5")
    app.text_input(key="lock_pattern").set_value("blocks 0-1").run()
    app.selectbox(key="lock_format").set_value("int8").run()
    button(app, "Hold").click().run()
    slider = app.select_slider(key="bits")
    assert sound(app) and not app.error and f"Raised from 5 to {slider.value:g} bits" in said(app)
    assert slider.value == float(slider.options[0]) == float(numbers(app)["Average bits"]) > 5
    app.run()
    assert app.select_slider(key="bits").value == slider.value and "Raised from 5 " in said(app)
    button(app, "Clear 1 lock").click().run()
    assert app.select_slider(key="bits").value == 5 and "Raised" not in said(app)


def test_a_slider_that_was_moved_after_it_was_raised_stays_where_it_is(profile):
    app = opened("plan", bits="5")
    app.multiselect(key="plan_formats").set_value(["int8"]).run()
    assert "Raised from 5 " in said(app) and not app.error
    app.select_slider(key="bits").set_value(9.0).run()
    app.multiselect(key="plan_formats").set_value([]).run()
    assert app.select_slider(key="bits").value == 9 and "Raised" not in said(app)


def test_the_least_of_the_slider_is_possible(profile):
    app = opened("plan")
    slider = app.select_slider(key="bits")
    slider.set_value(float(slider.options[0])).run()
    assert sound(app) and not app.error


def test_the_slider_keeps_its_value_when_what_is_possible_widens(store):
    profile = store.open_profile(sample_results.profile(4, formats=("int8", "int4_g64", "int3_g64")))
    app = opened("plan", profile=profile.id)
    app.multiselect(key="plan_formats").set_value(["int8", "int4_g64"]).run()
    app.select_slider(key="bits").set_value(6.5).run()
    app.multiselect(key="plan_formats").set_value([]).run()
    assert app.select_slider(key="bits").value == 6.5 and not app.error


# ---------------------------------------------------------------------------------------- the wishes


def test_what_is_left_out_keeps_the_models_dtype_and_comes_back(profile):
    app = opened("plan", bits="12")
    app.text_input(key="lock_pattern").set_value("blocks 0-1").run()
    button(app, "Hold").click().run()
    table = app.data_editor[0].value.set_index("Layer")
    inside = table.index.str.contains(r"layers\.[01]\.")
    assert set(table.loc[inside, "Format"]) == {"BF16"} and table["Locked"].sum() == inside.sum()
    button(app, "Clear 1 exclusion").click().run()
    assert app.data_editor[0].value["Locked"].sum() == 0


def test_one_of_several_wishes_can_be_freed(profile):
    app = opened("plan", bits="13")
    for pattern, fmt in (("blocks 0-1", ""), ("blocks 3", "int8")):
        app.text_input(key="lock_pattern").set_value(pattern).run()
        app.selectbox(key="lock_format").set_value(fmt).run()
        button(app, "Hold").click().run()
    next(b for b in app.button if b.key == "free_BF16, left out_blocks 0-1").click().run()
    table = app.data_editor[0].value
    assert set(table["Layer"][table["Locked"]].str.extract(r"layers\.(\d)")[0]) == {"3"}


def test_wishes_that_contradict_each_other_are_refused_and_not_kept(profile):
    app = opened("plan")
    for fmt in ("int8", ""):
        app.text_input(key="lock_pattern").set_value("blocks 0-1").run()
        app.selectbox(key="lock_format").set_value(fmt).run()
        button(app, "Hold").click().run()
    assert any("two formats" in error.value for error in app.error)
    assert "Clear 1 lock" in [b.label for b in app.button]


def test_floors_of_roles_are_tightened_and_lifted(profile):
    app = opened("plan", floors="enforce", bits="9")
    qkv = app.data_editor[0].value.query("Role == 'Attention Q/K/V'")
    assert set(qkv["Format"]) <= {"INT8 per channel", "BF16"}
    app.selectbox(key="floor_mlp_down").set_value("8").run()
    app.selectbox(key="floor_attention_qkv").set_value("0").run()
    table = app.data_editor[0].value.set_index("Role")
    assert set(table.loc["MLP down", "Format"]) <= {"INT8 per channel", "BF16"}
    app.select_slider(key="bits").set_value(6.5).run()
    assert not app.error and "INT4 group 64" in set(
        app.data_editor[0].value.set_index("Role").loc["Attention Q/K/V", "Format"]
    )


def test_a_stored_plan_reopens_with_all_its_wishes_and_its_load(store, profile):
    request = PlanRequest(
        hardware="h100-sxm-80gb",
        engine="vllm",
        budget=Budget(weight_bits=12.0, max_ppl_increase=0.08, gpus=3, sequences=5, kv_bits=8, context=1000),
        locks={"blocks 3": "int8"},
        excluded=("blocks 0-1",),
        role_floors="enforce",
        floor_bits={Role.MLP_DOWN: 6},
    )
    app = reopened(store, profile, request)
    assert sound(app) and not app.error
    assert [app.number_input(key=key).value for key in ("gpus", "sequences", "context")] == [3, 5, 1000]
    assert (app.select_slider(key="bits").value, app.slider(key="rise").value) == (12.0, pytest.approx(8.0))
    assert (app.query_params["goal"], app.query_params["kv_bits"]) == ("speed", "8")
    assert app.selectbox(key="floor_mlp_down").value == "6"
    assert "Clear 1 lock and 1 exclusion" in [b.label for b in app.button]


# ------------------------------------------------------------------------------- front, speed, device


@pytest.mark.parametrize("limit", ["bits", "memory", "weights", "ppl"])
def test_a_click_on_the_front_takes_its_point_as_the_limit(profile, limit):
    """The driver cannot click on charts: it is told what was selected."""
    wanted = REQUEST.model_copy(update={"budget": plan_limits.measured_in(limit, _device(), {})})
    front = pipeline.pareto_front(profile, wanted, points=0, most=20)
    point = front.points[5]

    def clicked(front, controls):
        import streamlit as st

        from advisor.ui import front_chart, plan_front

        st.session_state[plan_front.KEY] = {"selection": {front_chart.PICK: [{front_chart.NUMBER: 5}]}}
        plan_front.take(front, controls)

    controls = plan_controls.Controls(wanted, _device(), knowledge.find_engine(wanted.engine), limit)
    held = AppTest.from_function(clicked, args=(front, controls)).run().session_state
    budget = {
        "bits": lambda: Budget(weight_bits=held["last_bits"]),
        "memory": lambda: Budget(vram_bytes=int(held["memory"] * 2**30)),
        "weights": lambda: Budget(weight_bytes=int(held["last_weight_mib"] * 2**20)),
        "ppl": lambda: Budget(max_ppl_increase=held["rise"] / 100),
    }[limit]()
    plan = pipeline.make_plan(profile, wanted.model_copy(update={"budget": budget}))
    # Fields have decimals, so a little more or less than the point's may be used.
    assert plan.memory.decided_bits == pytest.approx(point.decided_bits, abs=0.1)
    if limit != "ppl":
        assert plan.predicted.kl <= point.predicted.kl * (1 + 1e-9)


def _device():
    return knowledge.find_hardware(REQUEST.hardware)


def test_the_page_draws_the_front_and_takes_no_point_by_itself(profile):
    app = opened("plan")
    assert "click a point" in said(app) and app.select_slider(key="bits").value == 5.0


def test_speed_is_said_to_be_an_estimate_and_unknown_where_nothing_is_stated(profile):
    app = opened("plan")
    assert "tokens/s" in numbers(app)["Speed, estimated"] and "an estimate by a roofline" in said(app)
    silent = next(name for name, row in knowledge.hardware().items() if row.bandwidth_gb_s is None)
    app = opened("plan", device=silent)
    assert sound(app)
    if not app.error:
        assert numbers(app)["Speed, estimated"] == "not known" and "Not stated: the memory bandwidth" in said(app)


def test_the_device_says_what_it_does_with_each_format_beside_the_guide(profile):
    app = opened("plan", device="h100-sxm-80gb")
    table = next(frame.value for frame in app.dataframe if "The guide says" in frame.value).set_index("Format")
    device = knowledge.find_hardware("h100-sxm-80gb")
    assert table.loc["INT4 group 64", device.label].startswith("weight only")
    assert table.loc["INT4 group 64", "The guide says"] == "native (differs)"
    assert table.loc["INT8 per channel", "The guide says"] == "native"


def test_the_table_names_each_runner_up_and_what_is_a_close_call(profile):
    plan = pipeline.make_plan(profile, REQUEST)
    table = opened("plan").data_editor[0].value.set_index("Layer")
    for layer in plan.assignments:
        reason = plan.reasons[layer]
        assert table.loc[layer, plan_table.RUNNER_UP].startswith(f"{wording.format_label(reason.runner_up.format)}: ")
        word = plan_table.CLOSE if reason.within_noise else plan_table.CLEAR
        assert table.loc[layer, plan_table.CHOICE] == word
