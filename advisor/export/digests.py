"""The SHA-256 of every tensor and of every other file of an export, so that a later change is found and named."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from advisor.errors import ModelError
from advisor.folders import CARD_FILE, RECORD_FILE
from advisor.types import ExportRecord

_WEIGHTS = (".safetensors", ".gguf")
# What engines read by its name alone, so that one that is added counts: a chat template, say, or code.
_READ_BY_NAME = (".json", ".jinja", ".py")


def digests(folder: Path) -> dict[str, str]:
    """Tensor name -> SHA-256 of its bytes, for all safetensors and GGUF files. Raises ModelError for damaged ones."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in _WEIGHTS:
            continue
        try:
            pieces = _safetensors(path) if path.suffix == ".safetensors" else _gguf(path)
            found |= {name: hashlib.sha256(data).hexdigest() for name, data in pieces}
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise _damaged(path, error) from error
    return found


def file_digests(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of what it holds beside tensors: all of most files, what comes before the tensors of the others.

    Left out are the model card, which people may edit, and the record that keeps the digests. Raises ModelError.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (CARD_FILE, RECORD_FILE):
            try:
                found[name] = hashlib.sha256(_beside_tensors(path)).hexdigest()
            except (OSError, ValueError, KeyError, IndexError) as error:
                raise _damaged(path, error) from error
    return found


def changed(folder: Path, record: ExportRecord) -> list[str]:
    """One sentence for every tensor and file that is not what `record` says. Raises ModelError for damaged files.

    Records of earlier versions hold no files, or no digests at all.
    """
    files = []
    if record.files:
        now = file_digests(folder)
        files = _other(record.files, {n: d for n, d in now.items() if n in record.files or n.endswith(_READ_BY_NAME)})
    if any(name.endswith(_WEIGHTS) and not (folder / name).is_file() for name in record.files):
        return files  # which says it of all of their tensors
    return [*(_other(record.tensors, digests(folder)) if record.tensors else []), *files]


def _other(written: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    names = [name for name in {**written, **now} if written.get(name) != now.get(name)]
    return [f"{name}: {_what(name in written, name in now)}." for name in names]


def _what(was: bool, is_there: bool) -> str:
    if was and is_there:
        return "its bytes are not those that were written"
    return "it is missing" if was else "it was added after the rest was written"


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path} cannot be read back ({error}): apply the plan again.")


def _beside_tensors(path: Path) -> bytes:
    """All of a file but tensors: these have digests of their own, and are not read twice."""
    if path.suffix not in _WEIGHTS:
        return path.read_bytes()
    with path.open("rb") as file:
        return file.read(_safetensors_start(file.read(8)) - 8 if path.suffix == ".safetensors" else _gguf_start(path))


def _safetensors_start(length: bytes) -> int:
    return 8 + int.from_bytes(length, "little")


def _gguf_start(path: Path) -> int:
    from gguf import GGUFReader

    return GGUFReader(path).data_offset


def _safetensors(path: Path) -> Iterator[tuple[str, memoryview]]:
    """A file is an 8-byte little-endian length, a JSON header of that length, and the tensors."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        start = _safetensors_start(mapped[:8])
        header = json.loads(mapped[8:start])
        header.pop("__metadata__", None)
        for name, described in header.items():
            first, last = described["data_offsets"]
            with memoryview(mapped) as whole, whole[start + first : start + last] as data:
                if len(data) != last - first:
                    raise ValueError(f"{name} is cut off")
                yield name, data


def _gguf(path: Path) -> Iterator[tuple[str, memoryview]]:
    from gguf import GGUFReader

    for tensor in GGUFReader(path).tensors:
        yield tensor.name, memoryview(tensor.data).cast("B")
