"""Links to the plan page: stored plans reopen as saved, and odd numbers never break the page."""

from __future__ import annotations

from itertools import pairwise

import pytest

from advisor import pipeline
from advisor.types import Budget
from advisor.ui import plan_limits
from advisor.ui.common import UNEXPECTED
from tests import sample_results
from tests.page_driver import REQUEST, button, numbers, opened, said


@pytest.fixture
def store(data_folder):
    return pipeline.open_store()


@pytest.fixture
def profile(store):
    return store.open_profile(sample_results.profile())


def test_a_saved_plan_is_stored_as_shown_and_reopens_by_its_link(store, profile):
    app = opened("plan", bits="4.6")
    app.text_input(key="plan_name").set_value("small").run()
    button(app, "Save plan").click().run()
    (summary,) = store.plans()
    assert (summary.name, summary.profile_id) == ("small", profile.id)
    assert f"{summary.decided_bits:.2f}" == numbers(app)["Average bits"]
    reopened = opened("plan", plan=summary.id)
    assert reopened.get_by_key("bits").value == pytest.approx(4.6)
    assert reopened.text_input(key="plan_name").value == "small"
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


def test_a_stored_plan_that_is_opened_is_named_while_its_settings_stand(store, profile):
    plan = pipeline.make_plan(profile, REQUEST)
    other = store.open_profile(sample_results.profile(fingerprint="cd" * 32))
    store.rename_profile(other.id, "other")
    app = opened("plan", profile=profile.id, plan=store.save_plan(plan, profile.id, "five bits"))
    caption = "Settings of the stored plan **five bits**"
    assert caption in said(app)
    app.select_slider(key="bits").set_value(6.0).run()
    assert caption not in said(app)
    app.select_slider(key="bits").set_value(5.0).run()
    assert caption in said(app)
    app.selectbox(key="choose_profile").set_value(other.id).run()
    assert caption not in said(app) and app.select_slider(key="bits").value == 5.0
    assert "Settings of the stored plan" not in said(opened("plan"))


def test_a_stored_plan_with_formats_that_this_profile_lacks_opens(store, profile):
    plan = pipeline.make_plan(profile, REQUEST)
    request = plan.request.model_copy(update={"formats": ("int8", "int3_g64")})
    app = opened("plan", plan=store.save_plan(plan.model_copy(update={"request": request}), profile.id))
    assert app.get_by_key("plan_formats").value == ["int8"]
    assert not app.exception and UNEXPECTED not in said(app)


def test_a_link_reproduces_what_people_decided(profile):
    app = opened("plan", bits="6")
    app.text_input(key="lock_pattern").set_value("blocks 0-1").run()
    app.selectbox(key="lock_format").set_value("int8").run()
    button(app, "Hold").click().run()
    app.text_input(key="lock_pattern").set_value("blocks 28-29").run()
    app.selectbox(key="lock_format").set_value("").run()
    button(app, "Hold").click().run()
    app.selectbox(key="floor_mlp_down").set_value("8").run()
    app.multiselect(key="plan_formats").set_value(["int8", "int4_g64"]).run()
    link = dict(app.query_params)
    assert (link["lock"], link["exclude"], link["floor"]) == ("blocks 0-1=int8", "blocks 28-29", "mlp_down=8")
    assert link["plan_formats"] == ["int8", "int4_g64"]
    other = opened("plan", **link)
    assert numbers(other) == numbers(app)
    assert other.multiselect(key="plan_formats").value == ["int8", "int4_g64"]
    assert other.selectbox(key="floor_mlp_down").value == "8"
    button(other, "Clear 1 lock and 1 exclusion").click().run()
    assert "lock" not in other.query_params and "exclude" not in other.query_params


@pytest.mark.parametrize(
    "entry", [{"lock": "nothing"}, {"lock": "x=int8"}, {"lock": "[=int8"}, {"floor": "mlp_down=x"}]
)
def test_a_link_with_odd_wishes_never_breaks_the_page(profile, entry):
    app = opened("plan", **entry)
    assert not app.exception and UNEXPECTED not in said(app)


def test_each_thing_that_a_link_asks_for_in_vain_is_said_whatever_else_it_asks_for(profile):
    app = opened(
        "plan",
        lock=["nothing", "x=int8", "[=int8", "down_proj=int9", "blocks 0-1=int8"],
        exclude=["y", "blocks 28-29"],
        floor=["mlp_down=99", "mlp_down=x", "none=8"],
        plan_formats="int9",
        bits="6",
    )
    refused = {info.value.partition(":")[0]: info.value for info in app.info}
    for label, entries in {
        "*Locks*": ["nothing", "x=int8", "[=int8", "down_proj=int9"],
        "*Exclusions*": ["y"],
        "*Floor of each role*": ["mlp_down=99", "mlp_down=x", "none=8"],
        "*Formats to choose from*": ["int9"],
    }.items():
        assert "asks for " + ", ".join(f"`{entry}`" for entry in entries) + ", which" in refused[label]
    assert not app.error and "Average bits" in numbers(app)
    assert (app.query_params["lock"], app.query_params["exclude"]) == ("blocks 0-1=int8", "blocks 28-29")


def test_who_turns_to_speed_is_asked_for_no_size_yet(profile):
    app = opened("plan", bits="5")
    next(group for group in app.button_group if group.key == "choose_goal").set_value("speed").run()
    assert app.query_params["limit"] == "memory" and not app.error
    linked = opened("plan", goal="speed", limit="bits", bits="8", rise="20")
    assert linked.query_params["limit"] == "bits"


def test_a_deployment_that_was_changed_since_says_so_and_can_be_filled_in_again(profile):
    app = opened("plan", scenario="consumer")
    device = app.query_params["device"]
    assert "The guide:" in said(app)
    app.selectbox(key="choose_device").set_value("h100-sxm-80gb").run()
    assert "The guide:" not in said(app) and "were changed since" in said(app)
    button(app, "Fill in again").click().run()
    assert app.query_params["device"] == device and "The guide:" in said(app)


def test_steps_of_bits_are_finest_where_most_is_decided():
    steps = plan_limits.bit_steps(4.26, 16.0)
    assert (steps[0], steps[1], steps[-1]) == (4.26, 4.3, 16.0) and steps == sorted(set(steps))
    gaps = [round(after - before, 2) for before, after in pairwise(steps[1:])]
    assert gaps == sorted(gaps) and set(gaps) == {0.05, 0.1, 0.5}
    most = plan_limits.bit_steps(2.0, 16.0)
    assert sum(3 <= step <= 6 for step in most) > len(most) / 2


def test_a_link_asks_for_bits_between_the_steps_and_gets_exactly_those(profile):
    app = opened("plan", bits="4.625")
    field = app.select_slider(key="bits")
    assert field.value == 4.625 and "4.625" in field.options
    field.set_value(4.65).run()
    assert app.select_slider(key="bits").value == 4.65 and not app.error
    assert opened("plan", bits="5.0").select_slider(key="bits").value == 5.0


@pytest.mark.parametrize("limit, key, moved", [("bits", "bits", 6.5), ("weights", "weight_mib", 3.0)])
def test_a_link_has_the_size_that_is_shown_whoever_chose_it(profile, limit, key, moved):
    app = opened("plan", limit=limit, exclude="down_proj")
    field = app.get_by_key(key)
    assert float(app.query_params[key]) == pytest.approx(field.value)
    # The default of another state: without it in the link this would be another plan.
    next(one for one in app.button if one.label == "Clear 1 exclusion").click().run()
    assert app.get_by_key(key).value == field.value == opened("plan", **app.query_params).get_by_key(key).value
    app.get_by_key(key).set_value(moved).run()
    assert float(app.query_params[key]) == opened("plan", **app.query_params).get_by_key(key).value == moved


def test_going_round_what_is_looked_for_keeps_the_limit(profile):
    app = opened("plan", limit="weights", weight_mib="3")
    for goal in ("memory", "speed", "loss"):
        next(group for group in app.button_group if group.key == "choose_goal").set_value(goal).run()
    assert (app.query_params["limit"], app.get_by_key("weight_mib").value) == ("weights", 3.0)


def test_a_stored_plan_that_is_opened_after_looking_for_speed_keeps_its_own_limit(store, profile):
    app = opened("plan", limit="bits", bits="6.5")
    next(group for group in app.button_group if group.key == "choose_goal").set_value("speed").run()
    request = REQUEST.model_copy(update={"budget": Budget(vram_bytes=2**31)})
    app.query_params["plan"] = store.save_plan(pipeline.make_plan(profile, request), profile.id)
    app.run()
    assert (app.query_params["goal"], app.query_params["limit"]) == ("loss", "memory")
