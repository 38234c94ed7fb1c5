"""Jobs: long work in a child process that outlives the page; the database row is all that both sides share.

A page submits, lists, cancels and resumes; the child waits for its turn, calls the pipeline, and reports. No side
imports torch here: the child's handler does, once it is the job's turn.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from advisor import processes
from advisor.errors import AdvisorError, JobCancelled, StorageError
from advisor.job_handlers import HANDLERS
from advisor.paths import data_dir
from advisor.types import Job, JobStatus, Progress, now
from storage.repository import Repository

POLL_SECONDS = 0.5
REPORT_SECONDS = 0.25
HEARTBEAT_SECONDS = 5.0


# ------------------------------------------------------------------------------------------ for pages


def submit(
    store: Repository,
    kind: str,
    request: BaseModel | dict[str, Any],
    *,
    person: str = "",
    command: Sequence[str] | None = None,
    folder: Path | None = None,
) -> Job:
    """Queue a job and start its process, which waits for its turn; returns at once.

    Args:
        kind: a key of HANDLERS.
        request: what the handler takes.
        person: who asks; the queue serves persons in turn, so that nobody's many jobs hold up another's one.
        command: what to start instead of `python -m advisor run-job`; the job's id is appended to it.
        folder: where logs go; None is `jobs` in the data folder.

    Raises:
        StorageError: the job cannot be stored; then nothing was started.
    """
    if kind not in HANDLERS:
        raise ValueError(f"no handler for jobs of kind {kind!r}")
    params = request.model_dump(mode="json") if isinstance(request, BaseModel) else dict(request)
    job = store.create_job(kind, params, person)
    arguments = command or (sys.executable, "-m", "advisor", "run-job")
    try:
        pid = processes.start(job.id, arguments, log_file(job.id, folder), {"ADVISOR_DATABASE_URL": store.url})
    except OSError as error:
        reason = f"The job's process could not be started ({error}); free memory or disk, then resume the job."
        store.finish_job(job.id, JobStatus.FAILED, error=reason)
    else:
        store.note_process(job.id, pid, socket.gethostname())
    return _known(store, job.id)


def cancel(store: Repository, job_id: str, *, force: bool = False) -> Job:
    """Ask a job to stop: a queued one ends at once, a running one after its current measurement.

    Args:
        force: end its process and everything that process started, without waiting; what is stored stays.

    Raises:
        AdvisorError: no such job, or `force` for a job of another machine.
    """
    job = store.request_cancel(job_id)
    if job is None:
        raise _unknown(job_id)
    if not force or job.status.ended:
        return job
    if job.host and job.host != socket.gethostname():
        raise AdvisorError(f"The job runs on the machine {job.host}; stop it by force there.")
    # The first to end a job wins: were its process gone before, a page's reap could call it a failure in between.
    store.finish_job(job_id, JobStatus.CANCELLED)
    if job.pid is not None and processes.runs_here(job.id, job.pid):
        processes.terminate(job.pid)
    return _known(store, job_id)


def resume(
    store: Repository,
    job_id: str,
    *,
    person: str = "",
    command: Sequence[str] | None = None,
    folder: Path | None = None,
) -> Job:
    """Submit an ended job's request again as a new job: what is stored is not measured twice.

    Profiling continues with the measurements that are not stored yet, applying with the evaluations. A job that still
    runs or waits is returned as it is.
    """
    job = _known(store, job_id)
    if not job.status.ended:
        return job
    return submit(store, job.kind, job.params, person=person or job.person, command=command, folder=folder)


def list_jobs(
    store: Repository, limit: int = 50, active_only: bool = False, *, folder: Path | None = None
) -> list[Job]:
    """The newest jobs first, after ending those whose process is gone."""
    with suppress(StorageError):  # a full disk must not hide the list: the next call tries again
        reap(store, folder=folder)
    return store.jobs(limit, active_only)


def reap(store: Repository, *, folder: Path | None = None) -> list[Job]:
    """Mark as failed every unfinished job whose process is gone, with the last lines of its log; returns those."""
    active = store.jobs(limit=1000, active_only=True)
    ended = []
    for job in active:
        if processes.alive(job):
            continue
        log = log_tail(job.id, folder)
        error = _failure_sentence(job, processes.exit_status(job.id), log)
        if store.finish_job(job.id, JobStatus.FAILED, error=error, log_tail=log or None):
            ended.append(_known(store, job.id))
    processes.forget_ended(keep={job.id for job in active})
    return ended


def log_file(job_id: str, folder: Path | None = None) -> Path:
    """The file that holds everything the job's process printed."""
    return (folder or data_dir() / "jobs") / f"{job_id}.log"


def log_tail(job_id: str, folder: Path | None = None) -> str:
    """The last lines of the job's log; empty where there is none."""
    return processes.last_lines(log_file(job_id, folder))


# -------------------------------------------------------------------------------------- for the child


def run_job(job_id: str, store: Repository | None = None, *, folder: Path | None = None) -> Job:
    """Run a queued job in this process, once it is its turn; returns it as it ended.

    The handler's refusals (AdvisorError) become the job's `error`; anything else leaves its traceback in the log only.
    A job that is not queued is left alone. This process must carry the job's id among its arguments: that is how others
    tell that it lives.

    Raises:
        AdvisorError: there is no such job.
        StorageError: the outcome could not be stored.
    """
    if store is None:
        from advisor import pipeline

        store = pipeline.open_store()
    job = _known(store, job_id)
    if store.enlist_job(job_id, os.getpid(), socket.gethostname()):
        with _heartbeat(store, job_id):
            if _wait_for_turn(store, job_id, folder):
                _carry_out(store, job, folder)
    return _known(store, job_id)


def _wait_for_turn(store: Repository, job_id: str, folder: Path | None) -> bool:
    while not store.claim_job(job_id, os.getpid()):
        if _known(store, job_id).status is not JobStatus.QUEUED:
            return False  # cancelled while it waited
        reap(store, folder=folder)  # a job before it that died would block the queue for ever
        time.sleep(POLL_SECONDS)
    return True


def _carry_out(store: Repository, job: Job, folder: Path | None) -> None:
    report = _Reporter(store, job.id)
    result, error = None, ""
    try:
        result = HANDLERS[job.kind](job.params, store, report, lambda: store.cancel_requested(job.id))
        status = JobStatus.DONE
    except JobCancelled:
        status = JobStatus.CANCELLED
    except AdvisorError as refusal:
        status, error = JobStatus.FAILED, str(refusal)
        _print(error)
    except Exception as unexpected:
        traceback.print_exc()
        status, error = JobStatus.FAILED, f"The job stopped unexpectedly: {_last_line(unexpected)}"
    report.flush()
    _print(f"job {job.id} {status.value}")
    sys.stderr.flush()
    store.finish_job(job.id, status, result=result, error=error, log_tail=log_tail(job.id, folder) or None)


class _Reporter:
    """Writes progress to the row, at most about four times a second; a new stage and its end are never left out."""

    def __init__(self, store: Repository, job_id: str):
        self._store, self._job_id = store, job_id
        self._stage: str | None = None
        self._written_at = 0.0
        self._pending: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        self._pending = progress
        new_stage = progress.stage != self._stage
        if new_stage:
            self._stage = progress.stage
            self._log(f"{progress.stage} {progress.message}".rstrip())
        complete = progress.total > 0 and progress.done >= progress.total
        if new_stage or complete or time.monotonic() - self._written_at >= REPORT_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._pending is None:
            return
        try:
            self._store.report(self._job_id, self._pending)
            self._pending = None
        except StorageError as error:
            _print(str(error))  # progress is not worth losing the work for
        self._written_at = time.monotonic()

    def _log(self, line: str) -> None:
        stamped = f"{now():%H:%M:%S} {line}"
        _print(stamped)
        try:
            self._store.append_log(self._job_id, stamped + "\n")
        except StorageError as error:
            _print(str(error))


@contextmanager
def _heartbeat(store: Repository, job_id: str) -> Iterator[None]:
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(HEARTBEAT_SECONDS):
            with suppress(StorageError):  # the next beat tries again
                store.beat(job_id)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


# ------------------------------------------------------------------------------------------ sentences


def _failure_sentence(job: Job, status_code: int | None, log: str) -> str:
    if job.pid is None:
        return "The job's process never started; resume the job to try again."
    fatal = [line for line in log.splitlines() if line.startswith("Fatal Python error")]
    if status_code is not None and status_code < 0:
        why = f"was ended by {signal.Signals(-status_code).name}"
        if -status_code == signal.SIGKILL:
            why += ", often because memory ran out"
    elif fatal:
        why = f"crashed ({fatal[-1].removeprefix('Fatal Python error: ')})"
    else:
        last = log.splitlines()[-1] if log else "it left no message"
        why = f"ended unexpectedly ({last[:300]})"
    return f"The job's process {why}; resume the job to continue from what is stored."


def _last_line(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _print(line: str) -> None:
    print(line, flush=True)


def _known(store: Repository, job_id: str) -> Job:
    job = store.job(job_id)
    if job is None:
        raise _unknown(job_id)
    return job


def _unknown(job_id: str) -> AdvisorError:
    return AdvisorError(f"There is no job {job_id} in this database; look it up on the History page.")
