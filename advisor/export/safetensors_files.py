"""What the headers of a folder's safetensors say of every tensor, read without loading weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from advisor.errors import ModelError
from advisor.stored import Stored

# In the header of each file: modules in the checkpoint -> layers, where the model calls them otherwise; "" is no layer.
RENAMED = "advisor_layers"
AGAIN = "the folder was changed after it was written: apply the plan again"

_PLAIN = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}


class Header(NamedTuple):
    """A tensor as the header of its file describes it; `values` only for the few integers of a packed shape."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    values: tuple[int, ...] = ()


def headers(folder: Path) -> tuple[dict[str, Header], dict[str, str]]:
    """The tensors of all files, and which modules are which layers where their names differ.

    Raises:
        ModelError: there are no files, or one of them is damaged.
    """
    from safetensors import SafetensorError, safe_open

    found, renamed = {}, {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                renamed |= json.loads((file.metadata() or {}).get(RENAMED, "{}"))
                found |= {name: _header(file, name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read back ({error}): apply the plan again.") from error
    if not found:
        raise ModelError(f"{folder} cannot be read back (it holds no safetensors): apply the plan again.")
    return found, renamed


def plain(name: str, local: str, tensor: Header) -> Stored:
    """A tensor that is not quantized; raises ModelError for one of a dtype that no plain weight has."""
    if tensor.dtype not in _PLAIN:
        raise ModelError(f"{name} ({local}, {tensor.dtype}): config.json gives it no scheme; {AGAIN}.")
    return Stored(_PLAIN[tensor.dtype], None, tensor.bytes)


def _header(file: Any, name: str) -> Header:
    part = file.get_slice(name)
    dtype, shape = part.get_dtype(), tuple(part.get_shape())
    bits = int("".join(filter(str.isdigit, dtype.split("_")[0])))
    values = tuple(file.get_tensor(name).tolist()) if name.endswith(".weight_shape") else ()
    return Header(dtype, shape, torch.Size(shape).numel() * bits // 8, values)
