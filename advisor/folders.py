"""A new folder that appears whole or not at all: everything is written beside it, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from advisor.errors import StorageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PLAN_FILE = "plan.json"
QUANTO_MAP = "quanto_qmap.json"


def check_free(folder: Path) -> None:
    """Refuse early to write over something.

    Raises:
        StorageError: `folder` exists and holds something, or is a file.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise StorageError(f"{folder} already exists: choose another folder, or remove it first.")


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights, configuration and tokenizer; every failure to write is an OSError."""
    from safetensors import SafetensorError

    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # what a full disk is called in there
        raise OSError(str(error)) from error
    tokenizer.save_pretrained(folder)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` when the block ends well and is removed when it does not.

    Raises:
        StorageError: `folder` is taken, or the disk is full or not writable.
    """
    check_free(folder)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        beside.mkdir(parents=True)
        yield beside
        if folder.is_dir():
            folder.rmdir()
        beside.rename(folder)
    except OSError as error:
        raise StorageError(
            f"{folder} could not be written: {error.strerror or error}. Free some space or choose another "
            "folder; nothing was left behind."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
