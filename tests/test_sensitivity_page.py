"""The sensitivity page: what it says of exact, estimated and mixed scores, alone and around a plan."""

from __future__ import annotations

import pytest

from advisor import pipeline
from advisor.ui import frames
from tests import sample_results
from tests.page_driver import REQUEST, numbers, opened, said


@pytest.fixture
def store(data_folder):
    return pipeline.open_store()


@pytest.fixture
def profile(store):
    return store.open_profile(sample_results.profile())


def test_headline_numbers_are_those_of_the_profile(profile):
    shown = numbers(opened("sensitivity"))
    assert shown["Base perplexity"] == "18.40 ± 0.57"
    assert shown["Layers measured"] == "211 of 211"
    assert shown["Tokens scored"] == "2,040"


def test_a_profile_that_still_runs_shows_what_is_there(store):
    store.open_profile(sample_results.profile(measured=40))
    app = opened("sensitivity")
    assert numbers(app)["Layers measured"] == "20 of 211"
    assert not app.error and len(app.get("vega_lite_chart") or app.get("arrow_vega_lite_chart")) == 2


def test_a_profile_without_any_score_says_that_they_will_come(store):
    store.open_profile(sample_results.profile(measured=0))
    assert "Nothing measured yet" in said(opened("sensitivity"))
    assert "Nothing measured yet" in said(opened("plan"))


def test_the_link_keeps_format_and_measure(profile):
    app = opened("sensitivity", shown="int8", measure="delta_ppl_pct")
    assert app.get_by_key("choose_shown").value == "int8"
    assert app.get_by_key("choose_measure").value == "delta_ppl_pct"
    assert app.query_params["measure"] == "delta_ppl_pct"


def test_roles_stand_beside_what_the_guide_expects(profile):
    table = opened("sensitivity", shown="int4_g64").dataframe[0].value.set_index("Role")
    assert table.loc["Attention output", "Guide: least bits"] == 8
    kls = [m.kl for m in profile.measurements if m.format == "int4_g64" and m.layer.endswith("o_proj")]
    assert table.loc["Attention output", "Mean KL"] == pytest.approx(sum(kls) / len(kls))


def test_an_estimated_profile_says_so_and_shows_how_far_it_is(store):
    profile = sample_results.estimated_profile()
    halfway = sample_results.estimated_profile(sequences=8).measurements
    store.open_profile(profile.model_copy(update={"measurements": halfway}))
    app = opened("sensitivity")
    assert numbers(app)["Method"] == "Fisher, 4 draws"
    assert numbers(app)["Tokens scored"] == "2,040 of 4,080"
    assert "estimated from a few backward passes, with 4 labels drawn per token" in said(app)
    store.add_measurements(profile.id, profile.measurements)
    assert numbers(app.run())["Tokens scored"] == "4,080"


def test_an_auto_profile_tells_measured_from_estimated(store):
    store.open_profile(sample_results.auto_profile(exact=11))
    app = opened("sensitivity", shown="int8")
    assert numbers(app)["Method"] == "Auto, 11 of 58 exact"
    assert "6 of 29 exact in int8" in said(app) and "hollow bars are estimates" in said(app)
    table = app.dataframe[1].value
    assert (table["how"] == "measured exactly").sum() == 11
    assert "auto, 11 of 58 exact" in app.selectbox(key="choose_profile").options[0]


def test_scores_that_are_replaced_in_their_places_are_shown_at_once(store):
    """Estimates sharpen and auto replaces them: their number never changes."""
    profile = store.open_profile(sample_results.auto_profile(exact=11))
    app = opened("sensitivity", shown="int8", measure="kl")
    store.add_measurements(profile.id, sample_results.auto_profile(exact=20).measurements)
    app.run()
    assert numbers(app)["Method"] == "Auto, 20 of 58 exact"
    assert "10 of 29 exact in int8" in said(app)
    assert (app.dataframe[1].value["how"] == "measured exactly").sum() == 20


def test_warnings_on_the_text_stand_above_the_scores_and_its_numbers_below(store):
    store.open_profile(sample_results.estimated_profile(warnings=("The text looks random to the model: change it.",)))
    app = opened("sensitivity")
    assert [warning.value for warning in app.warning] == ["The text looks random to the model: change it."]
    assert (numbers(app)["Repeated"], numbers(app)["Distance from evaluation text"]) == ("2.1 %", "0.21 bits")


@pytest.mark.parametrize("make", [sample_results.estimated_profile, sample_results.auto_profile])
def test_estimates_can_be_read_around_a_stored_plan(store, make):
    profile = store.open_profile(make())
    assert opened("sensitivity").get_by_key("choose_measure").value == "kl"
    plan = pipeline.make_plan(profile, REQUEST)
    plan_id = store.save_plan(plan, profile.id, "five bits")
    app = opened("sensitivity", direction="won")
    assert app.selectbox(key="choose_plan").value == plan_id
    assert "gets its weights back" in said(app) and "What giving back wins" in said(app)
    assert not app.error and not app.exception
    table = app.dataframe[1].value
    assert dict(zip(table["layer"], table["format"], strict=True)) == plan.assignments
    won = frames.gains(profile, plan.assignments)
    assert list(table["kl"]) == [won[layer][0] for layer in table["layer"]]
    assert "Where it hurts" in said(opened("sensitivity", direction="alone"))


def test_without_a_plan_or_estimates_there_is_one_direction_only(store, profile):
    store.save_plan(pipeline.make_plan(profile, REQUEST), profile.id)
    assert "What giving back wins" not in said(opened("sensitivity", direction="won"))
    store.delete_profile(profile.id)
    store.open_profile(sample_results.estimated_profile())
    app = opened("sensitivity", direction="won")
    assert "What giving back wins" not in said(app) and not app.error


def test_a_plan_that_the_estimates_do_not_cover_alike_is_said_and_not_drawn(store):
    profile = sample_results.estimated_profile()
    plan = pipeline.make_plan(profile, REQUEST)
    shorter = sample_results.estimated_profile(sequences=8).measurements
    kept = [m for m in profile.measurements if m.format == "int8"] + [m for m in shorter if m.format != "int8"]
    stored = store.open_profile(profile.model_copy(update={"measurements": tuple(kept)}))
    store.save_plan(plan, stored.id)
    app = opened("sensitivity", direction="won")
    assert "do not cover every layer of this plan alike" in said(app) and "Where it hurts" in said(app)


def test_a_profile_around_a_plan_shows_its_own_gains(store):
    base = sample_results.profile(4)
    plan = pipeline.make_plan(base, REQUEST)
    around = store.open_profile(sample_results.around_profile(plan.assignments))
    app = opened("sensitivity", profile=around.id, measure="delta_ppl_pct")
    assert not app.error and not app.exception
    assert "gets its weights back" in said(app) and "Measured around a plan with" in said(app)
    assert numbers(app)["Layers measured"] == f"{len(around.measurements)} of {len(around.measurements)}"
    assert app.get_by_key("choose_measure").options == ["KL won", "Δ NLL won"]
    assert app.dataframe[1].value["kl"].min() < 0
    assert "Make a plan from these scores" not in [link.value for link in app.get("page_link")]
