"""A disk that is full: what a command says then, and that it leaves nothing behind."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PROGRESS = ("load", "method", "calibrate", "apply")


def assert_nothing_is_left(
    folder: Path,
    *targets: str,
    run: Callable[..., tuple[int, str, str]],
    limit: int = 1 << 16,
) -> None:
    """Apply `folder`'s plan.json where the system refuses every file beyond `limit` bytes; the weights are larger."""
    before = {path.name for path in folder.iterdir()}
    for to in targets:
        with _files_up_to(limit):
            status, _, said = run("apply", folder / "plan.json", "--to", to, "--out", folder / "new")
        errors = [line for line in said.splitlines() if not line.startswith(_PROGRESS)]
        assert status == 2 and len(errors) == 1 and "could not be written" in errors[0], said
    assert {path.name for path in folder.iterdir()} <= before | {"advisor-home"}


@contextmanager
def _files_up_to(limit: int) -> Iterator[None]:
    """Writes beyond are refused with an error (Python ignores the signal that would end it)."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
