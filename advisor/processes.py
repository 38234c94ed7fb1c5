"""The processes of jobs: started apart from this one, looked up, ended, and their last words read; used by `jobs`."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from advisor.types import Job, now

ROOT = Path(__file__).resolve().parent.parent
# A process of another machine cannot be looked up: it counts as gone after this silence.
LOST_SECONDS = 180.0
# Between a job's row and its process's number lies one process start; without a number for longer, that start failed.
START_SECONDS = 60.0
LOG_TAIL_BYTES = 16_384
LOG_TAIL_LINES = 40

# What this process started, by job: to read how each ended, and to leave no zombies behind.
_children: dict[str, subprocess.Popen[bytes]] = {}


def start(job_id: str, command: Sequence[str], log: Path, variables: Mapping[str, str]) -> int:
    """Start `command` with the job's id as its last argument, printing into `log`; its process number.

    Raises:
        OSError: the log or the process cannot be created.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        **variables,
        "PYTHONUNBUFFERED": "1",  # what was printed before a crash must be in the log
        "PYTHONFAULTHANDLER": "1",  # a native crash then says where it happened
    }
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*command, job_id],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # closing the terminal or stopping the web server does not stop the job
        )
    _children[job_id] = child
    return child.pid


def alive(job: Job) -> bool:
    """Whether the process of an unfinished job still runs, or waits, or is about to start."""
    silence = (now() - (job.heartbeat or job.created)).total_seconds()
    if job.pid is None:
        return silence < START_SECONDS
    if job.host != socket.gethostname():
        return silence < LOST_SECONDS
    return runs_here(job.id, job.pid)


def runs_here(job_id: str, pid: int) -> bool:
    """Whether process `pid` of this machine is the job's: one that only reuses the number does not carry its id."""
    child = _children.get(job_id)
    if child is not None and child.pid == pid:
        return child.poll() is None
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and job_id in process.cmdline()
    except psutil.Error:
        return False  # gone, or of another user: jobs run as the one who looks, so that one only reuses the number


def exit_status(job_id: str) -> int | None:
    """How the job's process ended (negative: by that signal); None if it runs, or if it is not our own child."""
    child = _children.get(job_id)
    return None if child is None else child.poll()


def forget_ended(keep: Iterable[str]) -> None:
    """Let go of the children that ended, except those of the jobs in `keep`, whose end is still to be read."""
    for job_id in set(_children) - set(keep):
        if _children[job_id].poll() is not None:
            _children.pop(job_id, None)


def terminate(pid: int, patience_seconds: float = 1.0) -> None:
    """End the process and everything it started: asked first, and killed where that does not help."""
    try:
        first = psutil.Process(pid)
        family = [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for action in (psutil.Process.terminate, psutil.Process.kill):
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                action(process)
        _, family = psutil.wait_procs(family, timeout=patience_seconds)


def last_lines(log: Path) -> str:
    """The end of a log, of a progress bar only what it showed last; empty where the file cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
    return "\n".join(lines[-LOG_TAIL_LINES:]).strip()
