"""The sensitivity page: what it says of exact, estimated and mixed scores, alone and around a plan."""

from __future__ import annotations

import io
import re
import sys

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from advisor import estimates, jobs, knowledge, pipeline
from advisor.types import Progress
from advisor.ui import chart_parts, common, frames, score_tables, wording
from tests import sample_results
from tests.page_driver import REQUEST, labels, numbers, opened, said


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
    app = opened("sensitivity", shown="int4_g64")
    table = app.table[-1].value.set_index("Role")
    assert table.loc["Attention output", "Guide: least bits"] == "8"
    kls = [m.kl for m in profile.measurements if m.format == "int4_g64" and m.layer.endswith("o_proj")]
    assert table.loc["Attention output", "Mean KL"].startswith(f"{sum(kls) / len(kls):.4f}"[:5])
    assert "As the guide expects: Embedding above" in said(app)
    by_bytes = said(opened("sensitivity", shown="int4_g64", measure="kl_per_mib"))
    assert "nats for each MiB that it saves" in by_bytes and "nats a layer" not in by_bytes


def test_the_card_tells_all_of_the_layer_in_the_link(profile):
    name = "model.layers.29.mlp.down_proj"
    app = opened("sensitivity", layer=name)
    assert app.selectbox(key="choose_layer").value == name and app.query_params["layer"] == name
    rows = app.table[0].value.set_index("Format")
    assert list(rows.index) == ["BF16 (original)", "INT8 per channel", "INT4 group 64"]
    of_int4 = {m.layer: m.kl for m in profile.measurements if m.format == "int4_g64"}
    assert (
        rows.loc["INT4 group 64", "Rank by KL"] == f"{sorted(of_int4.values())[::-1].index(of_int4[name]) + 1} of 211"
    )
    score = next(m for m in profile.measurements if (m.layer, m.format) == (name, "int4_g64"))
    assert rows.loc["INT4 group 64", "KL divergence"] == wording.with_error(score.kl, score.kl_stderr)
    assert rows["Size"].tolist() == ["1.69 MiB", "865.1 KiB", "459.0 KiB"]
    assert "**medium** sensitivity, at least 4 bits" in said(app) and "No plan is chosen" in said(app)


def test_the_card_of_estimates_tells_what_ranks_beyond_kl_with_its_error(store):
    profile = store.open_profile(sample_results.estimated_profile())
    score = next(m for m in profile.measurements if m.format == "int4_g64")
    app = opened("sensitivity", layer=score.layer)
    shown = app.table[0].value.set_index("Format").loc["INT4 group 64", "Δ NLL − KL"]
    error = estimates.first_order_stderr(score)
    assert shown[1:] == wording.with_error(abs(score.delta_nll - score.kl), error)
    assert "ranked by what stands out of its error" in said(app)
    store.delete("profile", profile.id)
    store.open_profile(sample_results.profile(4))  # exact scores are ranked by KL alone
    assert "Δ NLL − KL" not in opened("sensitivity", layer=score.layer).table[0].value


def test_the_card_explains_the_nats_of_reasons_that_tell_some(store):
    profile = store.open_profile(sample_results.estimated_profile())
    plan = store.save_plan(pipeline.make_plan(profile, REQUEST), profile.id)
    told = {
        layer: "Formats are ranked by twice the KL" in said(opened("sensitivity", layer=layer, plan=plan))
        for layer in ("model.embed_tokens", "model.layers.0.mlp.down_proj")
    }
    assert told == {"model.embed_tokens": False, "model.layers.0.mlp.down_proj": True}


def test_without_a_layer_in_the_link_the_most_sensitive_one_is_told(profile):
    worst = max((m for m in profile.measurements if m.format == "int4_g64"), key=lambda m: m.kl).layer
    for query in ({}, {"layer": "of.another.model"}):
        assert opened("sensitivity", shown="int4_g64", **query).query_params["layer"] == worst


def test_a_layer_chosen_by_keyboard_or_by_a_click_is_told_and_in_the_link(profile):
    """The driver cannot click on charts: it is told what was selected."""
    app = opened("sensitivity")
    app.selectbox(key="choose_layer").set_value("model.layers.3.self_attn.q_proj").run()
    assert app.query_params["layer"] == "model.layers.3.self_attn.q_proj"
    assert "`model.layers.3.self_attn.q_proj` · Attention Q/K/V, block 3" in said(app)

    def clicked(*marks):
        from unittest.mock import ANY

        import streamlit as st

        from advisor.ui import chart_parts, layer_card

        drawn, clicks = layer_card.clickable("map", "the.first")
        st.session_state[clicks["key"]] = {"selection": {chart_parts.PICK: list(marks)}}
        clicks["on_select"]()
        # What the browser framed itself is not drawn anew; what was chosen elsewhere is, also where it was before.
        st.session_state["same"] = layer_card.clickable("map", "the.clicked") == (drawn, clicks | {"on_select": ANY})
        st.session_state["anew"] = layer_card.clickable("map", "the.first")[1]["key"] != clicks["key"]

    picked = AppTest.from_function(clicked, args=({chart_parts.PICKED: "the.clicked"},)).run()
    assert not picked.exception and picked.query_params["layer"] == "the.clicked"
    assert picked.session_state["same"] and picked.session_state["anew"]
    for marks in ((), ({chart_parts.PICKED: None},)):  # beside all marks, and on a line
        beside = AppTest.from_function(clicked, args=marks).run()
        assert not beside.exception and "layer" not in beside.query_params and not beside.session_state["same"]


def test_the_card_leads_to_the_reason_on_the_plan_page(store, profile):
    plan = pipeline.make_plan(profile, REQUEST)
    plan_id = store.save_plan(plan, profile.id, "five bits")
    name = "model.layers.7.mlp.up_proj"
    app = opened("sensitivity", layer=name)
    reason, label = plan.reasons[name].text, knowledge.find_format(plan.assignments[name]).label
    assert f"In this plan: {reason.replace(label, f'**{label}**', 1)}" in said(app)
    app = opened("plan", profile=profile.id, plan=plan_id, why=name)
    assert app.selectbox(key="choose_why").value == name
    assert not scrolling(app)
    # The card's own link lands on the reason, and the way back lands on the card.
    app = opened("plan", profile=profile.id, plan=plan_id, why=name, at="why")
    assert app.selectbox(key="choose_why").value == name and scrolling(app) == ["why_format"]
    assert "at" not in app.query_params and not scrolling(app.run())
    (back,) = [link.proto for link in app.get("page_link") if link.value == "This layer's scores beside all others"]
    assert f"layer={name}" in back.query_string
    app = opened("sensitivity", profile=profile.id, layer=name, at="card")
    assert scrolling(app) == ["layer_card"] and not scrolling(app.run())
    assert reason.replace(label, f"**{label}**", 1) in said(opened("plan", profile=profile.id, plan=plan_id, why=name))


def test_who_comes_from_a_plan_that_is_not_saved_is_shown_no_other_one(store, profile):
    name = "model.layers.7.mlp.up_proj"
    plan_id = store.save_plan(pipeline.make_plan(profile, REQUEST), profile.id, "five bits")
    app = opened("plan", profile=profile.id, bits="4.5", why=name)
    (link,) = [link.proto for link in app.get("page_link") if link.value == "This layer's scores beside all others"]
    assert "plan=unsaved" in link.query_string
    (reason,) = [text.value for text in app.markdown if text.value.startswith(("**INT", "Kept"))]
    for query in ({"plan": "unsaved"}, {}):  # by the link, and by the menu
        app.switch_page(common.PAGES["sensitivity"])
        app.query_params.clear()
        app.query_params.update(profile=profile.id, layer=name, **query)
        app.run()
        assert f"In this plan: {reason}" in said(app)
        (back,) = [link.proto for link in app.get("page_link") if "on the plan page" in link.value]
        assert f"why={name}" in back.query_string and "plan=" not in back.query_string
    # In another browser there is no such plan.
    app = opened("sensitivity", profile=profile.id, layer=name, plan="unsaved")
    assert "In this plan" not in said(app) and "No plan is chosen" in said(app) and not app.info
    app.selectbox(key="choose_plan").set_value(plan_id).run()
    assert "In this plan" in said(app)


def scrolling(app) -> list[str]:
    """The containers that the page scrolls to."""
    bodies = [element.proto.body for element in app.get("html")]
    return [key for body in bodies for key in re.findall(r'querySelector\("\.st-key-(\w+)"\)', body)]


def test_a_layer_that_is_not_measured_yet_has_a_card_with_its_sizes(store):
    store.open_profile(sample_results.profile(measured=40))
    app = opened("sensitivity", layer="model.layers.29.mlp.down_proj", ranked="Where bytes are cheap and where dear")
    assert not app.error and not app.exception
    assert "not measured yet" in said(app) and "So far: 20 of 211 layers" in said(app)
    assert app.table[0].value["Size"].tolist() == ["1.69 MiB"]


@pytest.mark.parametrize("measure", frames.MEASURES)
@pytest.mark.parametrize("make", [sample_results.profile, sample_results.auto_profile])
def test_loss_stands_against_size_by_every_measure(store, make, measure):
    store.open_profile(make(4))
    app = opened("sensitivity", ranked="Where bytes are cheap and where dear", measure=measure)
    assert not app.error and not app.exception and "The dashed line is the mean price" in said(app)


def test_the_page_says_how_to_see_the_other_direction(store, profile):
    assert "measure around it" in said(opened("sensitivity"))
    store.delete("profile", profile.id)
    store.open_profile(sample_results.estimated_profile())
    assert "save a plan made from these scores" in said(opened("sensitivity"))


def test_a_profile_that_a_job_still_measures_says_so(store, profile, tmp_path):
    assert "Still being measured" not in said(opened("sensitivity"))
    sleeper = [sys.executable, "-c", "import time; time.sleep(120)"]
    job = jobs.submit(store, "profile", {"model": "smollm2"}, command=sleeper, folder=tmp_path)
    assert store.claim_job(job.id, job.pid)
    store.report(job.id, Progress(stage="measure", done=1, total=2, subject=profile.id))
    assert "Still being measured" in said(opened("sensitivity"))
    store.delete("profile", profile.id)
    assert "**Being measured.**" in said(opened("sensitivity")) and "**Being measured.**" in said(opened("plan"))
    jobs.cancel(store, job.id, force=True)
    assert "easured.**" not in said(opened("sensitivity"))
    assert "`gone`, which is no longer stored" in said(opened("plan", profile="gone"))


def test_the_scores_download_as_a_sheet_of_every_measure(profile):
    sheet = pd.read_csv(io.StringIO(score_tables.csv(frames.profile_frame(profile))))
    assert len(sheet) == len(profile.measurements)
    assert list(sheet["kl_nats"]) == pytest.approx([m.kl for m in profile.measurements])
    assert sheet["block"].max() == 29 and sheet["block"].isna().sum() == 2
    assert (sheet["original_bytes"] == 2 * sheet["parameters"]).all()


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
    assert "6 of 29 exact in INT8 per channel" in said(app) and "hollow marks are estimates" in said(app)
    table = app.dataframe[0].value
    assert (table["how"] == "measured exactly").sum() == 11
    assert "auto, 11 of 58 exact" in app.selectbox(key="choose_profile").options[0]


def test_scores_that_are_replaced_in_their_places_are_shown_at_once(store):
    """Estimates sharpen and auto replaces them: their number never changes."""
    profile = store.open_profile(sample_results.auto_profile(exact=11))
    app = opened("sensitivity", shown="int8", measure="kl")
    store.add_measurements(profile.id, sample_results.auto_profile(exact=20).measurements)
    app.run()
    assert numbers(app)["Method"] == "Auto, 20 of 58 exact"
    assert "10 of 29 exact in INT8 per channel" in said(app)
    assert (app.dataframe[0].value["how"] == "measured exactly").sum() == 20


def test_warnings_on_the_text_stand_above_the_scores_and_its_numbers_below(store):
    store.open_profile(sample_results.estimated_profile(warnings=("The text looks random to the model: change it.",)))
    app = opened("sensitivity")
    assert [warning.value for warning in app.warning] == ["The text looks random to the model: change it."]
    assert (numbers(app)["Repeated"], numbers(app)["Distance from evaluation text"]) == ("2.1 %", "0.21 bits")


def test_each_direction_keeps_its_own_measure(store):
    profile = store.open_profile(sample_results.estimated_profile())
    store.save_plan(pipeline.make_plan(profile, REQUEST), profile.id)
    app = opened("sensitivity", measure="delta_ppl_pct")
    for direction in ("won", "alone"):
        app.get_by_key("choose_direction").set_value(direction).run()
    assert app.get_by_key("choose_measure").value == "delta_ppl_pct"  # as it was before the other direction


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
    table = app.dataframe[0].value
    assert dict(zip(table["layer"], table["format_label"], strict=True)) == labels(plan)
    won = frames.gains(profile, plan.assignments)
    assert list(table["kl"]) == [won[layer][0] for layer in table["layer"]]
    assert "Where it hurts" in said(opened("sensitivity", direction="alone"))


def test_without_a_plan_or_estimates_there_is_one_direction_only(store, profile):
    store.save_plan(pipeline.make_plan(profile, REQUEST), profile.id)
    assert "What giving back wins" not in said(opened("sensitivity", direction="won"))
    store.delete("profile", profile.id)
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
    assert app.get_by_key("choose_measure_won").options == ["KL won", "KL won per MiB", "Δ NLL won"]
    assert app.dataframe[0].value["kl"].min() < 0
    assert "Make a plan from these scores" not in [link.value for link in app.get("page_link")]
