"""torchao export, as transformers loads it on any device: tensors of the `torchao` package in safetensors.

The codes are ours (`formats.quantize`). INT8 and FP8 are torchao's own; it has no kernel for 4 bits and less that runs
everywhere, so those codes take a whole byte each (`IntxUnpackedToInt8Tensor`). `torchao_cuda` packs two in a byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from advisor.apply import refuse_rounded_inputs
from advisor.errors import ModelError
from advisor.export import module_files
from advisor.export.planned import expected_by, simulate
from advisor.export.safetensors_files import AGAIN, Header
from advisor.export_checks import refuse_unfit
from advisor.formats.quantize import Codes
from advisor.knowledge import find_engine, formats
from advisor.stored import Stored
from advisor.types import Catalogue, Format, Layer, Plan

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig
    from torchao.utils import TorchAOBaseTensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["check", "expected", "export", "is_one", "load", "read", "simulate"]

ENGINE = "transformers-torchao-cpu"
_PARTS = ("qdata", "scale", "zero_point")
_ROUND = ("Int8Tensor", "Float8Tensor")  # one code a byte, scales in fp32

expected = expected_by(ENGINE)


def check(model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> None:
    """Raises PlanError for a plan that these files cannot hold; looks at no weights."""
    refuse_rounded_inputs(plan.assignments, "a torchao export")
    refuse_unfit(catalogue, plan.assignments, find_engine(ENGINE))
    module_files.refuse_modules(model, module_files.packed_layers(catalogue, plan), "torchao")


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    catalogue: Catalogue,
    plan: Plan,
    folder: Path,
    codes: Mapping[str, Codes] = MappingProxyType({}),
) -> dict[str, str]:
    """Write the folder; `model`, in the dtype to store, stays as it is.

    Returns:
        An empty mapping: every layer of the plan is in the files as planned.

    Raises:
        PlanError: torchao lacks a format or packs no such module. StorageError: `folder` is taken or cannot be written.
    """
    check(model, catalogue, plan)
    write(model, tokenizer, catalogue, plan, folder, codes, packed, config)
    return {}


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    catalogue: Catalogue,
    plan: Plan,
    folder: Path,
    codes: Mapping[str, Codes],
    pack: Callable[[Codes, Format, torch.dtype], TorchAOBaseTensor],
    config_of: Callable[[Format], AOBaseConfig],
) -> None:
    """The folder with torchao's tensors, made by `pack`, and what `config_of` has torchao say of them."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    layers = module_files.packed_layers(catalogue, plan)
    state, names = module_files.state_of(
        model, catalogue, layers, lambda own, fmt: {"weight": pack(own, fmt, model.dtype)}, codes
    )
    tensors, metadata = flatten_tensor_state_dict(state)
    config = {"quantization_config": _described(model, layers, config_of)} if layers else {}
    module_files.write(folder, model, tokenizer, plan, tensors, names | (metadata if layers else {}), config)


def packed(codes: Codes, fmt: Format, dtype: torch.dtype) -> TorchAOBaseTensor:
    """The codes of a matrix as torchao's tensor, computing in `dtype`."""
    from torchao.quantization import Float8Tensor, Int8Tensor, IntxUnpackedToInt8Tensor

    values, scale, block = codes.values.flatten(1), codes.scale.flatten(1), [1, codes.values.shape[2]]
    if fmt.kind == "float_scaled":
        return Float8Tensor(values, scale.float(), block_size=block, dtype=dtype)
    if fmt.bits == 8:
        return Int8Tensor(values, scale.float(), block, dtype, zero_point=_zero_point(codes))
    kind = getattr(torch, f"int{fmt.bits}")
    return IntxUnpackedToInt8Tensor(values, scale, _zero_point(codes), kind, block, dtype, activation_quantization=None)


def _zero_point(codes: Codes) -> torch.Tensor:
    """torchao keeps a byte of it for every scale, symmetric formats included."""
    zero = torch.zeros_like(codes.scale, dtype=torch.int8) if codes.zero_point is None else codes.zero_point
    return zero.flatten(1)


def _described(
    model: PreTrainedModel, layers: dict[Layer, Format], config_of: Callable[[Format], AOBaseConfig]
) -> dict[str, Any]:
    """What config.json says: how torchao would quantize each module, by name, and which modules stay as they are."""
    from torchao.quantization import FqnToConfig
    from transformers import TorchAoConfig

    by_name = {layer.name: config_of(fmt) for layer, fmt in layers.items()}
    kept = module_files.kept_linear(model, layers)
    return TorchAoConfig(FqnToConfig(by_name), modules_to_not_convert=kept).to_dict()


def config(fmt: Format) -> AOBaseConfig:
    """How torchao would quantize a module to `fmt`."""
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        MappingType,
        PerGroup,
        PerRow,
    )

    if fmt.kind == "float_scaled":
        return Float8WeightOnlyConfig()
    if fmt.bits == 8:
        return Int8WeightOnlyConfig(granularity=PerGroup(fmt.group_size) if fmt.group_size else PerRow())
    mapping = MappingType.SYMMETRIC if fmt.symmetric else MappingType.ASYMMETRIC
    kind = getattr(torch, f"int{fmt.bits}")
    return IntxWeightOnlyConfig(weight_dtype=kind, granularity=PerGroup(fmt.group_size), mapping_type=mapping)


# ------------------------------------------------------------------------------------------- read back


def is_one(folder: Path) -> bool:
    """Whether the folder holds a model of torchao's tensors, none of them packed for NVIDIA's devices."""
    return module_files.has_method(folder, "torchao") and not packs_nibbles(folder)


def packs_nibbles(folder: Path) -> bool:
    """Whether some weights of the folder have two codes in a byte; never raises."""
    try:
        return any('"_type": "Int4Tensor"' in note for note in module_files.notes_of(folder).values())
    except ModelError:
        return False


def read(folder: Path) -> dict[str, Stored]:
    """Layer name -> what the folder's safetensors hold of it, from the files alone. Raises ModelError."""
    notes = module_files.notes_of(folder)
    config = module_files.config_of(folder).get("quantization_config")
    try:
        by_name = config["quant_type"]["default"]["_data"]["fqn_to_config"] if config else {}
        return module_files.read(
            folder,
            [f"_weight_{part}" for part in _PARTS],
            lambda name, parts: _stored(name, parts, json.loads(notes[f"{name}.weight"]), by_name[name]),
            by_name,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder}: what describes its tensors cannot be read ({error}); {AGAIN}.") from error


def _stored(name: str, parts: dict[str, Header], tensor: dict[str, Any], config: dict[str, Any]) -> Stored:
    """A module by its tensors, what the files' header says of them (`tensor`) and config.json of the module."""
    kind, block = tensor["_type"], tensor["_data"]["block_size"][1]
    codes = parts.get("_weight_qdata", Header("", (0, 0), 0)).shape
    rows, features = codes[0], codes[1] * (2 if kind == "Int4Tensor" else 1)
    scales = (features // block, rows) if kind == "Int4Tensor" else (rows, features // block)
    layout = {
        "_weight_qdata": (("F8_E4M3",) if kind == "Float8Tensor" else ("I8",), codes),
        "_weight_scale": (("F32",) if kind in _ROUND else ("BF16",), scales),
    }
    if kind != "Float8Tensor":
        layout["_weight_zero_point"] = ("BF16",) if kind == "Int4Tensor" else ("I8",), scales
    module_files.refuse_other_tensors(name, parts, layout)
    fmt = _format(name, kind, tensor["_data"], config["_data"])
    if block != (fmt.group_size or features):
        raise ModelError(f"{name}: config.json says {fmt.name}, but a scale is for {block} weights; {AGAIN}.")
    return Stored(fmt.name, fmt.group_size, sum(part.bytes for part in parts.values()))


def _format(name: str, kind: str, tensor: dict[str, Any], config: dict[str, Any]) -> Format:
    """The format whose codes a tensor holds; asymmetric ones are stored like symmetric ones, so any of them will do."""
    bits = 4 if kind == "Int4Tensor" else 8 if kind in _ROUND else int(tensor["target_dtype"]["_data"][3:])
    granularity = config.get("granularity") or {"_data": {}}
    group_size = config.get("group_size") or granularity["_data"].get("group_size")
    wanted = "float_scaled" if kind == "Float8Tensor" else "integer", bits, group_size, None
    for fmt in formats().values():
        if (fmt.kind, fmt.bits, fmt.group_size, fmt.activation_bits) == wanted:
            return fmt
    raise ModelError(f"{name}: the files hold {kind} with {bits} bits in groups of {group_size}, no format of ours.")


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of such a folder by transformers and torchao, computing in `dtype`. Raises ModelError."""
    from torchao.utils import TorchAOBaseTensor

    model = module_files.load_with_transformers(folder, dtype)
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, TorchAOBaseTensor):
            own = nibbles(weight).to(dtype) if type(weight).__name__ == "Int4Tensor" else _computing_in(weight, dtype)
            module.weight = torch.nn.Parameter(own, requires_grad=False)
    return model


def nibbles(weight: TorchAOBaseTensor) -> torch.Tensor:
    """The fp32 values of an `Int4Tensor`, which torchao's kernel for it multiplies with: code * scale + zero point.

    The package itself never unpacks it, and its kernel (mslk) runs on an H100 or H200 only. Signed codes, the first of
    two in the low half of a byte: `pack_int4` and `int4_row_quantize_zp` of mslk's quantize/shuffle.py.
    """
    halves = torch.stack([weight.qdata << 4 >> 4, weight.qdata >> 4], -1).float()
    scale, zero = (part.float().T.unsqueeze(-1) for part in (weight.scale, weight.zero_point))
    return (halves.view(*scale.shape[:2], -1) * scale + zero).flatten(1)


def _computing_in(weight: TorchAOBaseTensor, dtype: torch.dtype) -> TorchAOBaseTensor:
    """The same codes and scales; torchao goes on in the dtype that was written, whatever transformers is asked for."""
    names = [
        *weight.tensor_data_names,
        *weight.tensor_attribute_names,
        *getattr(weight, "optional_tensor_data_names", ()),
        *getattr(weight, "optional_tensor_attribute_names", ()),
    ]
    parts = {name: getattr(weight, name) for name in names} | {"dtype": dtype}
    if parts["scale"].dtype != torch.float32:
        parts["scale"] = parts["scale"].to(dtype)
    return type(weight)(**parts)
