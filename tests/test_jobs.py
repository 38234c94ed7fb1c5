"""Jobs: real child processes over a real database file; they queue, report, stop, crash and resume."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from advisor import jobs, pipeline, processes
from advisor.errors import AdvisorError
from advisor.types import JobStatus, Progress
from tests.job_bench import PATIENCE_SECONDS
from tests.sample_results import catalogue as sample_catalogue

ROOT = Path(__file__).resolve().parent.parent


# --------------------------------------------------------------------------------------- how jobs end


def test_a_job_runs_in_another_process_and_leaves_its_result_progress_and_log(bench):
    submitted = bench.submit("count", name="é")
    assert submitted.status is JobStatus.QUEUED and submitted.pid is not None
    job = bench.ended(submitted)
    assert job.status is JobStatus.DONE
    assert job.result["params"] == {"do": "count", "name": "é"}
    assert job.result["pid"] == job.pid == submitted.pid
    assert job.progress == Progress(stage="save", message="last")
    assert "measure layer" in job.log_tail and "save last" in job.log_tail
    assert job.created <= job.started <= job.finished


def test_a_job_waits_for_its_turn_without_loading_torch(bench):
    assert bench.ended(bench.submit("nothing")).result["torch"] is False


def test_a_refusal_becomes_the_jobs_error_word_for_word(bench):
    job = bench.ended(bench.submit("refuse"))
    assert (job.status, job.error) == (JobStatus.FAILED, "The model 'x' was not found; check its name.")
    assert "Traceback" not in job.log_tail


def test_an_unexpected_failure_is_a_sentence_and_its_traceback_is_in_the_log_only(bench):
    job = bench.ended(bench.submit("fail"))
    assert job.status is JobStatus.FAILED
    assert job.error == "The job stopped unexpectedly: ZeroDivisionError: division by nothing"
    assert "Traceback" in job.log_tail and "child.py" in job.log_tail


def test_a_native_crash_is_a_failed_job_with_its_last_lines(bench):
    job = bench.ended(bench.submit("crash"))
    assert job.status is JobStatus.FAILED
    assert "SIGSEGV" in job.error and "resume the job" in job.error
    assert "loading block 7" in job.log_tail and "Segmentation fault" in job.log_tail


def test_a_program_that_cannot_be_started_is_a_failed_job(bench):
    job = jobs.submit(bench.store, "profile", {}, command=["/nonexistent/program"], folder=bench.folder)
    assert job.status is JobStatus.FAILED
    assert "could not be started" in job.error


def test_a_program_that_ends_before_it_takes_the_job_is_a_failed_job_with_its_message(bench):
    command = [sys.executable, "-c", "print('no room'); raise SystemExit(3)"]
    job = bench.ended(jobs.submit(bench.store, "profile", {}, command=command, folder=bench.folder))
    assert job.status is JobStatus.FAILED
    assert "no room" in job.error and job.log_tail == "no room"


# -------------------------------------------------------------------------- pages come and go, jobs stay


def test_a_job_outlives_the_page_that_submitted_it_and_its_later_crash_is_seen_by_another(bench):
    code = f"""
from pathlib import Path
from advisor import jobs
from storage.engine import open_repository
store = open_repository({bench.store.url!r})
print(jobs.submit(store, "profile", {{"do": "hold"}}, command={bench.command!r}, folder=Path({str(bench.folder)!r})).id)
"""
    page = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    (listed,) = bench.list()
    assert listed.id == page.stdout.strip()
    running = bench.at_stage(listed, "held")
    psutil.Process(running.pid).kill()
    job = bench.ended(running)
    assert job.status is JobStatus.FAILED
    assert "ended unexpectedly" in job.error and "held" in job.log_tail


def test_jobs_run_one_at_a_time_in_the_order_submitted(bench):
    submitted = [bench.submit("note_times", name=name) for name in "abc"]
    assert [bench.ended(job).status for job in submitted] == [JobStatus.DONE] * 3
    noted = (bench.folder / "times").read_text().split("\n")[:-1]
    assert noted == ["a start", "a end", "b start", "b end", "c start", "c end"]


def test_a_dead_job_does_not_block_the_queue_although_nobody_looks(bench):
    first = bench.submit("hold")
    bench.at_stage(first, "held")
    second = bench.submit("nothing")
    psutil.Process(first.pid).kill()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not bench.store.job(second.id).status.ended and time.monotonic() < deadline:
        time.sleep(0.05)
    statuses = [bench.store.job(job.id).status for job in (first, second)]
    assert statuses == [JobStatus.FAILED, JobStatus.DONE]


# ------------------------------------------------------------------------------------ cancel and resume


def test_a_running_job_stops_when_it_next_looks_and_a_queued_one_at_once(bench):
    running = bench.submit("measure_until_cancelled")
    bench.at_stage(running, "measure")
    queued = bench.submit("nothing")
    assert jobs.cancel(bench.store, queued.id).status is JobStatus.CANCELLED
    assert jobs.cancel(bench.store, running.id).cancel_requested  # its process may have seen it already
    assert bench.ended(running).status is JobStatus.CANCELLED
    bench.until(queued, lambda job: not processes.runs_here(job.id, job.pid))
    assert bench.store.job(queued.id).started is None


def test_a_job_that_does_not_stop_can_be_ended_by_force_with_all_it_started(bench):
    job = bench.at_stage(bench.submit("ignore_everything"), "stuck")
    grandchild = psutil.Process(int(job.progress.message))
    assert jobs.cancel(bench.store, job.id).status is JobStatus.RUNNING
    assert jobs.cancel(bench.store, job.id, force=True).status is JobStatus.CANCELLED
    assert not processes.runs_here(job.id, job.pid)
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE
    assert bench.store.job(job.id).error == ""


def test_a_resumed_job_makes_the_same_request_and_a_live_one_is_not_doubled(bench):
    held = bench.at_stage(bench.submit("hold", layers="mlp"), "held")
    assert jobs.resume(bench.store, held.id).id == held.id
    psutil.Process(held.pid).kill()
    bench.ended(held)
    (bench.folder / "release").touch()
    again = jobs.resume(bench.store, held.id, command=bench.command, folder=bench.folder)
    assert again.id != held.id
    assert bench.ended(again).result["params"] == {"do": "hold", "layers": "mlp"}


def test_asking_for_a_job_that_does_not_exist_is_refused_in_a_sentence(bench):
    for ask in (jobs.cancel, jobs.resume):
        with pytest.raises(AdvisorError, match="no job nothing"):
            ask(bench.store, "nothing")
    with pytest.raises(ValueError, match="no handler"):
        jobs.submit(bench.store, "dance", {})


def test_an_ended_job_is_not_run_again(bench):
    job = bench.ended(bench.submit("nothing"))
    assert subprocess.run([*bench.command, job.id], cwd=ROOT, env=_environment(bench)).returncode == 0
    assert bench.store.job(job.id) == job


def _environment(bench):
    return os.environ | {"ADVISOR_DATABASE_URL": bench.store.url}


def test_inspecting_can_be_cancelled(bench, monkeypatch):
    seen = []
    monkeypatch.setattr(pipeline, "inspect_model", lambda *arguments: seen.append(arguments) or sample_catalogue())
    cancelled = lambda: True  # noqa: E731
    jobs.HANDLERS["inspect"]({"model": "smollm2"}, bench.store, None, cancelled)
    assert seen == [("smollm2", bench.store, None, cancelled)]


def test_ended_children_are_waited_for_so_that_no_zombies_stay(bench):
    job = bench.ended(bench.submit("nothing"))
    bench.until(job, lambda current: not psutil.pid_exists(current.pid))
