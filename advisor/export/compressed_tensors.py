"""compressed-tensors export: one scheme per format and module by name, as vLLM and transformers load it; and its reader.

The codes are ours (`formats.quantize`), so files compute with the very values that the profiler measured. Layouts, the
configuration and their names are those of the `compressed-tensors` package.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from advisor.apply import quantized_layers
from advisor.errors import ModelError
from advisor.export_checks import refuse_unfit
from advisor.folders import PLAN_FILE, new_folder, save_model
from advisor.formats.quantize import quantize
from advisor.knowledge import find_engine, formats
from advisor.stored import Stored
from advisor.types import Catalogue, Format, Plan, Role
from advisor.verify import differences
from advisor.weights import get_weight

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ENGINE = "vllm"
_PLAIN = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
_AGAIN = "the folder was changed after it was written: apply the plan again"


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, plan: Plan, folder: Path
) -> dict[str, str]:
    """Write the folder and read it back; `model`, in the dtype to store, stays as it is.

    Returns:
        An empty mapping: every layer of the plan is in the files as planned.

    Raises:
        PlanError: vLLM would load the plan wrongly or not at all. StorageError: the folder is taken or cannot be
            written. ModelError: the files do not hold what was planned.
    """
    from compressed_tensors.compressors import ModelCompressor

    engine = find_engine(ENGINE)
    refuse_unfit(catalogue, plan.assignments, engine)
    packed = {layer.name: fmt for layer, fmt in quantized_layers(catalogue, plan.assignments)}
    config = quantization_config(model, catalogue, packed)
    with new_folder(folder) as target:
        save_model(model, tokenizer, target, state=_tensors(model, catalogue, packed))
        ModelCompressor(quantization_config=config).update_config(str(target))
        (target / PLAN_FILE).write_text(plan.model_dump_json(indent=2))
        found = differences(catalogue, plan, read(target), engine)
        if found:
            raise ModelError(f"{folder} would not hold what was planned: {' '.join(found[:3])} Nothing was written.")
    return {}


def quantization_config(
    model: PreTrainedModel, catalogue: Catalogue, packed: dict[str, Format]
) -> QuantizationConfig | None:
    """What config.json says of the layers in `packed` (layer name -> format); None when there are none.

    Modules are named one by one, since a class such as `Linear` would take in whatever else is one, and every linear
    module without a scheme is on the ignore list: engines that fuse several look there for all of them.
    """
    from compressed_tensors.config import CompressionFormat
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    targets = defaultdict(list)
    for name, fmt in packed.items():
        targets[fmt.name].append(name)
    if not targets:
        return None
    schemes = [scheme(packed[names[0]], names) for names in targets.values()]
    layouts = {one.format for one in schemes}
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    # vLLM runs routers as linear modules, whatever class transformers gives them.
    linear |= {layer.name for layer in catalogue.layers if layer.role is Role.ROUTER}
    return QuantizationConfig(
        config_groups={f"group_{index}": one for index, one in enumerate(schemes)},
        format=layouts.pop() if len(layouts) == 1 else CompressionFormat.mixed_precision.value,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=sorted(linear - packed.keys()),
    )


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


def _tensors(model: PreTrainedModel, catalogue: Catalogue, packed: dict[str, Format]) -> dict[str, torch.Tensor]:
    """Every tensor of the folder by its name; a tied one once, under its first name."""
    layers = catalogue.by_name()
    replaced = {layers[name].parameter for name in packed}
    state, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if name not in replaced and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            state[name] = tensor
    for name, fmt in packed.items():
        weight = get_weight(model, layers[name]).data
        state |= {f"{name}.{local}": tensor for local, tensor in compressed(weight, fmt).items()}
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
        tensors = _headers(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} cannot be read back ({error}): apply the plan again.") from error
    schemes = {target: one for one in groups for target in one.targets}
    modules: dict[str, dict[str, _Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        module, _, local = name.rpartition(".")
        # A bias is a layer of its own, and so is every tensor that belongs to no scheme.
        own = local == "weight" or (module in schemes and local.startswith("weight_"))
        modules[module if own else name][local] = tensor
    missing = schemes.keys() - modules.keys()
    if missing:
        raise ModelError(f"{min(missing)}: config.json gives it a scheme, but there are no tensors of it; {_AGAIN}.")
    return {name: _stored(name, found, schemes.get(name)) for name, found in modules.items()}


def _headers(folder: Path) -> dict[str, _Tensor]:
    from safetensors import SafetensorError, safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():
                    found[name] = _header(file, name)
        except SafetensorError as error:
            raise ValueError(f"{path.name}: {error}") from error
    return found


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
