"""The plan page with two plans: compared and uploaded; over a real database."""

from __future__ import annotations

import json

from advisor.knowledge import find_format
from advisor.planner import comparison
from advisor.ui import comparison_charts, plan_compare, verdict, wording
from advisor.ui.plan import COMPARE, SIMPLE
from tests import plan_pages, sample_results
from tests.page_driver import button, opened, said, table
from tests.plan_pages import planned, upload

store, profile = plan_pages.store, plan_pages.profile


# ---------------------------------------------------------------------------------------- two plans


def test_this_plan_stands_beside_a_stored_one_with_every_layer_that_differs(store, profile):
    other = planned(profile, 6.0)
    here = planned(profile, 4.6).assignments
    app = opened("plan", bits="4.6", against=store.save_plan(other, profile.id, "larger"))
    differ = {name: fmt for name, fmt in other.assignments.items() if here[name] != fmt}
    listed = table(app, "Size there")
    assert dict(zip(listed["Layer"], listed["The other"], strict=True)) == {
        name: wording.format_label(fmt) for name, fmt in differ.items()
    }
    assert list(listed["This plan"]) == [wording.format_label(here[name]) for name in listed["Layer"]]
    headline = table(app, "Difference").set_index("")
    assert headline.loc["Average bits", "The other"] == f"{other.memory.decided_bits:.2f}"
    assert headline.loc["Weights", "Difference"].startswith("+")
    assert f"{len(differ)} of 29 layers differ" in said(app) and not app.error


def test_a_simple_plan_can_be_chosen_and_the_link_remembers_it(profile):
    app = opened("plan", tab=COMPARE)
    assert app.selectbox(key="choose_against").value is None
    app.selectbox(key="choose_against").set_value("simple uniform int8").run()
    assert app.query_params["against"] == "simple uniform int8"
    assert set(table(app, "Size there")["The other"]) == {"INT8 per channel"}
    assert opened("plan", against="gone").selectbox(key="choose_against").value is None


def test_plans_of_other_models_are_not_offered(store, profile):
    stranger = store.open_profile(sample_results.profile(4, fingerprint="77" * 32))
    kept = [store.save_plan(planned(one), one.id) for one in (profile, stranger)]
    app = opened("plan", profile=profile.id, against=kept[1])
    chooser = app.selectbox(key="choose_against")
    assert chooser.value is None
    assert sum("RTX 4090" in label for label in chooser.options) == 1


def test_every_simple_plan_of_no_greater_size_says_by_how_much_it_loses(profile):
    app = opened("plan", bits="5", tab=SIMPLE)
    rows = table(app, "KL more than this plan").set_index("Plan")["KL more than this plan"]
    assert rows["this plan"] == "–" and rows["uniform INT4 group 64"].startswith("+")
    assert "larger" in rows["uniform INT8 per channel"] and "guide's strategy" in rows
    assert "No simple plan of at most this size is predicted to lose as little" in said(app)
    assert "uniform INT4 group 64" in next(text.value for text in app.success)


# ------------------------------------------------------------------------------------------- a file


def test_an_uploaded_plan_is_checked_and_compared(profile):
    app = upload(opened("plan", bits="6"), planned(profile, 4.6))
    assert "that fits it" in said(app) and "layers differ" in said(app)
    assert "of the same sequences, subtracted one by one" in said(app)
    smaller = table(app, "Size there")["Difference"]
    assert len(smaller) and all(change.startswith("−") for change in smaller) and not app.error


def test_what_an_edited_file_states_is_corrected_before_it_is_compared(profile):
    plan = planned(profile, 4.6)
    edited = plan.model_copy(update={"assignments": dict.fromkeys(plan.assignments, "int8")})
    app = upload(opened("plan", bits="4.6"), edited)
    assert table(app, "Difference").set_index("").loc["Average bits", "The other"].startswith("8.0")
    assert "the file states others" in said(app)


def test_a_file_with_a_format_that_was_not_measured_can_still_be_applied(profile):
    plan = planned(profile)
    some = next(iter(plan.assignments))
    app = upload(opened("plan"), plan.model_copy(update={"assignments": plan.assignments | {some: "int2_g64"}}))
    assert "It cannot be compared." in said(app) and "was not measured in int2_g64" in said(app)
    assert not button(app, "Apply and evaluate this file").disabled and not app.error


def test_a_file_is_opened_where_the_limit_allows_no_plan(profile):
    app = upload(opened("plan", limit="memory", memory="0.5"), planned(profile))
    assert not button(app, "Lock its formats here").disabled
    assert len(app.error) == 1 and "smallest" in app.error[0].value


def test_a_file_that_is_no_plan_is_refused_in_its_own_box(profile):
    app = opened("plan")
    app.file_uploader[0].set_value(("mine.json", profile.model_dump_json().encode(), "application/json")).run()
    box = next(one for one in app.expander if one.label == "Open a plan file")
    assert [error.value for error in box.error] == [error.value for error in app.error]
    assert "This is a sensitivity profile, not a plan" in box.error[0].value


# ------------------------------------------------------------------------------------ pure sentences


def test_losses_that_cannot_be_told_apart_or_do_not_compare_are_said_to_be_so(profile):
    one, other = planned(profile, 4.6), planned(profile, 6.0)

    def sentence(one, other):
        return verdict.of_comparison(comparison.compare(one, other, profile), 29, "other").text

    assert "Predicted KL of other is" in sentence(one, other) and "less" in sentence(one, other)
    hazy = other.model_copy(update={"predicted": other.predicted.model_copy(update={"kl_stderr": 1.0})})
    assert "cannot tell them apart" in sentence(one, hazy)
    measured = other.model_copy(update={"predicted": other.predicted.model_copy(update={"measured": True})})
    assert "adds up scores" in sentence(one, measured)
    elsewhere = other.model_copy(update={"predicted": other.predicted.model_copy(update={"base_perplexity": 7.0})})
    assert "for different texts" in sentence(one, elsewhere)


def test_the_map_of_differences_says_bits_and_direction_of_every_layer_that_differs(profile):
    one, other = planned(profile, 4.6), planned(profile, 6.0)
    found = comparison.compare(one, other, profile)
    frame = comparison_charts.difference_frame(profile.catalogue, found).set_index("layer")
    assert list(frame.index) == [difference.layer for difference in found.layers]
    for difference in found.layers:
        row = frame.loc[difference.layer]
        assert row["bits"] == "→".join(str(find_format(name).bits) for name in (difference.one, difference.other))
        larger = difference.other_bytes > difference.one_bytes
        assert (row["kind"], row["arrow"]) == ((comparison_charts.LARGER, "↑") if larger else ("", ""))
    chart = json.dumps(comparison_charts.difference_map(profile.catalogue, found).to_dict())
    assert comparison_charts.LARGER in chart and comparison_charts.SMALLER not in json.dumps(
        comparison_charts.difference_map(profile.catalogue, found).to_dict()["layer"][1]["encoding"]["color"]
    )


def test_perplexities_of_different_texts_have_no_difference(profile):
    one = planned(profile, 4.6)
    other = one.model_copy(update={"predicted": one.predicted.model_copy(update={"base_perplexity": 7.0})})

    def difference(other):
        rows = plan_compare.headline_rows(comparison.compare(one, other, profile))
        return next(row["Difference"] for row in rows if row[""] == "Perplexity")

    assert difference(other) == "not compared: of different texts" and "%" in difference(one)
