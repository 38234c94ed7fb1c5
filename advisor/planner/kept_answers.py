"""Answers of a probe kept in a folder, so that a refinement that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from advisor.errors import StorageError
from advisor.estimates import Change, Losses
from advisor.planner.refine import Assignments, Changes, Part, Probe

T = TypeVar("T")


class KeptProbe:
    """A probe that asks another one only what no earlier run asked.

    Args:
        probe: what is asked.
        folder: of the answers; it must be of the same model, text and way of measuring.
    """

    def __init__(self, probe: Probe, folder: Path):
        self.probe, self.folder = probe, folder
        _carefully(lambda: folder.mkdir(parents=True, exist_ok=True))

    def tokens(self, part: Part) -> int:
        return self.probe.tokens(part)

    def base_perplexity(self, part: Part) -> float:
        return self.probe.base_perplexity(part)

    def losses(self, assignments: Assignments, part: Part) -> Losses:
        kept = self.folder / f"{part}-{_digest(assignments)}.npz"
        found = _read(kept)
        if found is None:
            losses = self.probe.losses(assignments, part)
            found = {"kl": losses.kl, "delta_nll": losses.delta_nll}
            _write(kept, found)
        return Losses(**found)

    def changes(self, assignments: Assignments, others: list[tuple[str, str]]) -> Changes:
        kept = self.folder / f"changes-{_digest([dict(assignments), others])}.npz"
        found = _read(kept)
        if found is None:
            changes = self.probe.changes(assignments, others)
            names = ("kl", "text", "projections")
            found = {name: np.stack([getattr(changes[key], name) for key in others]) for name in names}
            _write(kept, found)
        return {key: Change(*row) for key, *row in zip(others, *found.values(), strict=True)}

    def forget(self) -> None:
        """What is finished will not be asked again."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=dict).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """None where there is nothing whole."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    def write() -> None:
        beside = path.with_suffix(".partial.npz")
        np.savez(beside, **arrays)
        beside.rename(path)

    _carefully(write)


def _carefully(write: Callable[[], T]) -> T:
    try:
        return write()
    except OSError as error:
        raise StorageError(
            f"What refining finds cannot be kept ({error}): make room, or set ADVISOR_HOME to a folder with room."
        ) from error
