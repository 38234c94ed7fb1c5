"""Jobs with handlers of the tests, run as real child processes over a real database file."""

import sys
import time

import pytest

from advisor import jobs
from storage.engine import open_repository

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

    def __init__(self, folder, url):
        self.folder = folder
        self.store = open_repository(url)
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
