"""The page of blind tests: every state, the sides that it never gives away, and what it stores."""

from __future__ import annotations

import csv
import io

import pytest
import streamlit as st

from advisor import pipeline, preferences, prompts
from advisor.types import AnswersRequest, JobStatus, Progress, now
from advisor.ui import blind, wording
from tests import blind_cases, sample_results
from tests.page_driver import REQUEST, button, numbers, opened, said

SIDES = {"plan": ("left", "Left is better"), "original": ("right", "Right is better")}


@pytest.fixture
def store(data_folder):
    return pipeline.open_store()


@pytest.fixture
def plan_id(store):
    profile = store.open_profile(sample_results.profile(2))
    return store.save_plan(pipeline.make_plan(profile, REQUEST), profile.id, "five bits")


def opened_as(name="ann", **query):
    """The page of somebody who has written this name."""
    return opened("blind", **query).text_input(key="rater").set_value(name).run()


def voting(app):
    """The buttons that vote or take a vote back; their keys on the keyboard go with them."""
    return [b.label for b in app.button if b.label.startswith(("Left", "About", "Right", "Undo"))]


def vote(app, store, test_id, rater="ann", preferred="plan"):
    """Press the button that prefers this one; what the page does not know, the test looks up."""
    test = store.blind_test(test_id)
    pair = preferences.next_pair(test, rater)
    plan_left = preferences.vote(test, rater, pair.number, "left").plan_left
    label = (
        "About equal"
        if preferred == "equal"
        else SIDES["plan" if (preferred == "plan") == plan_left else "original"][1]
    )
    return button(app, label).click().run()


# ------------------------------------------------------------------------------------------ asking


def test_without_a_test_the_page_offers_prompts_and_starts_a_job(store, plan_id, submitted):
    app = opened("blind", plan=plan_id)
    assert "without knowing which is which" in said(app) and "simulated in memory" in said(app)
    assert prompts.parse(app.text_area[0].value) == prompts.EXAMPLES
    app.text_area[0].set_value("One?\n\nTwo?").run()
    app.number_input(key="answer_tokens").set_value(40).run()
    app = button(app, "Generate answers").click().run()
    ((kind, params),) = submitted
    test = store.blind_test(params["test_id"])
    assert kind == "answers" and params["plan_id"] == plan_id
    assert test.request == AnswersRequest(plan_id=plan_id, prompts=("One?", "Two?"), tokens=40)
    assert app.query_params["test"] in (test.id, [test.id])
    assert not app.exception and not app.error


def test_prompts_come_from_a_file_where_there_is_one(store, plan_id, submitted):
    app = opened("blind", plan=plan_id)
    app.file_uploader[0].set_value([("mine.txt", "Über was?\n".encode(), "text/plain")]).run()
    button(app, "Generate answers").click().run()
    assert store.blind_test(submitted[0][1]["test_id"]).request.prompts == ("Über was?",)


def test_no_prompt_is_refused_and_nothing_is_started(store, plan_id, submitted):
    app = opened("blind", plan=plan_id)
    app.text_area[0].set_value(" \n").run()
    app = button(app, "Generate answers").click().run()
    assert [error.value for error in app.error] == [
        "There is no prompt: write at least one, each on a line of its own."
    ]
    assert submitted == [] and store.blind_tests() == []


def test_how_long_the_answers_take_is_said_where_a_pace_was_measured(store, plan_id):
    assert "at most about" not in said(opened("blind", plan=plan_id))
    original = sample_results.evaluation("original", None, 1000)  # 41.3 ms a token
    store.save_evaluation(original, store.save_plan(store.plan(plan_id), None, "another plan of the model"))
    app = opened("blind", plan=plan_id)
    app.text_area[0].set_value("One?\nTwo?").run()
    app.number_input(key="answer_tokens").set_value(1000).run()
    assert "at most about 2 min 45 s: two answers to each of 2 prompts" in said(app)
    app.text_area[0].set_value("One?").run()
    assert "at most about 1 min 23 s: two answers to each of 1 prompt," in said(app)


def test_an_export_answers_at_its_own_pace(store, plan_id):
    request = AnswersRequest(plan_id=plan_id, prompts=("One?",), tokens=100, folder="export")
    store.save_evaluation(sample_results.evaluation("original", None, 1000), plan_id)
    assert pipeline.longest_answering(request, store) is None
    packed = sample_results.evaluation("plan", 0.1, 500).model_copy(update={"ms_per_token": 100.0})
    store.save_evaluation(packed, plan_id)
    assert pipeline.longest_answering(request, store) == pytest.approx(14.13)
    assert pipeline.longest_answering(request.model_copy(update={"folder": ""}), store) == pytest.approx(8.26)


def test_a_running_job_is_shown_and_a_cancelled_one_can_be_resumed(store, plan_id, submitted):
    test_id = store.open_blind_test(blind_cases.request(plan_id))
    job = store.create_job("answers", {"plan_id": plan_id, "test_id": test_id})
    store.enlist_job(job.id, 1, "elsewhere")
    store.claim_job(job.id, 1)
    store.report(job.id, Progress(stage="answers of the plan", done=1, total=4, message="Prompt 2 of 4"))
    app = opened("blind", test=test_id)
    assert "Answering prompts" in said(app) and "Prompt 2 of 4" in said(app)
    assert not [b for b in app.button if b.label.endswith("is better")]
    store.finish_job(job.id, JobStatus.CANCELLED)
    app = opened("blind", plan=plan_id, test=test_id)
    button(app, "Resume").click().run()
    assert submitted == [("answers", {"plan_id": plan_id, "test_id": test_id})]


def test_missing_answers_without_a_job_can_be_generated(store, plan_id, submitted):
    test_id = store.open_blind_test(blind_cases.request(plan_id))
    store.save_answers(test_id, blind_cases.answers()[:3])
    app = opened("blind", plan=plan_id, test=test_id)
    assert "3 of 8 answers are there" in said(app)
    button(app, "Generate the others").click().run()
    assert submitted == [("answers", {"plan_id": plan_id, "test_id": test_id})]


# ------------------------------------------------------------------------------------------ voting


def test_votes_are_stored_one_pair_at_a_time_and_the_last_is_taken_back(store, plan_id):
    test_id = blind_cases.stored(store, plan_id)
    app = opened_as(plan=plan_id)
    assert "1 identical pair left out" in app.get("progress")[0].proto.text
    app = vote(app, store, test_id, preferred="plan")
    app = vote(app, store, test_id, preferred="original")
    assert [v.preferred for v in store.blind_test(test_id).votes] == ["plan", "original"]
    assert not app.info  # the link still names what is shown
    shown = text_of(app)
    app = button(app, "Undo last vote").click().run()
    assert [v.preferred for v in store.blind_test(test_id).votes] == ["plan"]
    assert text_of(app) != shown
    assert app.get("progress")[0].proto.text.startswith("Pair 2 of 3 ·")


def test_raters_vote_apart_and_a_finished_one_makes_room_for_the_next(store, plan_id):
    test_id = blind_cases.stored(store, plan_id)
    app = opened_as(plan=plan_id)
    for _ in range(3):
        app = vote(app, store, test_id)
    assert "ann, you have voted on every pair" in said(app) and "ends the voting for everybody" in said(app)
    app.text_input(key="rater").set_value(" bob ").run()
    app = vote(app, store, test_id, rater="bob", preferred="equal")
    assert [(v.rater, v.preferred) for v in store.blind_test(test_id).votes][-1] == ("bob", "equal")
    app.text_input(key="rater").set_value(" ").run()
    assert "Say who you are" in said(app) and not voting(app)


def test_without_a_name_there_is_nothing_to_vote_on_and_nobody_is_counted(store, plan_id):
    test_id = blind_cases.stored(store, plan_id)
    app = opened("blind", plan=plan_id)
    assert app.text_input(key="rater").value == "" and not voting(app) and not app.text
    assert "Say who you are" in said(app) and "Nobody has voted so far" in said(app)
    assert "You have voted" not in said(app) and not app.get("progress")
    app = app.text_input(key="rater").set_value("ann").run()
    vote(app, store, test_id)
    assert [one.rater for one in store.blind_test(test_id).votes] == ["ann"]
    again = opened("blind", plan=plan_id)  # after a reload, or in another browser
    assert "Voted so far: ann 1 of 3 pairs" in said(again) and not voting(again)
    again = again.text_input(key="rater").set_value("ann").run()
    assert again.get("progress")[0].proto.text.startswith("Pair 2 of 3 ·")


def test_who_is_signed_in_votes_under_that_name(store, plan_id, monkeypatch):
    monkeypatch.setattr(st, "user", {"is_logged_in": True, "email": "ann@example.org"})
    test_id = blind_cases.stored(store, plan_id)
    vote(opened("blind", plan=plan_id), store, test_id, rater="ann@example.org")
    assert [one.rater for one in store.blind_test(test_id).votes] == ["ann@example.org"]


def test_nothing_works_in_a_raters_name(store, plan_id):
    test_id, name = blind_cases.stored(store, plan_id), "**x** $y$"
    app = opened_as(name, plan=plan_id)
    for _ in range(3):
        app = vote(app, store, test_id, rater=name)
    shown = wording.verbatim(name)
    assert f"**{shown}, you have voted on every pair.**" in said(app)
    others = opened("blind", plan=plan_id)
    assert f"{shown} 3 of 3" in said(others) and name not in said(others)


def text_of(app):
    return [text.value for text in app.text]


def sent(app) -> bytes:
    """Everything that the page sends to the browser."""

    def walk(block):
        for child in block.children.values():
            if hasattr(child, "children"):
                yield from walk(child)
            elif getattr(child, "proto", None) is not None:
                yield child.proto.SerializeToString(deterministic=True)

    return b"\n".join(walk(app._tree))


def test_what_the_page_sends_does_not_tell_whose_answer_is_whose(tmp_path, monkeypatch):
    """The original says A and the plan B, or the other way round: where the sides show the same, so does the page."""
    pages, moment = set(), now()
    monkeypatch.setattr("storage.blind_tests.now", lambda: moment)
    monkeypatch.setattr("storage.repository.now", lambda: moment)
    monkeypatch.setattr("storage.blind_tests.new_id", lambda: "test")
    monkeypatch.setattr("storage.repository.new_id", lambda: "plan")
    for place, pair in enumerate((("A", "B"), ("B", "A"))):
        monkeypatch.setenv("ADVISOR_HOME", str(tmp_path / str(place)))
        store = pipeline.open_store()
        profile = store.open_profile(sample_results.profile(2))
        store.save_plan(pipeline.make_plan(profile, REQUEST), profile.id)
        blind_cases.stored(store, "plan", (pair,))
        while preferences.next_pair(store.blind_test("test"), "ann").left != "A":
            store.purge(store.delete("blind test", "test"))  # the next one draws other sides
            blind_cases.stored(store, "plan", (pair,))
        app = opened_as(plan="plan")
        assert text_of(app) == ["Question 0?", "A", "B"]
        assert b"Question 0?" in sent(app)
        pages.add(sent(app))
    assert len(pages) == 1


# ------------------------------------------------------------------------------------------ the result


def test_the_result_is_shown_after_the_last_vote_and_ends_the_voting(store, plan_id):
    test_id = blind_cases.stored(store, plan_id)
    app = opened_as(plan=plan_id)
    for preferred in ("plan", "original", "plan"):
        app = vote(app, store, test_id, preferred=preferred)
    assert "sign test" not in said(app) and not app.get("download_button")
    app = button(app, "Show the result").click().run()
    assert store.blind_test(test_id).revealed is not None
    told = numbers(app)
    assert (told["Plan preferred"], told["Original preferred"], told["Identical"]) == ("2", "1", "1")
    assert "p = 1" in said(app) and "fewer than 6" in said(app)
    assert not [b for b in app.button if b.label.endswith("is better")]
    table = app.dataframe[0].value
    assert list(table["Preferred"]).count("identical") == 1 and set(table["Plan"]) == {"no", "same ", "blue", "two"}
    (download,) = app.get("download_button")
    assert "CSV" in download.proto.label
    rows = list(csv.DictReader(io.StringIO(preferences.to_csv(store.blind_test(test_id)))))
    assert [row["preferred"] for row in rows if row["rater"]].count("plan") == 2


def test_the_result_before_the_last_vote_costs_a_warning(store, plan_id):
    test_id = blind_cases.stored(store, plan_id)
    app = opened_as(plan=plan_id)
    assert button(app, "End the voting and show the result").disabled
    app = vote(app, store, test_id)
    assert "nobody can vote on these pairs any more" in said(app)
    app = button(app, "End the voting and show the result").click().run()
    assert "2 pairs without a vote" in said(app)
    assert not app.exception and not app.error


def test_all_identical_answers_need_no_vote(store, plan_id):
    test_id = blind_cases.stored(store, plan_id, (("a", "a"), ("b", "b ")))
    app = opened("blind", plan=plan_id)
    assert "All 2 pairs of answers are identical" in said(app)
    app = button(app, "Show the result").click().run()
    assert numbers(app)["Identical"] == "2" and store.blind_test(test_id).revealed
    assert not app.exception and not app.error


# ------------------------------------------------------------------------------------------ links


def test_a_link_to_a_test_shows_it_with_its_plan_and_another_plan_shows_its_own(store, plan_id):
    other = store.save_plan(store.plan(plan_id), None, "another")
    test_id = blind_cases.stored(store, plan_id)
    app = opened_as(test=test_id)
    assert app.selectbox(key="choose_plan").value == plan_id and text_of(app)
    app = app.selectbox(key="choose_plan").set_value(other).run()
    assert "no longer stored" not in said(app) and app.text_area
    assert not app.exception and not app.error


def test_a_tests_label_stays_as_it_is_while_answers_and_votes_arrive(store, plan_id):
    test_id, labels = store.open_blind_test(blind_cases.request(plan_id)), set()
    changes = (
        lambda: store.save_answers(test_id, blind_cases.answers()),
        lambda: store.save_vote(test_id, blind_cases.voted("plan")[0]),
        lambda: store.reveal(test_id),
    )
    for change in changes:
        labels.add(blind.test_label(store.blind_tests()[0]))
        change()
    assert labels == {blind.test_label(store.blind_tests()[0])}


def test_history_lists_blind_tests_and_their_jobs(store, plan_id):
    test_id = blind_cases.stored(store, plan_id)
    job = store.create_job("answers", {"plan_id": plan_id, "test_id": test_id})
    store.finish_job(job.id, JobStatus.DONE)
    links = [list(opened("history", list=which).dataframe[0].value["Open"]) for which in ("blind", "jobs")]
    assert links == [[f"blind?plan={plan_id}&test={test_id}"], [f"./blind?job={job.id}&plan={plan_id}&test={test_id}"]]
