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
sys.path.insert(0, {repository!r})
from advisor.cli.commands import main
for to in {targets!r}:
    sys.argv = ["advisor", "apply", "plan.json", "--to", to, "--out", "new"]
    try:
        main()
    except SystemExit as ended:
        print(to, ended.code)
"""
_PROGRESS = ("load", "method", "calibrate", "apply")


def assert_nothing_is_left(folder: Path, *targets: str, limit: int = 1 << 16) -> None:
    """Apply `folder`'s plan.json where the system refuses every file beyond `limit` bytes; the weights are larger."""
    before = {path.name for path in folder.iterdir()}
    program = _PROGRAM.format(limit=limit, targets=targets, repository=str(REPOSITORY))
    ran = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert ran.stdout.splitlines() == [f"{to} 2" for to in targets], ran.stderr
    errors = [line for line in ran.stderr.splitlines() if not line.startswith(_PROGRESS)]
    assert len(errors) == len(targets) and all("could not be written" in error for error in errors), ran.stderr
    assert {path.name for path in folder.iterdir()} <= before | {"advisor-home"}
