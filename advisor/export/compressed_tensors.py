"""compressed-tensors export, as vLLM and transformers load it: modules by name, one scheme per format; and its reader.

The codes are ours (`formats.quantize`), so files compute with the very values that the profiler measured. Layouts, the
configuration and their names are those of the `compressed-tensors` package.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from advisor.apply import quantized_layers
from advisor.errors import ModelError, PlanError
from advisor.export_checks import refuse_unfit
from advisor.folders import PLAN_FILE, new_folder, save_tensors
from advisor.formats.quantize import quantize
from advisor.knowledge import find_engine, formats
from advisor.stored import Stored
from advisor.types import Catalogue, Format, Layer, Plan, Role
from advisor.verify import differences
from advisor.weights import get_weight

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ENGINE = "vllm"
_PLAIN = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
# In the header of each file: modules in the checkpoint -> layers, where the model calls them otherwise; "" is no layer.
_RENAMED = "advisor_layers"
_AGAIN = "the folder was changed after it was written: apply the plan again"


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, plan: Plan, folder: Path
) -> dict[str, str]:
    """Write the folder and read it back; `model`, in the dtype to store, stays as it is.

    Returns:
        An empty mapping: every layer of the plan is in the files as planned.

    Raises:
        PlanError: vLLM or transformers would load the plan wrongly or not at all. StorageError: the folder is taken or
            cannot be written. ModelError: the files do not hold what was planned.
    """
    from compressed_tensors.compressors import ModelCompressor

    check(catalogue, plan)
    packed = dict(quantized_layers(catalogue, plan.assignments))
    pieces = _pieces(model, catalogue)
    _refuse_modules(model, packed, pieces)
    buffers = _buffers(model)
    state = _tensors(pieces, packed) | buffers
    config = quantization_config(model, catalogue, packed, pieces)
    renamed = {module: layer for layer, found in pieces.items() for module in map(_module, found) if module != layer}
    renamed |= dict.fromkeys(buffers, "")
    with new_folder(folder) as target:
        save_tensors(state, model, tokenizer, target, {_RENAMED: json.dumps(renamed)})
        ModelCompressor(quantization_config=config).update_config(str(target))
        (target / PLAN_FILE).write_text(plan.model_dump_json(indent=2))
        found = differences(catalogue, plan, read(target), find_engine(ENGINE))
        if found:
            raise ModelError(f"{folder} would not hold what was planned, nothing was written: {' '.join(found[:3])}")
    return {}


def check(catalogue: Catalogue, plan: Plan) -> None:
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


# ------------------------------------------------------------------------------------------- write


def _refuse_modules(model: PreTrainedModel, packed: Iterable[Layer], pieces: Mapping[str, dict]) -> None:
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


def _pieces(model: PreTrainedModel, catalogue: Catalogue) -> dict[str, dict[str, torch.Tensor]]:
    """Layer name -> its tensors by their names in the published checkpoint: several for fused experts."""
    from transformers.core_model_loading import revert_weight_conversion

    return {
        layer.name: revert_weight_conversion(model, {layer.parameter: get_weight(model, layer).data})
        for layer in catalogue.layers
    }


def _buffers(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a checkpoint holds beside parameters, by its names."""
    from transformers.core_model_loading import revert_weight_conversion

    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return revert_weight_conversion(model, {n: t for n, t in model.state_dict().items() if n not in parameters})


def _module(tensor_name: str) -> str:
    """A weight is named by its module, everything else by itself, as layers of a catalogue are."""
    return tensor_name.removesuffix(".weight")


def quantization_config(
    model: PreTrainedModel,
    catalogue: Catalogue,
    packed: Mapping[Layer, Format],
    pieces: Mapping[str, dict[str, torch.Tensor]],
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
        for name in map(_module, pieces[layer.name]):
            targets[fmt][_of_experts(name) if layer.role is Role.EXPERT else name] = None
    if not targets:
        return None
    schemes = [scheme(fmt, list(names)) for fmt, names in targets.items()]
    layouts = {one.format for one in schemes}
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    # vLLM runs routers as linear modules, whatever class transformers gives them.
    routers = {_module(name) for layer in catalogue.layers if layer.role is Role.ROUTER for name in pieces[layer.name]}
    return QuantizationConfig(
        config_groups={f"group_{index}": one for index, one in enumerate(schemes)},
        format=layouts.pop() if len(layouts) == 1 else CompressionFormat.mixed_precision.value,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=sorted((linear | routers) - {layer.name for layer in packed}),
    )


def _of_experts(module: str) -> str:
    """The expression for all experts beside `<block>.experts.<number>.<projection>`."""
    return f"re:{re.escape(module.rsplit('.', 2)[0])}\\..+"


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


def _tensors(pieces: Mapping[str, dict[str, torch.Tensor]], packed: Mapping[Layer, Format]) -> dict[str, torch.Tensor]:
    """Every tensor of the folder by its name."""
    formats_of = {layer.name: fmt for layer, fmt in packed.items()}
    state = {}
    for layer, found in pieces.items():
        for name, tensor in found.items():
            if layer in formats_of:
                own = compressed(tensor, formats_of[layer])
                state |= {f"{_module(name)}.{local}": value for local, value in own.items()}
            else:
                # A slice of a fused tensor would be taken for one that shares its memory with others.
                state[name] = tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
    return state


def compressed(weight: torch.Tensor, fmt: Format) -> dict[str, torch.Tensor]:
    """The package's tensors of one `(rows, features)` weight, by their names inside the module."""
    from compressed_tensors.compressors import BaseCompressor

    one, codes = scheme(fmt, []), quantize(weight, fmt)
    # The package divides by the scale and rounds. In fp32 what our codes stand for is exact, so it finds them again.
    values = {"weight": codes.dequantize(), "weight_scale": codes.scale.float().flatten(1)}
    found = BaseCompressor.get_value_from_registry(one.format).compress(values, one)
    return found | {"weight_scale": codes.scale.flatten(1)}


# ------------------------------------------------------------------------------------------- read back


def is_one(folder: Path) -> bool:
    """Whether the folder holds a model that compressed-tensors packed."""
    try:
        config = json.loads((folder / "config.json").read_text())
        return config.get("quantization_config", {}).get("quant_method") == "compressed-tensors"
    except (OSError, ValueError, AttributeError):
        return False


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of such a folder by transformers alone, which unpacks its weights, computing in `dtype`.

    Raises:
        ModelError: transformers cannot read it.
    """
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    try:
        with warnings.catch_warnings():
            # It warns that all but `dequantize` is read from the folder, which is what is wanted.
            warnings.simplefilter("ignore", UserWarning)
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                quantization_config=CompressedTensorsConfig(dequantize=True),
                use_safetensors=True,
                trust_remote_code=False,
            )
    except Exception as error:  # transformers raises OSError, ValueError, RuntimeError, safetensors' errors here
        raise ModelError(f"{folder} cannot be read as a packed model ({error}): apply the plan again.") from error
    for parameter in model.parameters():  # transformers leaves some that it renames as they are in the files
        parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False)


class _Tensor(NamedTuple):
    """A tensor as the header of its file describes it; `values` only for the few integers of a packed shape."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    values: tuple[int, ...] = ()


def read(folder: Path) -> dict[str, Stored]:
    """Layer name -> what the folder's safetensors hold of it, from the files alone.

    Raises:
        ModelError: a file is missing or unreadable, or a layer's tensors are not those of its scheme in config.json.
    """
    from compressed_tensors.quantization import QuantizationConfig

    try:
        described = json.loads((folder / "config.json").read_text()).get("quantization_config")
        groups = QuantizationConfig.model_validate(described).config_groups.values() if described else ()
        tensors, renamed = _headers(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} cannot be read back ({error}): apply the plan again.") from error
    schemes = _Schemes({target: one for one in groups for target in one.targets})
    modules: dict[str, dict[str, _Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        module, _, local = name.rpartition(".")
        # A bias is a layer of its own, and so is every tensor that belongs to no scheme.
        own = local == "weight" or (local.startswith("weight_") and schemes.of(module) is not None)
        modules[module if own else name][local] = tensor
    missing = [name for name in schemes.by_target if not name.startswith("re:") and name not in modules]
    if missing:
        raise ModelError(f"{missing[0]}: config.json gives it a scheme, but there are no tensors of it; {_AGAIN}.")
    layers: dict[str, list[Stored]] = defaultdict(list)
    for name, found in modules.items():
        if renamed.get(name, name):
            layers[renamed.get(name, name)].append(_stored(name, found, schemes.of(name)))
    return {name: _together(name, parts) for name, parts in layers.items()}


def _together(name: str, parts: list[Stored]) -> Stored:
    """The experts of a block are one layer of the model."""
    if len({(part.format, part.group_size) for part in parts}) > 1:
        raise ModelError(f"{name}: its experts are stored in different formats; {_AGAIN}.")
    return replace(parts[0], bytes=sum(part.bytes for part in parts))


class _Schemes(NamedTuple):
    """The schemes of config.json, by their targets: names of modules, and expressions for experts."""

    by_target: dict[str, QuantizationScheme]

    def of(self, module: str) -> QuantizationScheme | None:
        named = self.by_target.get(module)
        matching = (s for t, s in self.by_target.items() if t.startswith("re:") and re.match(t[3:], module))
        return named or next(matching, None)


def _headers(folder: Path) -> tuple[dict[str, _Tensor], dict[str, str]]:
    """The tensors of all files, and which modules are which layers where their names differ."""
    from safetensors import SafetensorError, safe_open

    found, renamed = {}, {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                renamed |= json.loads((file.metadata() or {}).get(_RENAMED, "{}"))
                found |= {name: _header(file, name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except SafetensorError as error:
            raise ValueError(f"{path.name}: {error}") from error
    return found, renamed


def _header(file: Any, name: str) -> _Tensor:
    part = file.get_slice(name)
    dtype, shape = part.get_dtype(), tuple(part.get_shape())
    bits = int("".join(filter(str.isdigit, dtype.split("_")[0])))
    values = tuple(file.get_tensor(name).tolist()) if name.endswith(".weight_shape") else ()
    return _Tensor(dtype, shape, torch.Size(shape).numel() * bits // 8, values)


def _stored(name: str, tensors: dict[str, _Tensor], scheme: QuantizationScheme | None) -> Stored:
    size = sum(tensor.bytes for tensor in tensors.values())
    if scheme is None:
        (local, tensor), *others = tensors.items()
        if others or tensor.dtype not in _PLAIN:
            raise ModelError(f"{name} ({local}, {tensor.dtype}): config.json gives it no scheme; {_AGAIN}.")
        return Stored(_PLAIN[tensor.dtype], None, size)
    fmt = _format_of(name, scheme)
    for local, (dtypes, shape) in _layout(name, tensors, fmt).items():
        found = tensors.get(local)
        if found is None or found.dtype not in dtypes or found.shape != shape:
            holds = f"is {found.dtype} {found.shape}" if found else "is missing"
            raise ModelError(
                f"{name}.{local} {holds}, but by config.json it is {' or '.join(dtypes)} {shape}; {_AGAIN}."
            )
    return Stored(fmt.name, fmt.group_size, size)


def _layout(name: str, tensors: dict[str, _Tensor], fmt: Format) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
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
    raise ModelError(f"{name}: config.json gives it a scheme that no format of ours has; {_AGAIN}.")
