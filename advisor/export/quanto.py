"""optimum-quanto export: packed weights in safetensors, with the plan beside them that says how to read them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from advisor.apply import pack_with_quanto, quanto_linear, quanto_type, replace_module, use_torch_unpack
from advisor.catalogue import catalogue_model
from advisor.errors import ModelError
from advisor.folders import PLAN_FILE, QUANTO_MAP, new_folder, save_model
from advisor.knowledge import find_format
from advisor.types import Catalogue, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, plan: Plan, folder: Path
) -> dict[str, str]:
    """Write the folder; `model`, in the dtype to store, is changed on the way.

    Returns:
        Layer name -> reason, for every layer that quanto could not pack: its de-quantized values are in the files.
    """
    from optimum.quanto import quantization_map

    not_packed = pack_with_quanto(model, catalogue, plan.assignments)
    with new_folder(folder) as target:
        save_model(model, tokenizer, target, as_in_memory=True)
        (target / QUANTO_MAP).write_text(json.dumps(quantization_map(model), indent=2))
        (target / PLAN_FILE).write_text(plan.model_dump_json(indent=2))
    return not_packed


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


def catalogue_of(folder: Path, plan: Plan) -> tuple[Catalogue, tuple[str, ...]]:
    """The catalogue of the model in a folder that `export` wrote, without its weights, and the layers not packed in it.

    Raises ModelError: the folder is not whole, or its model cannot be catalogued.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = stored_dtype(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        catalogue = catalogue_model(AutoModelForCausalLM.from_config(config, dtype=dtype), plan.model)
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
