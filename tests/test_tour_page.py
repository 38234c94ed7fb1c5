"""The guided tour: its link, its way from stop to stop, and leaving it."""

from __future__ import annotations

import pytest

from advisor import pipeline
from advisor.types import ApplyRequest, JobStatus, ProfileRequest
from advisor.ui import tour
from advisor.ui.common import PAGES
from tests import sample_results
from tests.page_driver import REQUEST, button, opened, said


@pytest.fixture
def store(data_folder):
    return pipeline.open_store()


def done(store, kind, params, **result):
    job = store.create_job(kind, params)
    store.finish_job(job.id, JobStatus.DONE, result=result)
    return job.id


def test_the_tour_begins_with_a_look_inside_the_demo_model(store, submitted):
    app = opened("model")
    button(app, "Take the tour").click().run()
    assert [kind for kind, _ in submitted] == ["inspect"]
    assert app.query_params["tour"] == "1"
    assert "stop 1 of 6" in said(app) and button(app, "Measure which ones can").disabled


def test_a_known_model_is_not_looked_into_again_and_is_measured_for_real(store, submitted):
    store.save_catalogue(sample_results.catalogue())
    app = opened("model", tour="1")
    assert "Where the parameters are" in said(app)
    button(app, "Measure which ones can").click().run()
    ((kind, params),) = submitted
    assert kind == "profile" and ProfileRequest(**params) == tour.MEASURE
    assert "stop 2 of 6" in said(app) and button(app, "See what was found").disabled


def test_a_finished_measurement_leads_to_its_scores_and_then_to_a_plan(store):
    profile = store.open_profile(sample_results.profile())
    job = done(store, "profile", tour.MEASURE.model_dump(mode="json"), profile_id=profile.id)
    app = opened("model", tour="2", job=job)
    button(app, "See what was found").click().run()
    assert "stop 3 of 6" in said(app) and app.query_params["profile"] == profile.id
    button(app, "Make a plan from it").click().run()
    assert "stop 4 of 6" in said(app) and app.select_slider(key="bits").value == 5.5


def test_the_plan_on_the_page_is_the_one_that_is_applied(store, submitted):
    profile = store.open_profile(sample_results.profile())
    app = opened("plan", tour="4", profile=profile.id, limit="bits", bits="6.5")
    button(app, "Apply it and measure").click().run()
    ((kind, params),) = submitted
    assert kind == "apply" and ApplyRequest(**params).tokens == tour.CHECK["tokens"]
    assert store.plan(params["plan_id"]).request.budget.weight_bits == 6.5
    assert "stop 5 of 6" in said(app) and button(app, "Compare with what was predicted").disabled


def test_a_finished_check_leads_to_the_comparison_and_to_ones_own_model(store):
    plan = store.save_plan(pipeline.make_plan(sample_results.profile(), REQUEST), None)
    job = done(store, "apply", ApplyRequest(plan_id=plan).model_dump(mode="json"), folder="somewhere")
    app = opened("apply", tour="5", plan=plan, job=job)
    button(app, "Compare with what was predicted").click().run()
    assert "stop 6 of 6" in said(app)
    button(app, "Now with my own model").click().run()
    assert "tour" not in app.query_params and app.get_by_key("choose_from").value == "own"


def test_on_the_tour_its_job_and_results_stand_where_the_form_would(store):
    plan = store.save_plan(pipeline.make_plan(sample_results.profile(), REQUEST), None)
    store.save_evaluation(sample_results.evaluation("plan", 0.02, 80_000_000), plan)
    asked = ApplyRequest(plan_id=plan).model_dump(mode="json")
    app = opened("apply", tour="5", plan=plan, job=store.create_job("apply", asked).id)
    assert "Applying and evaluating" in said(app) and "Measure it on held-out text" not in said(app)
    app = opened("apply", tour="6", plan=plan, job=done(store, "apply", asked))
    assert "Predicted against measured" in said(app) and "Measure it on held-out text" not in said(app)
    button(app, "Leave the tour").click().run()
    assert "Measure it on held-out text" in said(app)


def test_a_page_ahead_takes_the_tour_to_its_own_stop_and_a_page_behind_says_where_it_waits(store):
    store.open_profile(sample_results.profile())
    assert "stop 4 of 6" in said(opened("plan", tour="2"))
    assert "stop 4 of 6, *Bits where they matter*, is on another page" in said(opened("sensitivity", tour="4"))
    assert "stop 1 of 6" in said(opened("model", tour="what"))


def test_a_tour_that_was_left_by_the_navigation_goes_on_where_it_was(store):
    profile = store.open_profile(sample_results.profile())
    app = opened("plan", tour="4", profile=profile.id, limit="bits", bits="6.5")
    app.query_params.clear()
    app.switch_page(PAGES["model"]).run()
    assert button(app, "Begin the tour anew")
    button(app, "Go on with the tour (stop 4 of 6)").click().run()
    assert "stop 4 of 6" in said(app) and app.query_params["profile"] == profile.id
    assert app.select_slider(key="bits").value == 6.5


@pytest.mark.parametrize("page", ["guide", "blind"])
def test_pages_without_a_stop_show_the_way_back_to_it(store, page):
    profile = store.open_profile(sample_results.profile())
    app = opened("sensitivity", tour="3", profile=profile.id)
    app.query_params.clear()
    app.query_params["tour"] = "3"
    app.switch_page(PAGES[page]).run()
    assert "Guided tour" in said(app) and "stop 3 of 6" in said(app)
    button(app, "Go to stop 3").click().run()
    assert "A few layers hurt" in said(app) and app.query_params["profile"] == profile.id


def test_a_link_to_a_later_stop_in_a_new_browser_leads_there_or_to_the_beginning(store):
    store.save_catalogue(sample_results.catalogue())
    app = opened("model", tour="5")
    assert "Back" not in said(app)
    button(app, "Begin the tour").click().run()
    assert "stop 1 of 6" in said(app)
    app = opened("model", tour="5")
    button(app, "Go to stop 5").click().run()
    assert "No plan yet" in said(app) and app.query_params["tour"] == "5"


def test_the_tour_can_be_left_at_any_stop_and_gone_on_with(store):
    store.open_profile(sample_results.profile())
    for name, stop in {"model": "1", "sensitivity": "3", "plan": "4"}.items():
        app = opened(name, tour=stop)
        button(app, "Leave the tour").click().run()
        assert "tour" not in app.query_params and "Guided tour" not in said(app)
        assert not app.exception and not app.error
        app.switch_page(PAGES["model"]).run()
        button(app, f"Go on with the tour (stop {stop} of 6)").click().run()
        assert f"stop {stop} of 6" in said(app)


def test_a_failed_measurement_is_said_and_can_be_resumed(store):
    job = store.create_job("profile", tour.MEASURE.model_dump(mode="json"))
    store.finish_job(job.id, JobStatus.FAILED, error="The disk is full; free some space.")
    app = opened("model", tour="2", job=job.id)
    assert (
        "It failed: *Resume*" in said(app)
        and button(app, "See what was found").disabled
        and not button(app, "Resume").disabled
    )


def test_work_that_was_paused_or_cancelled_is_not_told_as_a_failure(store):
    job = store.create_job("profile", tour.MEASURE.model_dump(mode="json"))
    store.finish_job(job.id, JobStatus.CANCELLED)
    assert "Cancelled: *Resume* below" in said(opened("model", tour="2", job=job.id))
    job = store.create_job("profile", tour.MEASURE.model_copy(update={"samples": 5}).model_dump(mode="json"))
    store.enlist_job(job.id, 1, "here")
    store.claim_job(job.id, 1)
    store.finish_job(job.id, JobStatus.CANCELLED)
    app = opened("model", tour="2", job=job.id)
    assert "Paused: *Resume* below" in said(app) and button(app, "See what was found").disabled


def test_every_stop_is_on_a_page_that_there_is_and_says_two_sentences():
    for stop in tour.STOPS:
        assert stop.page in PAGES
        assert stop.says.count(". ") == 1 and stop.says.endswith(".")
