"""The queue of jobs in the database: claimed once and in order, ended once, cancelled in time."""

from datetime import timedelta

from advisor.types import JobStatus, Progress, now
from storage.job_queue import LOG_TAIL_CHARACTERS


def test_a_long_job_waits_for_the_one_before_it(store):
    first, second = store.create_job("profile", {}), store.create_job("apply", {})
    assert not store.claim_job(second.id, 2)
    assert store.claim_job(first.id, 1)
    assert not store.claim_job(first.id, 3)
    assert not store.claim_job(second.id, 2)
    assert store.finish_job(first.id, JobStatus.DONE, result={"profile_id": "p"})
    assert store.claim_job(second.id, 2)
    assert store.job(first.id).result == {"profile_id": "p"}
    assert (store.job(second.id).pid, store.job(second.id).status) == (2, JobStatus.RUNNING)


def test_a_short_job_runs_beside_a_long_one_and_after_another_short_one(store):
    long, look, zip_ = (store.create_job(kind, {}) for kind in ("profile", "inspect", "zip"))
    assert store.claim_job(long.id, 1)
    assert [store.jobs_before(job.id) for job in (long, look, zip_)] == [0, 0, 1]
    assert store.claim_job(look.id, 2)
    assert not store.claim_job(zip_.id, 3)
    store.finish_job(look.id, JobStatus.DONE)
    assert store.claim_job(zip_.id, 3)
    assert store.jobs_before(look.id) is None


def test_persons_are_served_in_turn_however_many_jobs_one_of_them_has_submitted(store):
    jobs = {name: store.create_job("profile", {}, name[0]) for name in ("ann 1", "ann 2", "ann 3", "bob 1", "cat 1")}
    assert [store.jobs_before(jobs[name].id) for name in jobs] == [0, 3, 4, 1, 2]
    served = []
    while waiting := [name for name, job in jobs.items() if not store.job(job.id).status.ended]:
        (claimed,) = [name for name in waiting if store.claim_job(jobs[name].id, 1)]
        served.append(claimed)
        if claimed == "bob 1":
            jobs["bob 2"] = store.create_job("profile", {}, "b")  # has just been served: behind ann's second
        store.finish_job(jobs[claimed].id, JobStatus.DONE)
    assert served == ["ann 1", "bob 1", "cat 1", "ann 2", "bob 2", "ann 3"]


def test_who_asked_is_kept_apart_from_what_was_asked(store):
    job = store.create_job("profile", {"model": "smollm2"}, "ann@example.org")
    assert (job.person, job.params) == ("ann@example.org", {"model": "smollm2"})
    assert store.job(job.id) == job and store.create_job("profile", {}).person == ""


def test_how_a_job_ended_is_decided_once(store):
    job = store.create_job("profile", {"model": "smollm2"})
    store.claim_job(job.id, 1)
    assert store.finish_job(job.id, JobStatus.FAILED, error="out of memory", log_tail="last words")
    assert not store.finish_job(job.id, JobStatus.DONE, result={})
    ended = store.job(job.id)
    assert (ended.status, ended.error, ended.log_tail) == (JobStatus.FAILED, "out of memory", "last words")
    assert ended.result is None and ended.finished is not None


def test_cancelling_ends_a_queued_job_and_only_asks_a_running_one(store):
    running, queued = store.create_job("profile", {}), store.create_job("profile", {})
    store.claim_job(running.id, 1)
    assert store.request_cancel(queued.id).status is JobStatus.CANCELLED
    asked = store.request_cancel(running.id)
    assert (asked.status, asked.cancel_requested, asked.finished) == (JobStatus.RUNNING, True, None)
    assert store.cancel_requested(running.id)
    assert store.request_cancel("nobody") is None


def test_an_ended_job_ignores_progress_and_requests(store):
    job = store.create_job("profile", {})
    store.claim_job(job.id, 1)
    store.report(job.id, Progress(stage="measure", done=1, total=2))
    store.finish_job(job.id, JobStatus.DONE)
    store.report(job.id, Progress(stage="measure", done=2, total=2))
    store.request_cancel(job.id)
    assert (store.job(job.id).progress.done, store.job(job.id).status) == (1, JobStatus.DONE)


def test_jobs_are_listed_newest_first_and_the_log_keeps_its_end(store):
    jobs = [store.create_job("profile", {"number": number}) for number in range(3)]
    store.finish_job(jobs[1].id, JobStatus.DONE)
    store.append_log(jobs[0].id, "x" * LOG_TAIL_CHARACTERS)
    store.append_log(jobs[0].id, "the \x00end")
    assert [job.params["number"] for job in store.jobs(limit=2)] == [2, 1]
    assert [job.params["number"] for job in store.jobs(active_only=True)] == [2, 0]
    log = store.job(jobs[0].id).log_tail
    assert len(log) == LOG_TAIL_CHARACTERS and log.endswith("xthe end")


def test_times_come_back_in_utc(store):
    job = store.create_job("profile", {})
    assert job.created.utcoffset() == timedelta(0)
    assert abs((store.job(job.id).created - now()).total_seconds()) < 5
