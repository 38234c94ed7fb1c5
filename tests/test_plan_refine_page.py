"""Refining on the plan page: the job, the refined plan with its record, and what is said of both."""

from __future__ import annotations

import pytest

from advisor import jobs, models, pipeline
from advisor.types import Budget, JobStatus, ProfileRequest, RefineRequest
from advisor.ui import comparison_charts, plan_refine, verdict, wording
from advisor.ui.plan import COMPARE, REFINE
from tests import plan_pages, sample_results
from tests.page_driver import REQUEST, button, labels, numbers, opened, said, table
from tests.plan_pages import planned, upload
from tests.tiny_models import CONTEXT, tiny_folder

SMALL = Budget(weight_bits=5.5, context=CONTEXT)

store, profile = plan_pages.store, plan_pages.profile


@pytest.fixture
def refined(store, profile):
    return store.save_plan(sample_results.refined(planned(profile)), profile.id, "refined five")


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
