"""Ten sessions of one server: each page tells its own place in the queue."""

from __future__ import annotations

import os
import re

import pytest

from advisor import jobs, pipeline
from advisor.types import JobStatus
from tests.page_driver import opened

PEOPLE = 10


@pytest.fixture
def store(data_folder, monkeypatch):
    """A store whose jobs are queued and never started."""
    monkeypatch.setattr(jobs.processes, "start", lambda *arguments: os.getpid())
    monkeypatch.setattr(jobs, "reap", lambda store: [])
    return pipeline.open_store()


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
