"""Where the product keeps things on this machine: one data folder, and in it one folder of fetched models."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_data_path

from advisor.errors import StorageError


def data_dir() -> Path:
    """The data folder (`ADVISOR_HOME`, else the platform's own place), made when missing; StorageError if not."""
    return _folder(os.environ.get("ADVISOR_HOME") or user_data_path("quantization-advisor", appauthor=False))


def models_dir() -> Path:
    """Where fetched and converted models are kept (`ADVISOR_MODELS`, else inside the data folder)."""
    return _folder(os.environ.get("ADVISOR_MODELS") or data_dir() / "models")


def converted_dir() -> Path:
    """Where GGUF models are kept as safetensors, one folder each; not made here."""
    return models_dir() / "converted"


def absolute(path: str) -> Path | None:
    """`path` made absolute, its `~` resolved; None where no such path can be (an unknown user, a name too long)."""
    try:
        found = Path(path).expanduser().absolute()
        found.exists()
    except (OSError, RuntimeError, ValueError):
        return None
    return found


def _folder(path: str | Path) -> Path:
    folder = Path(path).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The folder {folder} cannot be made ({error.strerror}): set ADVISOR_HOME to one that can be written."
        ) from error
    return folder
