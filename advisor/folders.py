"""A new folder that appears whole or not at all: everything is written beside it, then renamed."""

from __future__ import annotations

import glob
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import psutil

from advisor.errors import StorageError
from advisor.types import ExportRecord

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PLAN_FILE = "plan.json"
RECORD_FILE = "export.json"
CARD_FILE = "README.md"
QUANTO_MAP = "quanto_qmap.json"


_PIECE = 16 << 20

_being_written: set[Path] = set()


def check_free(folder: Path) -> Path:
    """Refuse early to write over something, and where nothing can be written.

    Returns:
        The place itself: absolute, and what a link leads to in place of the link.

    Raises:
        StorageError: the place exists and holds something, or is a file, or lies in what `apply` wrote, or takes no
            folder, or is the folder that this runs in.
    """
    place = _place(folder)
    if record_in(place.parent) is not None:
        raise StorageError(f"{folder} lies inside a folder that `apply` wrote: choose a place beside it.")
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise StorageError(f"{folder} already exists: choose another folder, or remove it first.")
    if place.is_dir() and place.samefile(Path()):
        # It would be replaced, and whoever stands in it would look into one that is no longer there.
        raise StorageError(f"{place} is the folder that you are in: name a new folder in it.")
    parent = next(one for one in place.parents if one.exists())
    try:
        with TemporaryDirectory(prefix=".", suffix=".part", dir=parent):
            pass
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written, since {parent} takes no new folder ({error.strerror or error}). Choose "
            "another folder."
        ) from error
    return place


def record_in(folder: Path) -> ExportRecord | None:
    """How an export was written; None where it does not say."""
    try:
        return ExportRecord.model_validate_json((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, as_in_memory: bool = False
) -> None:
    """Write weights, configuration and tokenizer; every failure to write is an OSError.

    With `as_in_memory` the tensors keep the names that they have in the model: `save_pretrained` writes those of the
    published checkpoint, which for fused experts are others.
    """
    from safetensors import SafetensorError

    if as_in_memory:
        # A tied tensor is written once, under its first name.
        first = {tensor.data_ptr(): name for name, tensor in reversed(model.state_dict().items())}
        state = {name: tensor for name, tensor in model.state_dict().items() if first[tensor.data_ptr()] == name}
        save_tensors(state, model, tokenizer, folder)
        return
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # what a full disk is called in there
        raise OSError(str(error)) from error
    tokenizer.save_pretrained(folder)


def save_tensors(
    state: dict[str, torch.Tensor],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write these tensors in place of the model's own, with its configuration and tokenizer; failures are OSErrors.

    `metadata` goes into the header of every file.
    """
    from huggingface_hub import save_torch_state_dict
    from safetensors import SafetensorError

    try:
        save_torch_state_dict(state, folder, metadata=metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` when the block ends well and is removed when it does not.

    A folder that such a block gave is its own: who writes into it with a block of their own adds to it.

    Raises:
        StorageError: `folder` is taken, or the disk is full or not writable.
    """
    if folder in _being_written:
        yield folder
        return
    folder = check_free(folder)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        _sweep(folder)
        beside.mkdir(parents=True)
        _being_written.add(beside)
        yield beside
        mode = beside.stat().st_mode & 0o666  # as the account's umask has it: safetensors writes for the owner alone
        for path in filter(Path.is_file, beside.rglob("*")):
            path.chmod(mode)
        if folder.is_dir():
            folder.rmdir()
        beside.rename(folder)
    except OSError as error:
        raise StorageError(
            f"{folder} could not be written: {error.strerror or error}. Free some space or choose another "
            "folder; nothing was left behind."
        ) from error
    finally:
        _being_written.discard(beside)
        shutil.rmtree(beside, ignore_errors=True)


def zip_folder(folder: Path, advance: Callable[[int, int], None]) -> Path:
    """Write `<folder>.zip` beside the folder, whole or not at all; nothing is compressed, since weights do not shrink.

    Args:
        advance: called after every piece with (bytes done, bytes in all); what it raises stops the work.

    Raises:
        StorageError: it cannot be written.
    """
    folder = _place(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    done, total = 0, sum(path.stat().st_size for path in files)
    beside = folder.with_name(f".{folder.name}.zip.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
            for path in files:
                name = str(Path(folder.name) / path.relative_to(folder))
                with path.open("rb") as source, archive.open(name, "w", force_zip64=True) as target:
                    while piece := source.read(_PIECE):
                        target.write(piece)
                        done += len(piece)
                        advance(done, total)
        beside.replace(_zip_path(folder))
    except OSError as error:
        raise StorageError(
            f"{_zip_path(folder)} could not be written: {error.strerror or error}. Free some space; nothing was left."
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return _zip_path(folder)


def zip_of(folder: Path) -> Path | None:
    """What `zip_folder` made of the folder as it is now; None where it made nothing, or something was changed since."""
    path = _zip_path(folder)
    newest = max((file.stat().st_mtime_ns for file in folder.rglob("*")), default=0)
    return path if path.is_file() and path.stat().st_mtime_ns >= newest else None


def _zip_path(folder: Path) -> Path:
    place = _place(folder)
    return place.with_name(f"{place.name}.zip")


def _place(folder: Path) -> Path:
    """Where a path leads, absolute and without links, whether or not something is there; raises StorageError."""
    try:
        return folder.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle, or a folder to start from that was removed
        raise StorageError(f"{folder} leads nowhere ({error}): choose another folder.") from error


def _sweep(folder: Path) -> None:
    """Remove what a killed process left beside `folder`."""
    own = re.compile(rf"\.{re.escape(folder.name)}\.(\d{{1,9}})\.part")  # more digits than those no process has
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.part"):
        process = own.fullmatch(left.name)
        if process and not psutil.pid_exists(int(process[1])):
            shutil.rmtree(left, ignore_errors=True)
