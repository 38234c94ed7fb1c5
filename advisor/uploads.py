"""Keeps a model file that somebody sends: written beside, checked, then renamed to a place that its content names."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO

from advisor.errors import ModelError, StorageError
from advisor.paths import data_dir

_PIECE = 1 << 22
# The header of a GGUF file: magic, version (32 bits), number of tensors and of key-value pairs (64 bits each); see
# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
_MAGIC = b"GGUF"
_HEADER_BYTES = 24
_VERSIONS = (2, 3)


def keep_gguf(name: str, file: BinaryIO) -> Path:
    """Copy an uploaded GGUF file into the data folder; the same content sent again is found where it lies.

    Args:
        name: what the file is called where it comes from; only its last part is used.
        file: its content, read piece by piece.

    Raises:
        ModelError: it is no GGUF file. StorageError: the disk is full or not writable. Nothing is left behind.
    """
    folder = data_dir() / "uploads"
    beside = folder / f".{os.getpid()}-{id(file):x}.part"
    header = file.read(_HEADER_BYTES)
    _check(name, header)
    digest = hashlib.sha256(header)
    try:
        folder.mkdir(exist_ok=True)
        with beside.open("xb") as target:
            target.write(header)
            while piece := file.read(_PIECE):
                digest.update(piece)
                target.write(piece)
        kept = folder / digest.hexdigest()[:12] / _safe(name)
        kept.parent.mkdir(exist_ok=True)
        beside.replace(kept)
    except OSError as error:
        raise StorageError(
            f"{name} could not be kept in {folder} ({error.strerror or error}): free some space, or set ADVISOR_HOME."
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return kept


def _check(name: str, header: bytes) -> None:
    version, tensors = int.from_bytes(header[4:8], "little"), int.from_bytes(header[8:16], "little")
    if len(header) < _HEADER_BYTES or header[:4] != _MAGIC or version not in _VERSIONS or not tensors:
        raise ModelError(f"{name} is not a GGUF model (version 2 or 3): choose a .gguf file that llama.cpp reads.")


def _safe(name: str) -> str:
    """A file name that is no path and no surprise to a shell."""
    stem = re.sub(r"[^\w.+-]+", "_", Path(name.replace("\\", "/")).name).removesuffix(".gguf").strip("._")
    return f"{stem[:120] or 'model'}.gguf"
