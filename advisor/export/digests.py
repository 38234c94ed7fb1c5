"""The SHA-256 of every tensor and file of an export, so that a later change is found and named."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator
from pathlib import Path

from advisor.errors import ModelError
from advisor.folders import CARD_FILE, RECORD_FILE

_WEIGHTS = (".safetensors", ".gguf")
# The card is people's to edit, and the record holds the digests.
_FREE = (CARD_FILE, RECORD_FILE)
# What tokenizers and configurations are read from: an added one may take the place of one that was written.
_READ = (".json", ".jinja", ".model", ".txt", ".py")


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
            raise ModelError(f"{path} cannot be read back ({error}): apply the plan again.") from error
    return found


def file_digests(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 of all that is in it but tensors, which `digests` has: of weights their header.

    Left out are the model card, the record, and files that begin with a dot. Raises ModelError for damaged ones.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name in _FREE or name.startswith("."):
            continue
        try:
            with path.open("rb") as file:
                end = _header_end(path) if path.suffix in _WEIGHTS else None
                found[name] = hashlib.sha256(file.read(end)).hexdigest()
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise ModelError(f"{path} cannot be read back ({error}): apply the plan again.") from error
    return found


def changed(folder: Path, written: dict[str, str]) -> list[str]:
    """One sentence for every tensor that is not what `written` says. Raises ModelError for damaged files."""
    now = digests(folder)
    names = [name for name in written | now if written.get(name) != now.get(name)]
    return [f"{name}: its bytes are not those that were written." for name in names]


def changed_files(folder: Path, written: dict[str, str]) -> list[str]:
    """One sentence for every file that is not what `written` says, and for every added one that a loader might read."""
    now = file_digests(folder)
    added = [name for name in now if name not in written and Path(name).suffix in _READ]
    return [_difference(name, now) for name in written if written[name] != now.get(name)] + [
        f"{name}: it was added since." for name in added
    ]


def _difference(name: str, now: dict[str, str]) -> str:
    return f"{name}: {'it is not what was written' if name in now else 'it is missing'}."


def _header_end(path: Path) -> int:
    """Where a file's tensors begin: what is before says how to read them, and in a GGUF holds the tokenizer."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            return 8 + int.from_bytes(file.read(8), "little")
    from gguf import GGUFReader

    return GGUFReader(path).data_offset


def _safetensors(path: Path) -> Iterator[tuple[str, memoryview]]:
    """A file is an 8-byte little-endian length, a JSON header of that length, and the tensors."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        start = 8 + int.from_bytes(mapped[:8], "little")
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
