"""The plan page with two plans: compared, uploaded, refined; over a real database."""

from __future__ import annotations

import json

import pytest

from advisor import jobs, models, pipeline
from advisor.knowledge import find_format
from advisor.planner import comparison
from advisor.types import Budget, JobStatus, Plan, ProfileRequest, RefineRequest
from advisor.ui import comparison_charts, plan_compare, plan_refine, verdict, wording
from advisor.ui.plan import COMPARE, REFINE, SIMPLE
from tests import plan_pages, sample_results
from tests.page_driver import REQUEST, button, labels, numbers, opened, said
from tests.tiny_models import CONTEXT, tiny_folder

SMALL = Budget(weight_bits=5.5, context=CONTEXT)


store, profile = plan_pages.store, plan_pages.profile


def planned(profile, bits: float = 5.0) -> Plan:
    budget = REQUEST.budget.model_copy(update={"weight_bits": bits})
    return pipeline.make_plan(profile, REQUEST.model_copy(update={"budget": budget}))


def upload(app, plan: Plan):
    return app.file_uploader[0].set_value(("mine.json", plan.model_dump_json().encode(), "application/json")).run()


def table(app, column: str):
    return next(frame.value for frame in app.dataframe if column in frame.value)


@pytest.fixture
def refined(store, profile):
    return store.save_plan(sample_results.refined(planned(profile)), profile.id, "refined five")


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


# ------------------------------------------------------------------------------------------- refine


@pytest.fixture
def queue(monkeypatch):
    """Jobs are stored and never started."""
    monkeypatch.setattr(jobs, "submit", lambda store, kind, request, **_: store.create_job(kind, request.model_dump()))
    monkeypatch.setattr(jobs, "reap", lambda store, **folder: [])
    monkeypatch.setattr(models, "resolve", lambda source: sample_results.catalogue().model)


def test_refining_says_what_it_takes_and_asks_for_the_plan_of_the_page(store, profile, queue):
    app = opened("plan", bits="5", rounds="2", tab=REFINE)
    assert "48 sequences of 256 tokens" in said(app) and "About " in said(app)
    button(app, "Refine").click().run()
    (job,) = store.jobs()
    asked = RefineRequest(**job.params)
    assert (job.kind, asked.profile_id, asked.rounds) == ("refine", profile.id, 2)
    assert asked.plan.budget.weight_bits == 5.0
    assert app.query_params["job"] == job.id and "[see its progress](#refining)" in said(app)
    assert said(app).count("Refining a plan within 5 bits on average") == 2
    assert button(app, "Refine").disabled and not button(app, "Cancel").disabled


def test_a_refinement_that_is_done_leads_to_its_plan(store, profile, refined, queue):
    job = store.create_job("refine", RefineRequest(profile_id=profile.id, plan=REQUEST).model_dump())
    store.finish_job(job.id, JobStatus.DONE, result={"plan_id": refined})
    app = opened("plan", job=job.id)
    button(app, "See the refined plan").click().run()
    assert app.query_params["plan"] == refined
    assert "A refined plan, as it was stored." in said(app)


def test_a_refinement_that_failed_says_why_and_one_cancelled_can_be_repeated(store, profile, queue):
    for status, sentence in (
        (JobStatus.FAILED, "is not the text any more"),
        (JobStatus.CANCELLED, "Resume repeats it"),
    ):
        job = store.create_job("refine", RefineRequest(profile_id=profile.id, plan=REQUEST).model_dump())
        store.finish_job(job.id, status, error="python-docs is not the text any more that was profiled.")
        app = opened("plan", job=job.id, tab=REFINE)
        assert sentence in said(app) and not button(app, "Resume").disabled
        assert not button(app, "Refine").disabled


@pytest.mark.parametrize("rounds", ["0", "99", "many"])
def test_a_link_with_odd_rounds_never_breaks_the_page(profile, rounds):
    app = opened("plan", rounds=rounds, tab=REFINE)
    assert not app.exception and not app.error
    assert 1 <= app.number_input(key="rounds").value <= 10


def test_a_refined_plan_is_shown_as_it_was_stored(store, profile, refined):
    plan = store.plan(refined)
    app = opened("plan", profile=profile.id, plan=refined)
    assert numbers(app)["Average bits"] == f"{plan.memory.decided_bits:.2f}"
    assert not app.select_slider and not app.data_editor and not app.error
    ranked = table(app, "Loses more (nats per token)").set_index("Plan")["Loses more (nats per token)"]
    assert list(ranked.index) == ["refined (this plan)", "scores alone", "role rule", "uniform INT4 group 64"]
    assert ranked["scores alone"] == "+0.020 (+8.3 %)"
    assert "The refined plan loses the least on 8,160 tokens" in said(app)
    layers = table(app, "Why").set_index("Layer")
    assert layers["Format"].to_dict() == labels(plan) and all(layers["Why"])


def test_a_plan_refined_on_a_real_model_is_drawn_with_its_whole_record(store, tmp_path):
    source = str(tiny_folder(tmp_path / "model"))
    request = ProfileRequest(model=source, samples=4, seq_len=64, formats=("int8", "int4_g64"), draws=2)
    profile = pipeline.profile_model(request, store)
    wanted = RefineRequest(profile_id=profile.id, plan=REQUEST.model_copy(update={"budget": SMALL}), rounds=1)
    plan_id = pipeline.refine_and_store(wanted, store)
    refinement = store.plan(plan_id).refinement
    app = opened("plan", profile=profile.id, plan=plan_id)
    assert not app.exception and not app.error
    assert "Measured perplexity" in numbers(app)
    assert len(table(app, "Loses more (nats per token)")) == len(refinement.contenders)
    assert list(table(app, "Steps tried")["Steps tried"]) == [one.tried for one in refinement.rounds]
    assert f"on {refinement.held_back_tokens:,} tokens held back" in said(app)
    button(app, "Back to live planning").click().run()
    assert app.data_editor and "Predicted perplexity" in numbers(app)


def test_the_head_of_a_refined_plan_names_its_limit_device_and_engine(profile, refined):
    app = opened("plan", profile=profile.id, plan=refined)
    assert "Refined within 5 bits on average, for Transformers with optimum-quanto on NVIDIA GeForce RTX 4090" in said(
        app
    )
    assert "Live planning takes up this limit" in said(app)


def test_a_link_that_compares_opens_a_refined_plan_on_the_comparison(store, profile, refined):
    other = store.save_plan(planned(profile, 6.0), profile.id)
    assert opened("plan", profile=profile.id, plan=refined).session_state["refined"] == "Against simple plans"
    app = opened("plan", profile=profile.id, plan=refined, against=other)
    assert app.session_state["refined"] == COMPARE
    app = opened("plan", profile=profile.id, plan=refined, refined="Layers")
    assert app.session_state["refined"] == "Layers" and app.query_params["refined"] == "Layers"


def test_a_refined_plans_change_is_said_to_be_measured_where_it_is_applied(store, profile, refined):
    assert "Measured change" in numbers(opened("apply", plan=refined))
    assert "Predicted change" in numbers(opened("apply", plan=store.save_plan(planned(profile), profile.id)))
    assert "Expected perplexity" in table(opened("history", list="plans"), "Results")


def test_perplexities_of_different_texts_have_no_difference(profile):
    one = planned(profile, 4.6)
    other = one.model_copy(update={"predicted": one.predicted.model_copy(update={"base_perplexity": 7.0})})

    def difference(other):
        rows = plan_compare.headline_rows(comparison.compare(one, other, profile))
        return next(row["Difference"] for row in rows if row[""] == "Perplexity")

    assert difference(other) == "not compared: of different texts" and "%" in difference(one)


def test_the_chart_of_contenders_says_what_bars_and_diamonds_are(profile, refined, store):
    chart = comparison_charts.contender_bars(store.plan(refined).refinement).to_dict()
    ranks = next(layer for layer in chart["layer"] if "shape" in layer["encoding"])
    assert ranks["encoding"]["shape"]["scale"]["domain"] == ["bar: KL", "diamond: what plans are ranked by"]
    assert "legend" in ranks["encoding"]["shape"]
    assert "that part is negative and the diamond lies below" in said(opened("plan", profile=profile.id, plan=refined))


def test_rounds_show_both_texts_so_that_a_fit_to_one_is_seen(profile, refined):
    app = opened("plan", profile=profile.id, plan=refined)
    assert "KL changed by −41.4 % on the text of the gradients and by −7.7 % on the held-back text" in said(app)
    assert list(table(app, "Steps tried")["KL, held-back text"]) == ["0.250", "0.240"]


def test_the_way_back_from_a_refined_plan_plans_live_with_its_settings(store, profile, refined):
    app = opened("plan", profile=profile.id, plan=refined)
    button(app, "Back to live planning").click().run()
    assert app.get_by_key("bits").value == pytest.approx(5.0)
    assert app.data_editor and not app.error
    app.get_by_key("bits").set_value(6.0).run()
    assert app.get_by_key("bits").value == 6.0 and app.data_editor


def test_a_refined_plan_is_compared_with_the_plan_by_scores(store, profile, refined):
    by_scores = store.save_plan(planned(profile), profile.id)
    app = opened("plan", profile=profile.id, plan=refined, against=by_scores)
    chooser = app.selectbox(key="choose_against")
    assert not any("refined five" in label for label in chooser.options)
    assert "Both plans give each of the 29 layers the same format" in said(app)


def test_the_formats_of_a_file_are_locked_in_live_planning(store, profile, refined):
    plan = planned(profile, 4.6)
    app = upload(opened("plan", profile=profile.id, plan=refined), plan)
    button(app, "Lock its formats here").click().run()
    locked = app.data_editor[0].value.set_index("Layer")
    assert locked["Format"].to_dict() == labels(plan) and all(locked["Locked"])


def test_history_leads_to_refinements_and_refined_plans(store, profile, refined, queue):
    job = store.create_job("refine", RefineRequest(profile_id=profile.id, plan=REQUEST).model_dump())
    jobs = opened("history", list="jobs")
    assert list(table(jobs, "Open")["Open"]) == [f"./plan?job={job.id}&profile={profile.id}"]
    assert f"plan={refined}" in table(opened("history", list="plans"), "Results")["Plan"][0]


# ------------------------------------------------------------------------------------ pure sentences


@pytest.mark.parametrize(
    "winner, words, tone",
    [
        ("refined", "The refined plan loses the least", "good"),
        ("scores alone", "The plan by scores alone stands", "fair"),
        ("uniform int4_g64", "A simple plan won: uniform INT4 group 64", "poor"),
    ],
)
def test_the_winner_is_named_whoever_it_is(profile, winner, words, tone):
    found = sample_results.refined(planned(profile), winner).refinement
    sentence = verdict.of_refinement(found)
    assert sentence.text.startswith(words) and sentence.tone == tone
    others = [one for one in found.contenders if one.name != winner]
    assert all(f"{wording.labelled(one.name)} 0." in sentence.text for one in others)
    if winner != "refined":
        assert verdict.of_rounds(found) == "No step was taken: none was better on the held-back text."
        assert verdict.started_from(found).name == winner


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


def test_the_lines_of_rounds_start_before_the_first(profile):
    found = sample_results.refined(planned(profile)).refinement
    frame = comparison_charts.round_frame(found, verdict.started_from(found).kl)
    assert list(frame[frame["text"] == comparison_charts.HELD_BACK]["kl"]) == [0.26, 0.25, 0.24]
    assert list(frame[frame["text"] == comparison_charts.GRADIENTS]["kl"]) == [0.29, 0.21, 0.17]


def test_more_rounds_and_slower_scores_take_longer(profile):
    assert plan_refine.expected_seconds(profile, 3) > plan_refine.expected_seconds(profile, 1) > 0
    estimated = sample_results.estimated_profile()
    slower = [m.model_copy(update={"seconds": 2.0}) for m in estimated.measurements]
    assert plan_refine.expected_seconds(estimated, 1) is None
    assert plan_refine.expected_seconds(estimated.model_copy(update={"measurements": tuple(slower)}), 1) > 60
