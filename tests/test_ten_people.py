"""Ten sessions at one server at once: each sees its own place, none holds another up, and no write is refused."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from advisor import jobs, pipeline
from advisor.types import JobStatus, Progress
from storage.engine import open_repository
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


def test_ten_people_who_submit_at_once_are_served_in_turn_and_no_write_is_refused(url, data_folder):
    # Each person has connections of their own, as processes have; a job reports all the while.
    stores = [open_repository(url) for _ in range(PEOPLE)]
    running = stores[0].create_job("profile", {}, "somebody")
    assert stores[0].claim_job(running.id, 1)
    together = Barrier(PEOPLE)

    def submit(number: int) -> None:
        together.wait()
        for turn in range(3):
            stores[number].create_job("profile", {"turn": turn}, f"person {number}")
            for done in range(20):
                stores[number].report(running.id, Progress(stage="measure", done=done, total=20))
                stores[number].append_log(running.id, "a line\n")

    with ThreadPoolExecutor(PEOPLE) as pool:
        list(pool.map(submit, range(PEOPLE)))  # raises what any of them raised
    stores[0].finish_job(running.id, JobStatus.DONE)
    waiting = stores[0].jobs(active_only=True)
    order = sorted(waiting, key=lambda job: stores[0].jobs_before(job.id))
    assert [job.params["turn"] for job in order] == [turn for turn in range(3) for _ in range(PEOPLE)]
    assert all(len({job.person for job in order[k : k + PEOPLE]}) == PEOPLE for k in (0, PEOPLE, 2 * PEOPLE))
    for store in stores:
        store.close()


def _place(app) -> int:
    """How many jobs the page says come before this session's."""
    (said,) = [one.proto.text for one in app.get("progress")]
    found = re.search(r"\d+", said)
    return int(found.group()) if found else 0
