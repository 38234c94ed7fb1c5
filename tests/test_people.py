"""Who asks for a job: the signed-in person, else one browser session; signing in is offered where it is set up."""

from __future__ import annotations

import os

import pytest
import streamlit as st

from advisor import jobs, pipeline
from advisor.ui import people
from tests.page_driver import opened, said


@pytest.fixture
def store(data_folder, monkeypatch):
    """A store whose jobs are queued and never started."""
    monkeypatch.setattr(jobs.processes, "start", lambda *arguments: os.getpid())
    monkeypatch.setattr(jobs, "reap", lambda store: [])
    return pipeline.open_store()


def test_without_sign_in_a_person_is_one_browser_session(store):
    app = opened("model")
    assert not {"Sign in", "Sign out"} & {button.label for button in app.button}
    app.button(key="look_inside").click().run()
    (job,) = store.jobs()
    other = opened("model")
    other.button(key="look_inside").click().run()
    assert job.person.startswith("session-") and store.jobs()[0].person not in ("", job.person)


@pytest.mark.parametrize(
    "user, label, who",
    [
        ({"is_logged_in": False}, "Sign in", None),
        ({"is_logged_in": True, "email": "ann@example.org"}, "Sign out", "ann@example.org"),
        ({"is_logged_in": True, "sub": "number 7"}, "Sign out", "number 7"),
    ],
)
def test_where_sign_in_is_set_up_it_is_offered_and_names_the_person(store, monkeypatch, user, label, who):
    monkeypatch.setattr(st, "user", user)
    app = opened("history")
    assert label in [button.label for button in app.button]
    assert who is None or (who in said(app) and people.person() == who)
