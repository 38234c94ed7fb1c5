"""Ten people at once on one database: nobody's writing fails or is lost, and the queue is fair."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from advisor.types import JobStatus, Progress
from storage import job_queue
from storage.engine import open_repository
from tests.stored_nouns import make_catalogue, make_header, make_measurement, make_plan

PEOPLE = [f"person {number}" for number in range(10)]


@pytest.fixture
def stores(url, store):
    """A repository for each, as if each were a process of its own."""
    stores = [open_repository(url) for _ in PEOPLE]
    yield stores
    for one in stores:
        one.close()


def at_once(task, *arguments):
    """`task` for each of the arguments, all started together; what they return, or the first failure."""
    start = Barrier(len(arguments[0]))

    def wait_and_run(*own):
        start.wait()
        return task(*own)

    with ThreadPoolExecutor(len(arguments[0])) as threads:
        return list(threads.map(wait_and_run, *arguments))


def test_what_ten_write_at_once_is_all_there_and_none_is_turned_away(store, stores):
    def work(own, person):
        own.save_catalogue(make_catalogue())
        own.open_profile(make_header())
        own.add_measurements("p1", [make_measurement("a"), make_measurement("b")])
        own.undelete(own.delete("plan", own.save_plan(make_plan(), "p1", f"{person}, brought back")))
        own.delete("plan", own.save_plan(make_plan(), "p1", f"{person}, deleted"))

    at_once(work, stores, PEOPLE)
    assert len(store.models()) == len(store.profiles()) == 1
    assert sorted(m.layer for m in store.profile("p1").measurements) == ["a", "b"]
    assert sorted(plan.name for plan in store.plans()) == [f"{person}, brought back" for person in PEOPLE]
    assert len(store.deletions()) == 10


def test_ten_people_each_see_their_own_place_and_one_job_runs_at_a_time_in_turns(store, stores):
    at_once(lambda own, person: [own.create_job("profile", {}, person) for _ in range(2)], stores, PEOPLE)
    jobs = store.jobs()
    assert sorted(store.jobs_before(job.id) for job in jobs) == list(range(20))
    for person in PEOPLE:
        places = [store.jobs_before(job.id) for job in reversed(jobs) if job.person == person]
        assert places[0] < 10 <= places[1]

    served = []

    def work(own, person):
        mine = [job.id for job in jobs if job.person == person]
        deadline = time.monotonic() + 60
        while mine and time.monotonic() < deadline:
            claimed = next((job_id for job_id in mine if own.claim_job(job_id, 1)), None)
            if claimed is None:
                time.sleep(0.05)
                continue
            running = [job for job in own.jobs(active_only=True) if job.status is JobStatus.RUNNING]
            served.append((person, len(running)))
            own.report(claimed, Progress(stage="measure", done=1, total=2))
            own.append_log(claimed, "one line")
            assert own.finish_job(claimed, JobStatus.DONE)
            mine.remove(claimed)

    at_once(work, stores, PEOPLE)
    assert [running for _, running in served] == [1] * 20
    assert {person for person, _ in served[:10]} == set(PEOPLE)
    assert {job.log_tail for job in store.jobs()} == {"one line"}


def test_who_comes_first_while_another_is_about_to_start_does_not_start_beside_it(store, stores, monkeypatch):
    served, second = (store.create_job("profile", {}, PEOPLE[0]) for _ in range(2))
    store.claim_job(served.id, 1)
    store.finish_job(served.id, JobStatus.DONE)
    look = job_queue._jobs_before

    def look_and_hesitate(session, job_id):
        found = look(session, job_id)
        if job_id == second.id:
            time.sleep(0.5)
        return found

    monkeypatch.setattr(job_queue, "_jobs_before", look_and_hesitate)

    def start_the_second():
        return stores[0].claim_job(second.id, 1)

    def come_and_start():
        time.sleep(0.2)
        return stores[1].claim_job(stores[1].create_job("profile", {}, PEOPLE[1]).id, 2)

    assert at_once(lambda task: task(), [start_the_second, come_and_start]) == [True, False]
