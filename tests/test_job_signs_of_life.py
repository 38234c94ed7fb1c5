"""Which jobs are still alive: processes by their identity, other machines by their silence."""

import os
import socket
import subprocess
import time

import psutil
import pytest
from sqlalchemy import text

from advisor import jobs, processes
from advisor.errors import AdvisorError
from advisor.types import JobStatus


def test_a_process_that_only_reuses_the_number_of_a_dead_job_is_not_taken_for_it(bench):
    job = bench.store.create_job("profile", {})
    stranger = subprocess.Popen(["sleep", "60"])
    bench.store.enlist_job(job.id, stranger.pid, socket.gethostname())
    assert [ended.id for ended in jobs.reap(bench.store, folder=bench.folder)] == [job.id]
    jobs.cancel(bench.store, job.id, force=True)
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_process_that_may_not_be_read_keeps_no_dead_job_alive(bench, monkeypatch):
    def refuse(pid):
        raise psutil.AccessDenied(pid)

    job = bench.store.create_job("profile", {})
    bench.store.enlist_job(job.id, os.getpid(), socket.gethostname())
    monkeypatch.setattr(psutil, "Process", refuse)
    assert [ended.id for ended in jobs.reap(bench.store, folder=bench.folder)] == [job.id]


def test_a_job_stopped_by_force_is_cancelled_before_its_process_ends(bench, monkeypatch):
    job = bench.at_stage(bench.submit("hold"), "held")
    ended = []
    monkeypatch.setattr(processes, "terminate", lambda pid: ended.append(bench.store.job(job.id).status))
    jobs.cancel(bench.store, job.id, force=True)
    assert ended == [JobStatus.CANCELLED]
    psutil.Process(job.pid).kill()


def test_a_job_of_another_machine_is_judged_by_its_silence(bench):
    job = bench.store.create_job("profile", {})
    bench.store.enlist_job(job.id, 1, "another-machine")
    assert jobs.reap(bench.store, folder=bench.folder) == []
    bench.store.claim_job(job.id, 1)
    with pytest.raises(AdvisorError, match="another-machine; stop it by force there"):
        jobs.cancel(bench.store, job.id, force=True)
    _let_time_pass(bench)
    assert [ended.status for ended in jobs.reap(bench.store, folder=bench.folder)] == [JobStatus.FAILED]


def test_a_job_whose_process_never_started_fails_after_a_while(bench):
    bench.store.create_job("profile", {})
    assert jobs.reap(bench.store, folder=bench.folder) == []
    _let_time_pass(bench)
    (ended,) = jobs.reap(bench.store, folder=bench.folder)
    assert "never started" in ended.error


def _let_time_pass(bench):
    with bench.store._engine.begin() as connection:
        earlier = {"created": "2020-01-01 00:00:00.000000"}
        connection.execute(text("UPDATE jobs SET created = :created"), earlier)
        connection.execute(text("UPDATE jobs SET heartbeat = :created WHERE heartbeat IS NOT NULL"), earlier)


def test_a_running_job_gives_signs_of_life_while_its_handler_is_silent(bench, monkeypatch):
    monkeypatch.setattr(jobs, "HEARTBEAT_SECONDS", 0.02)
    job = bench.store.create_job("profile", {})
    bench.store.claim_job(job.id, 1)
    _let_time_pass(bench)
    with jobs._heartbeat(bench.store, job.id):
        time.sleep(0.3)
    assert bench.store.job(job.id).heartbeat.year > 2020
