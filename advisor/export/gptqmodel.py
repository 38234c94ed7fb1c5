"""GPTQModel export: the layout of GPTQ checkpoints, with each module's own bits and groups under `dynamic`.

Layout of GPTQModel's `nn_modules/qlinear` (checkpoint_format "gptq", pack_dtype int32): codes and zero points are
unsigned and lie densely in 32-bit words, codes down the inputs and zero points along the outputs, each zero point less
one; scales are fp16. The codes are ours (`formats.quantize`), moved up by half their range. Nothing of the package is
needed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from advisor.apply import refuse_rounded_inputs
from advisor.errors import ModelError, PlanError
from advisor.export import module_files
from advisor.export.bits import pack_rows, unpack_rows
from advisor.export.planned import expected_by, simulate_by
from advisor.export.safetensors_files import AGAIN, Header
from advisor.export_checks import refuse_unfit
from advisor.formats.quantize import Codes
from advisor.knowledge import find_engine, find_format
from advisor.stored import Stored
from advisor.types import Catalogue, Format, Layer, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ENGINE = "gptqmodel"
ROUNDED = "scales below 2^-14, of which fp16 has few digits, are rounded"
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_WORD = 32
_PER_CHANNEL = -1

expected = expected_by(ENGINE)


def check(model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> None:
    """Raises PlanError for a plan that these files cannot hold; looks at no weights."""
    refuse_rounded_inputs(plan.assignments, "a GPTQ export")
    refuse_unfit(catalogue, plan.assignments, find_engine(ENGINE))
    layers = module_files.packed_layers(catalogue, plan)
    for layer in layers:
        if any(size % _WORD for size in layer.matrix_shape):
            rows, features = layer.matrix_shape
            raise PlanError(
                f"{layer.name}: GPTQ packs outputs and inputs by {_WORD}, and this has {rows} and {features}; leave it "
                "in the model's dtype, or apply the plan another way."
            )
    module_files.refuse_modules(model, layers, "GPTQModel")


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
        Layer name -> what is other than it was measured: scales that fp16 does not hold.

    Raises:
        PlanError: GPTQ lacks a format or packs no such module. StorageError: `folder` is taken or cannot be written.
    """
    check(model, catalogue, plan)
    layers = module_files.packed_layers(catalogue, plan)
    state, names = module_files.state_of(model, catalogue, layers, _packed, codes)
    described = quantization_config(model, layers) if layers else None
    config = {"quantization_config": described} if described else {}
    # GPTQModel reads it here, transformers and vLLM read it in config.json.
    beside = {"quantize_config.json": json.dumps(described, indent=2)} if described else {}
    module_files.write(folder, model, tokenizer, plan, state, names, config, beside)
    small = torch.finfo(torch.float16).smallest_normal
    return {layer.name: ROUNDED for layer in layers if (state[f"{layer.name}.scales"] < small).any()}


def quantization_config(model: PreTrainedModel, layers: dict[Layer, Format]) -> dict[str, Any]:
    """The commonest format for all, what differs from it module by module, and which modules stay as they are."""
    common = Counter(layers.values()).most_common(1)[0][0]
    differ = {f"+:{_pattern(layer.name)}": _numbers(fmt) for layer, fmt in layers.items() if fmt != common}
    kept = {f"-:{_pattern(name)}": {} for name in module_files.kept_linear(model, layers)}
    fixed = {"desc_act": False, "lm_head": False, "quant_method": "gptq", "checkpoint_format": "gptq"}
    return {**_numbers(common), **fixed, "pack_dtype": "int32", "dynamic": differ | kept}


def _numbers(fmt: Format) -> dict[str, Any]:
    return {"bits": fmt.bits, "group_size": fmt.group_size or _PER_CHANNEL, "sym": fmt.symmetric}


def _pattern(module: str) -> str:
    return f"^{re.escape(module)}$"


def _packed(codes: Codes, fmt: Format) -> dict[str, torch.Tensor]:
    half = 2 ** (fmt.bits - 1)
    rows, groups, group = codes.values.shape
    values = codes.values.flatten(1).to(torch.int32) + half
    zeros = torch.full((groups, rows), half - 1, dtype=torch.int32)
    return {
        "qweight": pack_rows(values, fmt.bits).view(torch.int32).T.contiguous(),
        "qzeros": pack_rows(zeros, fmt.bits).view(torch.int32),
        "scales": codes.scale.flatten(1).T.to(torch.float16).contiguous(),
        "g_idx": torch.arange(groups * group, dtype=torch.int32) // group,
    }


def _values(parts: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
    """The fp32 values of a packed module, `(rows, features)`."""
    features, rows = parts["g_idx"].shape[0], parts["scales"].shape[1]
    codes = unpack_rows(parts["qweight"].T.contiguous(), bits, features)
    zeros = (unpack_rows(parts["qzeros"], bits, rows) + 1).T
    group = parts["g_idx"].long()
    return (codes - zeros[:, group]) * parts["scales"].float().T[:, group]


# ------------------------------------------------------------------------------------------- read back

simulate = simulate_by(lambda codes, fmt: _values(_packed(codes, fmt), fmt.bits))


def is_one(folder: Path) -> bool:
    """Whether the folder holds a GPTQ checkpoint."""
    return module_files.has_method(folder, "gptq")


def read(folder: Path) -> dict[str, Stored]:
    """Layer name -> what the folder's safetensors hold of it, from the files alone. Raises ModelError."""
    described = _config(folder)
    named = [key[2:] for key, found in described.get("dynamic", {}).items() if key.startswith("+:") and found]
    modules = [re.sub(r"\\(.)", r"\1", pattern.strip("^$")) for pattern in named]
    return module_files.read(folder, _PARTS, lambda name, parts: _stored(name, parts, _of(described, name)), modules)


def _config(folder: Path) -> dict[str, Any]:
    return module_files.config_of(folder).get("quantization_config") or {}


def _of(described: dict[str, Any], module: str) -> dict[str, Any]:
    """Bits and groups of one module, as GPTQModel finds them; raises ModelError for one that is to stay as it is."""
    for key, own in described.get("dynamic", {}).items():
        if re.match(key.removeprefix("+:").removeprefix("-:"), module):
            if key.startswith("-:"):
                raise ModelError(f"{module}: config.json says that it is not packed; {AGAIN}.")
            return described | own
    return described


def _stored(name: str, parts: dict[str, Header], described: dict[str, Any]) -> Stored:
    fmt = _format(name, described)
    features = parts["g_idx"].shape[0] if "g_idx" in parts else 0
    rows = parts["scales"].shape[-1] if "scales" in parts else 0
    groups = features // fmt.group_size if fmt.group_size else 1
    layout = {
        "qweight": (("I32",), (features * fmt.bits // _WORD, rows)),
        "qzeros": (("I32",), (groups, rows * fmt.bits // _WORD)),
        "scales": (("F16",), (groups, rows)),
        "g_idx": (("I32",), (features,)),
    }
    module_files.refuse_other_tensors(name, parts, layout)
    return Stored(fmt.name, fmt.group_size, sum(part.bytes for part in parts.values()))


def _format(name: str, described: dict[str, Any]) -> Format:
    numbers = {key: described.get(key) for key in ("bits", "group_size", "sym")}
    for fmt in map(find_format, find_engine(ENGINE).formats):
        if fmt.quantized and _numbers(fmt) == numbers:
            return fmt
    raise ModelError(f"{name}: config.json says {numbers}, which is no format of ours.")


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of such a folder in transformers, its weights unpacked to `dtype`.

    Raises ModelError: the folder is not whole.
    """
    packed = [name for name, stored in read(folder).items() if find_format(stored.format).quantized]
    bits = {name: _of(_config(folder), name)["bits"] for name in packed}
    return module_files.load_unpacked(folder, dtype, bits, _PARTS, _values)
