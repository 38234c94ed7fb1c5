"""bitsandbytes export, as transformers loads it: NF4 or INT8 for every quantized module, and the names of all others.

The codes are ours (`formats.quantize`): NF4 has the levels and blocks of bitsandbytes; INT8 keeps a channel's scale
times 127, as bitsandbytes divides by that. Nothing of the package is needed to write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from advisor.apply import refuse_rounded_inputs
from advisor.errors import ModelError, UnfitPlan
from advisor.export import module_files
from advisor.export.planned import expected_by, simulate
from advisor.export.safetensors_files import AGAIN, Header
from advisor.export_checks import refuse_unfit
from advisor.formats.quantize import NF4_LEVELS, Codes
from advisor.knowledge import find_engine
from advisor.stored import Stored
from advisor.types import Catalogue, Format, Layer, Plan
from advisor.weights import get_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["check", "expected", "export", "is_one", "load", "read", "simulate"]

ENGINE = "transformers-bitsandbytes"
STATE = "weight.quant_state.bitsandbytes__nf4"
_NF4 = ("weight", "weight.absmax", "weight.quant_map", STATE)
_INT8 = ("weight", "SCB", "weight_format")
_BLOCK = 64
_LARGEST = 127

expected = expected_by(ENGINE)


def check(model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> None:
    """Raises PlanError for a plan that these files cannot hold, with the nearest plan; looks at no weights."""
    refuse_rounded_inputs(plan.assignments, "a bitsandbytes export")
    engine = find_engine(ENGINE)
    refuse_unfit(catalogue, plan.assignments, engine)
    chosen = {fmt.name for fmt in module_files.packed_layers(catalogue, plan).values()}
    if len(chosen) > 1:
        nearest = {n: "int8" if fmt in chosen else fmt for n, fmt in plan.assignments.items()}
        raise UnfitPlan(
            f"bitsandbytes holds one quantized format in a model, and this plan has {' and '.join(sorted(chosen))}: "
            "plan for that engine, or take the nearest plan that it loads, which has int8 for both.",
            nearest,
        )
    module_files.refuse_modules(model, module_files.packed_layers(catalogue, plan), "bitsandbytes")


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
        PlanError: bitsandbytes lacks a format or packs no such module. StorageError: `folder` is taken or cannot be
            written.
    """
    check(model, catalogue, plan)
    layers = module_files.packed_layers(catalogue, plan)
    state, names = module_files.state_of(model, catalogue, layers, partial(_packed, dtype=model.dtype), codes)
    config = {"quantization_config": _described(model, layers)} if layers else {}
    module_files.write(folder, model, tokenizer, plan, state, names, config)
    return {}


def _described(model: PreTrainedModel, layers: dict[Layer, Format]) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    four = next(iter(layers.values())).kind == "codebook"
    kept = module_files.kept_linear(model, layers)
    mode = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": model.dtype}
    return BitsAndBytesConfig(**(mode if four else {"load_in_8bit": True}), llm_int8_skip_modules=kept).to_dict()


def _packed(codes: Codes, fmt: Format, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    if fmt.kind == "integer":
        scale = codes.scale.float().flatten() * _LARGEST
        return {"weight": codes.values.flatten(1), "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    values = codes.values.flatten()
    state = {
        "quant_type": "nf4",
        "blocksize": fmt.group_size,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": [codes.values.shape[0], codes.values[0].numel()],
    }
    return {
        "weight": ((values[::2] << 4) | values[1::2]).unsqueeze(1),
        "weight.absmax": codes.scale.flatten(),
        "weight.quant_map": torch.tensor(NF4_LEVELS),
        STATE: torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


# ------------------------------------------------------------------------------------------- read back


def is_one(folder: Path) -> bool:
    """Whether the folder holds a model that bitsandbytes packed."""
    return module_files.has_method(folder, "bitsandbytes")


def read(folder: Path) -> dict[str, Stored]:
    """Layer name -> what the folder's safetensors hold of it, from the files alone.

    The description of an NF4 module, text in a tensor of its own, is left out of its bytes: it is a header.
    Raises ModelError.
    """
    described = module_files.config_of(folder).get("quantization_config") or {}
    states = _states(folder)
    four = bool(described.get("load_in_4bit"))

    def stored(name: str, parts: dict[str, Header]) -> Stored:
        return _stored_nf4(name, parts, states.get(name, {})) if four else _stored_int8(name, parts)

    return module_files.read(folder, dict.fromkeys(_NF4 + _INT8), stored, ())


def _states(folder: Path) -> dict[str, dict[str, Any]]:
    """What the files say of each NF4 module beside its codes."""
    tensors = module_files.tensors_of(folder, lambda name: name.endswith(STATE))
    try:
        return {name.removesuffix(f".{STATE}"): json.loads(bytes(t.tolist())) for name, t in tensors.items()}
    except ValueError as error:
        raise ModelError(f"{folder}: what describes its modules cannot be read ({error}); {AGAIN}.") from error


def _stored_int8(name: str, parts: dict[str, Header]) -> Stored:
    rows, features = parts["weight"].shape if "weight" in parts else (0, 0)
    layout = {"weight": (("I8",), (rows, features)), "SCB": (("F32",), (rows,)), "weight_format": (("U8",), ())}
    module_files.refuse_other_tensors(name, parts, layout)
    return Stored("int8", None, sum(part.bytes for part in parts.values()))


def _stored_nf4(name: str, parts: dict[str, Header], state: dict[str, Any]) -> Stored:
    rows, features = state.get("shape", (0, 0))
    if (state.get("quant_type"), state.get("blocksize")) != ("nf4", _BLOCK):
        raise ModelError(f"{name}: its files do not say that it is NF4 in blocks of {_BLOCK}; {AGAIN}.")
    layout = {
        "weight": (("U8",), (rows * features // 2, 1)),
        "weight.absmax": (("F32",), (rows * features // _BLOCK,)),
        "weight.quant_map": (("F32",), (len(NF4_LEVELS),)),
        STATE: (("U8",), parts[STATE].shape),
    }
    module_files.refuse_other_tensors(name, parts, layout)
    return Stored("nf4_g64", _BLOCK, sum(part.bytes for local, part in parts.items() if local != STATE))


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of such a folder by transformers and bitsandbytes, computing in `dtype`. Raises ModelError."""
    model = module_files.load_with_transformers(folder, dtype)
    for module in model.modules():
        if hasattr(module, "compute_dtype"):  # of NF4: else it computes in the dtype that was written, or in bf16
            module.compute_dtype, module.compute_type_is_set = dtype, True
            module.weight.quant_state.dtype = dtype
            module.support_avx512bf16_for_cpu &= dtype == torch.bfloat16
    return model


def weight_of(model: PreTrainedModel, layer: Layer) -> torch.Tensor:
    """The fp32 values of a layer of a model that `load` gave, in the layer's shape."""
    module = model.get_submodule(layer.parameter.rpartition(".")[0])
    kind = type(module).__name__
    if kind == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(module.weight.data, module.weight.quant_state).float().view(layer.shape)
    if kind == "Linear8bitLt":
        scale = module.state.SCB if module.weight.SCB is None else module.weight.SCB
        return module.weight.data.float() * (scale.float() / _LARGEST).unsqueeze(1)
    return get_weight(model, layer).data.float()
