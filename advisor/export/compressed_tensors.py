"""compressed-tensors export, as vLLM and transformers load it: modules by name, one scheme per format.

The codes are ours (`formats.quantize`), so files compute with the very values that the profiler measured, unless a
method has chosen others on calibration text (`export.calibrated`). Layouts, the configuration and their names are those
of the `compressed-tensors` package.
"""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from advisor.apply import quantized_layers
from advisor.apply import simulate as simulate_rounding
from advisor.errors import PlanError
from advisor.export import module_files
from advisor.export.checkpoint import Pieces, buffers_of, module_of, pieces_of, renamed, whole
from advisor.export.compressed_tensors_files import is_one, read, scheme, values_in
from advisor.export.planned import expected_by
from advisor.export_checks import refuse_unfit
from advisor.folders import PLAN_FILE, new_folder, save_tensors
from advisor.formats.quantize import Codes, quantize
from advisor.knowledge import find_engine
from advisor.methods import NEAREST
from advisor.types import Catalogue, Format, Layer, Plan, Role
from advisor.weights import get_weight

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["check", "expected", "export", "is_one", "load", "read", "simulate"]

ENGINE = "vllm"

expected = expected_by(ENGINE)


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    catalogue: Catalogue,
    plan: Plan,
    folder: Path,
    codes: Mapping[str, Codes] = MappingProxyType({}),
) -> dict[str, str]:
    """Write the folder; `model`, in the dtype to store, stays as it is.

    Args:
        codes: layer name -> what takes the place of the nearest codes.

    Returns:
        An empty mapping: every layer of the plan is in the files as planned.

    Raises:
        PlanError: vLLM or transformers would load the plan wrongly or not at all. StorageError: the folder is taken or
            cannot be written.
    """
    from compressed_tensors.compressors import ModelCompressor

    check(model, catalogue, plan)
    packed = dict(quantized_layers(catalogue, plan.assignments))
    pieces = pieces_of(model, catalogue)
    buffers = buffers_of(model)
    state = _tensors(pieces, packed, codes) | buffers
    config = quantization_config(model, catalogue, packed, pieces)
    with new_folder(folder) as target:
        save_tensors(state, model, tokenizer, target, renamed(pieces, buffers))
        ModelCompressor(quantization_config=config).update_config(str(target))
        (target / PLAN_FILE).write_text(plan.model_dump_json(indent=2))
    return {}


def check(model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> None:
    """Raises PlanError, for what vLLM would load wrongly an UnfitPlan with the nearest plan; looks at no weights."""
    refuse_unfit(catalogue, plan.assignments, find_engine(ENGINE))
    # transformers 5.17 (`get_experts_scheme`) takes one scheme for all fused experts of a model.
    experts = [layer for layer in catalogue.quantizable if layer.role is Role.EXPERT and len(layer.shape) == 3]
    found = {plan.assignments.get(layer.name, catalogue.dtype) for layer in experts}
    anything = any(True for _ in quantized_layers(catalogue, plan.assignments))
    if anything and (len(found) > 1 or catalogue.dtype in found):
        raise PlanError(
            f"The experts of {catalogue.model.name} are planned in {' and '.join(sorted(found))}, but transformers "
            "would read all experts of a compressed-tensors folder in one quantized format: lock them to one."
        )
    _refuse_modules(model, dict(quantized_layers(catalogue, plan.assignments)), pieces_of(model, catalogue))


# ------------------------------------------------------------------------------------------- write


def _refuse_modules(model: PreTrainedModel, packed: Iterable[Layer], pieces: Pieces) -> None:
    """The package packs `nn.Linear`, which each expert of a checkpoint is too; raises PlanError for anything else."""
    for layer in packed:
        if layer.parameter != f"{layer.name}.weight":
            right = all(piece.ndim == 2 for piece in pieces[layer.name].values())
            kind = "one tensor for all experts in the checkpoint"
        else:
            module = model.get_submodule(layer.name)
            right, kind = type(module) is torch.nn.Linear, type(module).__name__
        if not right:
            raise PlanError(
                f"{layer.name}: compressed-tensors packs nn.Linear only, and this is {kind}; leave it in the model's "
                "dtype, or apply the plan another way."
            )


def quantization_config(
    model: PreTrainedModel,
    catalogue: Catalogue,
    packed: Mapping[Layer, Format],
    pieces: Pieces,
) -> QuantizationConfig | None:
    """What config.json says of the layers in `packed`; None when there are none.

    Modules are named one by one, since a class such as `Linear` would take in whatever else is one, and every linear
    module without a scheme is on the ignore list: engines that fuse several look there for all of them. The experts of
    a block, many modules that are always alike, are one expression, by which transformers knows them.
    """
    from compressed_tensors.config import CompressionFormat
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    targets = defaultdict(dict)  # a dict keeps the order and each name once
    for layer, fmt in packed.items():
        for name in map(module_of, pieces[layer.name]):
            targets[fmt][_of_experts(name) if layer.role is Role.EXPERT else name] = None
    if not targets:
        return None
    schemes = [scheme(fmt, list(names)) for fmt, names in targets.items()]
    layouts = {one.format for one in schemes}
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    # vLLM runs routers as linear modules, whatever class transformers gives them.
    routers = {
        module_of(name) for layer in catalogue.layers if layer.role is Role.ROUTER for name in pieces[layer.name]
    }
    return QuantizationConfig(
        config_groups={f"group_{index}": one for index, one in enumerate(schemes)},
        format=layouts.pop() if len(layouts) == 1 else CompressionFormat.mixed_precision.value,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=sorted((linear | routers) - {layer.name for layer in packed}),
    )


def _of_experts(module: str) -> str:
    """The expression for all experts beside `<block>.experts.<number>.<projection>`."""
    return f"re:{re.escape(module.rsplit('.', 2)[0])}\\..+"


def _tensors(pieces: Pieces, packed: Mapping[Layer, Format], codes: Mapping[str, Codes]) -> dict[str, torch.Tensor]:
    """Every tensor of the folder by its name."""
    formats_of = {layer.name: fmt for layer, fmt in packed.items()}
    state = {}
    for layer, found in pieces.items():
        for name, tensor in found.items():
            if layer in formats_of:
                fmt = formats_of[layer]
                own = compressed(codes[layer] if layer in codes else quantize(tensor, fmt), fmt)
                state |= {f"{module_of(name)}.{local}": value for local, value in own.items()}
            else:
                state[name] = whole(tensor)
    return state


def compressed(codes: Codes, fmt: Format) -> dict[str, torch.Tensor]:
    """The package's tensors of one matrix, by their names inside the module."""
    from compressed_tensors.compressors import BaseCompressor

    one = scheme(fmt, [])
    # The package divides by the scale and rounds. In fp32 what our codes stand for is exact, so it finds them again.
    values = {"weight": codes.dequantize(), "weight_scale": codes.scale.float().flatten(1)}
    found = BaseCompressor.get_value_from_registry(one.format).compress(values, one)
    return found | {"weight_scale": codes.scale.flatten(1)}


# ------------------------------------------------------------------------------------------- read back


def simulate(
    model: PreTrainedModel,
    catalogue: Catalogue,
    plan: Plan,
    folder: Path,
    codes: Mapping[str, Codes] = MappingProxyType({}),
) -> None:
    """Give the model the values that the exported weights stand for; dtype, modules and inputs stay.

    Without `codes`, what a method or a recovery has chosen is nowhere but in the files, from which the package reads it
    here, without transformers.
    """
    packed = list(quantized_layers(catalogue, plan.assignments))
    if codes or _is_nearest(folder):
        simulate_rounding(model, packed, codes)
        return
    names = {layer: next(iter(pieces)) for layer, pieces in pieces_of(model, catalogue).items()}
    values = values_in(folder, {module_of(names[layer.name]): fmt for layer, fmt in packed})
    for layer in catalogue.layers:
        parameter = get_weight(model, layer)
        parameter.data = values.get(names[layer.name], parameter.data).to(parameter.data)


def _is_nearest(folder: Path) -> bool:
    """Whether the plan in the folder says nothing of a method other than round-to-nearest, and of no recovery."""
    provenance = json.loads((folder / PLAN_FILE).read_text()).get("provenance", {})
    nearest = provenance.get("applied", {}).get("method", NEAREST) == NEAREST
    return nearest and not provenance.get("recovered", {}).get("kept", False)


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of such a folder by transformers alone, which unpacks its weights, computing in `dtype`.

    Raises:
        ModelError: transformers cannot read it.
    """
    from transformers import CompressedTensorsConfig

    # The package draws progress bars whatever it is told, and transformers warns that all but `dequantize` is read from
    # the folder, which is what is wanted.
    with redirect_stderr(io.StringIO()):
        unpacked = CompressedTensorsConfig(dequantize=True)
        model = module_files.load_with_transformers(folder, dtype, quantization_config=unpacked)
    return module_files.in_dtype(model, dtype)
