"""optimum-quanto export: packed weights in safetensors, with the plan beside them that says how to read them back."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from advisor import models, verify
from advisor.apply import (
    pack_with_quanto,
    packing,
    quanto_linear,
    quanto_type,
    replace_module,
    use_torch_unpack,
)
from advisor.catalogue import catalogue_model
from advisor.errors import ModelError
from advisor.export.planned import simulate
from advisor.export.safetensors_files import AGAIN, Header, headers, plain
from advisor.export_checks import refuse_rounded_inputs
from advisor.folders import PLAN_FILE, QUANTO_MAP, new_folder, save_model
from advisor.formats.quantize import Codes
from advisor.knowledge import find_engine, find_format
from advisor.stored import Stored
from advisor.types import Catalogue, Engine, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["catalogue_of", "check", "expected", "export", "is_one", "load", "read", "simulate"]

ENGINE = "transformers"
# Scales of activations, which stay unquantized: quanto writes ones.
_UNUSED = ("input_scale", "output_scale")
_WHOLE_BYTES = {"I8": "qint8", "F8_E4M3": "qfloat8_e4m3fn"}
_NOTHING = Header("", (0, 0), 0)


def check(model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> None:
    """Raises PlanError for a plan that rounds activations; what quanto cannot pack is simulated."""
    refuse_rounded_inputs(plan.assignments, "a model packed by optimum-quanto")


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    catalogue: Catalogue,
    plan: Plan,
    folder: Path,
    codes: Mapping[str, Codes] = MappingProxyType({}),
) -> dict[str, str]:
    """Write the folder; `model`, in the dtype to store, is changed on the way.

    Returns:
        Layer name -> reason, for every layer that quanto could not pack: its de-quantized values are in the files.
    """
    from optimum.quanto import quantization_map

    check(model, catalogue, plan)
    not_packed = pack_with_quanto(model, catalogue, plan.assignments, codes)
    with new_folder(folder) as target:
        save_model(model, tokenizer, target, as_in_memory=True)
        (target / QUANTO_MAP).write_text(json.dumps(quantization_map(model), indent=2))
        (target / PLAN_FILE).write_text(plan.model_dump_json(indent=2))
    return {name: f"simulated: {reason}" for name, reason in not_packed.items()}


def expected(model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> dict[str, Stored]:
    """Layer name -> what the files must hold: what quanto cannot pack is there in the model's dtype."""
    packed = {layer.name: fmt.name for layer, fmt in packing(model, catalogue, plan.assignments).packed}
    return verify.expected(catalogue, plan.model_copy(update={"assignments": packed}), _engine(catalogue.dtype))


def _engine(dtype: str) -> Engine:
    """Scales, and two more for activations, which are ones, have the model's dtype: the table has those of 16 bits."""
    engine = find_engine(ENGINE)
    if dtype != "fp32":
        return engine
    wide = {
        name: own.model_copy(update={"scale_bits": 32, "shape_bytes": 2 * own.shape_bytes}) if own.stored_as else own
        for name, own in engine.formats.items()
    }
    return engine.model_copy(update={"formats": wide})


def read(folder: Path) -> dict[str, Stored]:
    """Layer name -> what the folder's safetensors hold of it, from the files alone.

    Raises:
        ModelError: a file is missing or unreadable, or a module's tensors are not those of one quanto type.
    """
    modules: dict[str, dict[str, Header]] = defaultdict(dict)
    for name, tensor in headers(folder)[0].items():
        module, local = _place(name)
        modules[module][local] = tensor
    return {name: _stored(name, tensors) for name, tensors in modules.items()}


def _place(tensor_name: str) -> tuple[str, str]:
    """The layer that a tensor belongs to, and its name there: a bias is a layer of its own."""
    module, packed, local = tensor_name.partition(".weight._")
    if packed:
        return module, f"_{local}"
    module, _, local = tensor_name.rpartition(".")
    return (module, local) if local in _UNUSED else (tensor_name.removesuffix(".weight"), "weight")


def _stored(name: str, tensors: dict[str, Header]) -> Stored:
    if tensors.keys() == {"weight"}:
        return plain(name, "weight", tensors["weight"])
    kind, group = _type_of(tensors)
    for fmt, own in find_engine(ENGINE).formats.items():
        if kind and (own.stored_as, find_format(fmt).group_size) == (kind, group):
            return Stored(fmt, group, sum(tensor.bytes for tensor in tensors.values()))
    raise ModelError(f"{name}: its tensors ({', '.join(sorted(tensors))}) are of no type that quanto has; {AGAIN}.")


def _type_of(tensors: dict[str, Header]) -> tuple[str, int | None]:
    """quanto's type and the group size of a packed module; "" where its tensors do not go together."""
    names, scales = set(tensors) - set(_UNUSED), tensors.get("_scale", _NOTHING)
    if names == {"_data", "_scale"} and scales.shape == (tensors["_data"].shape[0], 1):
        return _WHOLE_BYTES.get(tensors["_data"].dtype, ""), None
    # Groups lie in rows, of which a byte holds several: its first bits are codes of the first rows, and so on.
    codes = tensors.get("_data._data", _NOTHING)
    if names != {"_data._data", "_scale", "_shift"} or codes.dtype != "U8" or tensors["_shift"].shape != scales.shape:
        return "", None
    return f"qint{8 * codes.shape[0] // scales.shape[0]}", codes.shape[1]


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The packed model from a folder that `export` wrote, computing in `dtype`.

    Quanto's own loader guesses the group size from the layer's width; this one takes it from the plan.

    Raises:
        ModelError: a file is missing or does not hold what the plan says.
    """
    from accelerate import init_empty_weights
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    use_torch_unpack()
    try:
        plan = Plan.model_validate_json((folder / PLAN_FILE).read_text())
        packed = json.loads((folder / QUANTO_MAP).read_text())
        state = {}
        for part in sorted(folder.glob("*.safetensors")):
            state |= load_file(part)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        for name in packed:
            _load_packed(model, name, find_format(plan.assignments[name]), state, dtype)
        plain = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
        unknown = model.load_state_dict(plain, strict=False, assign=True).unexpected_keys
        model.tie_weights()
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{folder} cannot be read back as a packed model ({error}): apply the plan again.") from error
    missing = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if unknown or missing:
        raise ModelError(
            f"{folder} does not hold what its plan says (missing {missing[:3]}, unexpected {unknown[:3]}): "
            "apply the plan again."
        )
    return model.eval().requires_grad_(False)


def is_one(folder: Path) -> bool:
    """Whether the folder holds what `export` wrote."""
    return (folder / QUANTO_MAP).is_file()


def catalogue_of(folder: Path, plan: Plan) -> tuple[Catalogue, tuple[str, ...]]:
    """The catalogue of the model in a folder that `export` wrote, without its weights, and the layers not packed in it.

    Raises ModelError: the folder is not whole, or its model cannot be catalogued.
    """
    catalogue = catalogue_model(models.without_weights(plan.model, str(folder)), plan.model)
    packed = json.loads((folder / QUANTO_MAP).read_text())
    return catalogue, tuple(n for n, fmt in plan.assignments.items() if find_format(fmt).quantized and n not in packed)


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype that the folder's unpacked weights and scales are stored in; raises ModelError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False).dtype
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no readable config.json: apply the plan again.") from error


def _load_packed(model: torch.nn.Module, name: str, fmt, state: dict, dtype: torch.dtype) -> None:
    """Replace the module `name` by its packed one, taking the tensors it needs out of `state`."""
    from optimum.quanto import QLinear, WeightQBitsTensor, WeightQBytesTensor, qtypes

    linear, kind = model.get_submodule(name), qtypes[quanto_type(fmt)]
    prefix, missing = f"{name}.weight.", []
    size, stride = linear.weight.size(), linear.weight.stride()
    state[f"{prefix}_scale"] = state[f"{prefix}_scale"].to(dtype)
    if kind.bits == 8:
        weight = WeightQBytesTensor.load_from_state_dict(state, prefix, kind, 0, size, stride, None, missing)
    else:
        weight = WeightQBitsTensor.load_from_state_dict(state, prefix, kind, 0, fmt.group_size, size, stride, missing)
    if weight is None:
        raise KeyError(f"no {missing[0]}")
    replace_module(model, name, quanto_linear(QLinear, linear, kind, weight))
