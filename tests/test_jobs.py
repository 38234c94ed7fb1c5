"""Jobs: real child processes over a real database file; they queue, report, stop, crash and resume."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from sqlalchemy import event, text

from advisor import jobs, pipeline, processes
from advisor.errors import AdvisorError
from advisor.types import JobStatus, ProfileRequest, Progress
from storage.engine import open_repository
from tests.sample_results import catalogue as sample_catalogue

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 30

# What a job's process runs: the product's own `run_job`, with a handler of this test in place of the pipeline.
PREAMBLE = """
import os, signal, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, os.getcwd())
from advisor import jobs
from advisor.errors import JobCancelled, ModelError
from advisor.types import Progress
from storage.engine import open_repository

here = Path(__file__).parent

def wait_for(name):
    while not (here / name).exists():
        time.sleep(0.01)

def handler(params, store, report, cancelled):
    globals()[params["do"]](params, store, report, cancelled)
    return {"params": params, "torch": "torch" in sys.modules, "pid": os.getpid()}

def nothing(params, store, report, cancelled):
    pass

def count(params, store, report, cancelled):
    for done in range(1, 1001):
        report(Progress(stage="measure", done=done, total=1000, message="layer"))
    report(Progress(stage="save", message="last"))

def refuse(params, store, report, cancelled):
    raise ModelError("The model 'x' was not found; check its name.")

def fail(params, store, report, cancelled):
    raise ZeroDivisionError("division by nothing")

def crash(params, store, report, cancelled):
    print("loading block 7")
    os.kill(os.getpid(), signal.SIGSEGV)

def note_times(params, store, report, cancelled):
    with open(here / "times", "a") as file:
        file.write(f"{params['name']} start\\n")
        file.flush()
        time.sleep(0.3)
        file.write(f"{params['name']} end\\n")

def measure_until_cancelled(params, store, report, cancelled):
    report(Progress(stage="measure"))
    while not cancelled():
        time.sleep(0.02)
    raise JobCancelled("Cancelled; resume the job to go on.")

def ignore_everything(params, store, report, cancelled):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    grandchild = subprocess.Popen(["sleep", "600"])
    report(Progress(stage="stuck", message=str(grandchild.pid)))
    time.sleep(600)

def hold(params, store, report, cancelled):
    report(Progress(stage="held"))
    wait_for("release")

jobs.HANDLERS["profile"] = handler
jobs.run_job(sys.argv[-1], open_repository(os.environ["ADVISOR_DATABASE_URL"]), folder=here)
"""


class Bench:
    """A database, a folder for logs, and a script to run as the job's process."""

    def __init__(self, folder):
        self.folder = folder
        self.store = open_repository(f"sqlite:///{folder / 'advisor.db'}")
        (folder / "child.py").write_text(PREAMBLE)
        self.command = [sys.executable, str(folder / "child.py")]

    def submit(self, do, **params):
        return jobs.submit(self.store, "profile", {"do": do, **params}, command=self.command, folder=self.folder)

    def list(self, **options):
        return jobs.list_jobs(self.store, folder=self.folder, **options)

    def until(self, job, condition):
        """The job once `condition` holds for it, listing as a page does."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            self.list()
            current = self.store.job(job.id)
            if condition(current):
                return current
            time.sleep(0.02)
        pytest.fail(f"waited in vain; the job is {current!r}")

    def ended(self, job):
        return self.until(job, lambda current: current.status.ended)

    def at_stage(self, job, stage):
        return self.until(job, lambda current: current.progress is not None and current.progress.stage == stage)


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    for job in bench.store.jobs(active_only=True):
        jobs.cancel(bench.store, job.id, force=True)
    bench.store.close()


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
    assert jobs.cancel(bench.store, running.id).status is JobStatus.RUNNING
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


# ------------------------------------------------------------------------------------- who is still alive


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


def test_inspecting_can_be_cancelled(bench, monkeypatch):
    seen = []
    monkeypatch.setattr(pipeline, "inspect_model", lambda *arguments: seen.append(arguments) or sample_catalogue())
    cancelled = lambda: True  # noqa: E731
    jobs.HANDLERS["inspect"]({"model": "smollm2"}, bench.store, None, cancelled)
    assert seen == [("smollm2", bench.store, None, cancelled)]


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


# -------------------------------------------------------------------------------------- progress and log


def test_progress_is_written_a_few_times_a_second_but_stages_and_the_end_always(bench):
    job = bench.store.create_job("profile", {})
    bench.store.claim_job(job.id, 1)
    written = []

    def note(connection, cursor, statement, parameters, context, executemany):
        if "progress=" in statement:
            written.append(statement)

    event.listen(bench.store._engine, "before_cursor_execute", note)
    report = jobs._Reporter(bench.store, job.id)
    start = time.monotonic()
    for done in range(500):
        report(Progress(stage="load", done=done, total=1000))
    for done in range(501):
        report(Progress(stage="measure", done=done, total=500))
    seconds = time.monotonic() - start
    assert bench.store.job(job.id).progress == Progress(stage="measure", done=500, total=500)
    assert 3 <= len(written) <= 3 + seconds / jobs.REPORT_SECONDS
    report(Progress(stage="measure", done=7, total=500))
    report.flush()
    assert bench.store.job(job.id).progress.done == 7


def test_a_request_is_stored_as_plain_data(bench):
    command = [sys.executable, "-c", "pass"]
    request = ProfileRequest(model="smollm2", formats=("int8", "nf4_g64"))
    job = jobs.submit(bench.store, "profile", request, command=command, folder=bench.folder)
    assert ProfileRequest(**job.params) == request
    bench.ended(job)


def test_the_last_lines_of_a_log_show_a_progress_bars_last_state(tmp_path):
    (tmp_path / "x.log").write_bytes(b"start\n10%\r50%\r100%\r\n\xff odd\n" + b"".join(b"%d\n" % n for n in range(5)))
    assert jobs.log_tail("x", tmp_path).splitlines() == ["start", "100%", "\ufffd odd", "0", "1", "2", "3", "4"]
    assert jobs.log_tail("no such job", tmp_path) == ""
    (tmp_path / "long.log").write_bytes(b"line\n" * 100_000 + b"end\n")
    assert len(jobs.log_tail("long", tmp_path).splitlines()) <= processes.LOG_TAIL_LINES
    assert jobs.log_tail("long", tmp_path).endswith("end")


def test_ended_children_are_waited_for_so_that_no_zombies_stay(bench):
    job = bench.ended(bench.submit("nothing"))
    bench.until(job, lambda current: not psutil.pid_exists(current.pid))
