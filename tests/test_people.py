"""Who asks for a job: the signed-in person, else one browser session; each sees their own place in the queue."""

from __future__ import annotations

import os
import re

import pytest
import streamlit as st

from advisor import jobs, pipeline
from advisor.types import JobStatus
from advisor.ui import people
from tests.page_driver import opened, said

PEOPLE = 10


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


def test_ten_sessions_each_see_their_own_place_in_the_queue(store):
    apps = [opened("model") for _ in range(PEOPLE)]
    for app in apps:
        app.button(key="look_inside").click().run()
    queued = list(reversed(store.jobs()))
    assert len({job.person for job in queued}) == PEOPLE
    assert [store.jobs_before(job.id) for job in queued] == list(range(PEOPLE))
    assert [_place(app) for app in apps] == list(range(PEOPLE))
    assert store.claim_job(queued[0].id, 1) and store.finish_job(queued[0].id, JobStatus.DONE)
    assert [_place(app.run()) for app in apps[1:]] == list(range(PEOPLE - 1))


def _place(app) -> int:
    """How many jobs the page says come before this session's."""
    (said,) = [one.proto.text for one in app.get("progress")]
    found = re.search(r"\d+", said)
    return int(found.group()) if found else 0
