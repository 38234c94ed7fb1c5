"""A disk that is full: what a command says then, and that it leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

_PROGRAM = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.argv = ["advisor", "apply", "plan.json", "--to", "{to}", "--out", "new"]
sys.path.insert(0, {repository!r})
from advisor.cli import main
main()
"""
_PROGRESS = ("load", "method", "calibrate", "apply")


def assert_nothing_is_left(folder: Path, to: str, limit: int = 1 << 16) -> None:
    """Apply `folder`'s plan.json where the system refuses every file beyond `limit` bytes; the weights are larger."""
    before = {path.name for path in folder.iterdir()}
    program = _PROGRAM.format(limit=limit, to=to, repository=str(REPOSITORY))
    ran = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 2
    errors = [line for line in ran.stderr.splitlines() if not line.startswith(_PROGRESS)]
    assert len(errors) == 1 and "could not be written" in errors[0], ran.stderr
    assert {path.name for path in folder.iterdir()} <= before | {"advisor-home"}
