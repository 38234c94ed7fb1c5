"""What compressed-tensors files are made of: the scheme and tensors of each format; and a reader of what files hold."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from advisor.errors import ModelError
from advisor.export.safetensors_files import AGAIN, Header, headers, plain
from advisor.knowledge import formats
from advisor.stored import Stored
from advisor.types import Format

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme


def scheme(fmt: Format, targets: list[str]) -> QuantizationScheme:
    """The package's description of `fmt` for the modules named in `targets`, with the layout that it packs it in."""
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    kind = {"type": "float" if fmt.kind == "float_scaled" else "int"}
    weights = QuantizationArgs(
        **kind,
        num_bits=fmt.bits,
        symmetric=fmt.symmetric,
        strategy="group" if fmt.group_size else "channel",
        group_size=fmt.group_size,
    )
    rounded = fmt.activation_bits and QuantizationArgs(
        **kind, num_bits=fmt.activation_bits, strategy="token", dynamic=True
    )
    found = QuantizationScheme(targets=targets, weights=weights, input_activations=rounded)
    return found.model_copy(update={"format": infer_module_format(torch.nn.Linear, found).value})


def is_one(folder: Path) -> bool:
    """Whether the folder holds a model that compressed-tensors packed."""
    try:
        config = json.loads((folder / "config.json").read_text())
        return config.get("quantization_config", {}).get("quant_method") == "compressed-tensors"
    except (OSError, ValueError, AttributeError):
        return False


def read(folder: Path) -> dict[str, Stored]:
    """Layer name -> what the folder's safetensors hold of it, from the files alone.

    Raises:
        ModelError: a file is missing or unreadable, or a layer's tensors are not those of its scheme in config.json.
    """
    from compressed_tensors.quantization import QuantizationConfig

    try:
        described = json.loads((folder / "config.json").read_text()).get("quantization_config")
        groups = QuantizationConfig.model_validate(described).config_groups.values() if described else ()
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read back ({error}): apply the plan again.") from error
    tensors, renamed = headers(folder)
    schemes = _Schemes({target: one for one in groups for target in one.targets})
    modules: dict[str, dict[str, Header]] = defaultdict(dict)
    for name, tensor in tensors.items():
        module, _, local = name.rpartition(".")
        # A bias is a layer of its own, and so is every tensor that belongs to no scheme.
        own = local == "weight" or (local.startswith("weight_") and schemes.of(module) is not None)
        modules[module if own else name][local] = tensor
    missing = [name for name in schemes.by_target if not name.startswith("re:") and name not in modules]
    if missing:
        raise ModelError(f"{missing[0]}: config.json gives it a scheme, but there are no tensors of it; {AGAIN}.")
    layers: dict[str, list[Stored]] = defaultdict(list)
    for name, found in modules.items():
        if renamed.get(name, name):
            layers[renamed.get(name, name)].append(_stored(name, found, schemes.of(name)))
    return {name: _together(name, parts) for name, parts in layers.items()}


def _together(name: str, parts: list[Stored]) -> Stored:
    """The experts of a block are one layer of the model."""
    if len({(part.format, part.group_size) for part in parts}) > 1:
        raise ModelError(f"{name}: its experts are stored in different formats; {AGAIN}.")
    return replace(parts[0], bytes=sum(part.bytes for part in parts))


class _Schemes(NamedTuple):
    """The schemes of config.json, by their targets: names of modules, and expressions for experts."""

    by_target: dict[str, QuantizationScheme]

    def of(self, module: str) -> QuantizationScheme | None:
        named = self.by_target.get(module)
        matching = (s for t, s in self.by_target.items() if t.startswith("re:") and re.match(t[3:], module))
        return named or next(matching, None)


def _stored(name: str, tensors: dict[str, Header], scheme: QuantizationScheme | None) -> Stored:
    size = sum(tensor.bytes for tensor in tensors.values())
    if scheme is None:
        (local, tensor), *others = tensors.items()
        if others:
            raise ModelError(f"{name} ({local}, {tensor.dtype}): config.json gives it no scheme; {AGAIN}.")
        return plain(name, local, tensor)
    fmt = _format_of(name, scheme)
    for local, (dtypes, shape) in _layout(name, tensors, fmt).items():
        found = tensors.get(local)
        if found is None or found.dtype not in dtypes or found.shape != shape:
            holds = f"is {found.dtype} {found.shape}" if found else "is missing"
            raise ModelError(
                f"{name}.{local} {holds}, but by config.json it is {' or '.join(dtypes)} {shape}; {AGAIN}."
            )
    return Stored(fmt.name, fmt.group_size, size)


def _layout(name: str, tensors: dict[str, Header], fmt: Format) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Local name -> (dtypes, shape) of the tensors that a layer in `fmt` has."""
    if scheme(fmt, []).format == "pack-quantized":
        rows, features = tensors["weight_shape"].values if "weight_shape" in tensors else (0, 0)
        codes = {"weight_packed": (("I32",), (rows, -(-features * fmt.bits // 32))), "weight_shape": (("I64",), (2,))}
    else:
        rows, features = tensors["weight"].shape if "weight" in tensors else (0, 0)
        codes = {"weight": (("F8_E4M3" if fmt.kind == "float_scaled" else "I8",), (rows, features))}
    return codes | {"weight_scale": (("BF16", "F16"), (rows, features // fmt.group_size if fmt.group_size else 1))}


def _format_of(name: str, found: QuantizationScheme) -> Format:
    """The format that a scheme describes; raises ModelError for one that is in no table."""
    for fmt in formats().values():
        if fmt.kind not in ("integer", "float_scaled"):
            continue
        own = scheme(fmt, found.targets)
        if (own.weights, own.input_activations, own.format) == (found.weights, found.input_activations, found.format):
            return fmt
    raise ModelError(f"{name}: config.json gives it a scheme that no format of ours has; {AGAIN}.")


def values_in(folder: Path, packed: Mapping[str, Format]) -> dict[str, torch.Tensor]:
    """Tensor name -> values of a folder that `read` found whole; the weights of the modules in `packed` unpacked."""
    from compressed_tensors.compressors import BaseCompressor
    from safetensors.torch import load_file

    values = {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}
    for module, fmt in packed.items():
        one, start = scheme(fmt, []), f"{module}.weight"
        own = {name.rpartition(".")[2]: values.pop(name) for name in list(values) if name.startswith(start)}
        unpacked = BaseCompressor.get_value_from_registry(one.format).decompress(own, one)
        values[start] = unpacked["weight"]
    return values
