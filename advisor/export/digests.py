"""The SHA-256 of every tensor in an export's files, so that a later change is found and named."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator
from pathlib import Path

from advisor.errors import ModelError


def digests(folder: Path) -> dict[str, str]:
    """Tensor name -> SHA-256 of its bytes, for all safetensors and GGUF files. Raises ModelError for damaged ones."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".safetensors", ".gguf"):
            continue
        try:
            pieces = _safetensors(path) if path.suffix == ".safetensors" else _gguf(path)
            found |= {name: hashlib.sha256(data).hexdigest() for name, data in pieces}
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise ModelError(f"{path} cannot be read back ({error}): apply the plan again.") from error
    return found


def changed(folder: Path, written: dict[str, str]) -> list[str]:
    """One sentence for every tensor that is not what `written` says. Raises ModelError for damaged files."""
    now = digests(folder)
    names = [name for name in written | now if written.get(name) != now.get(name)]
    return [f"{name}: its bytes are not those that were written." for name in names]


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
