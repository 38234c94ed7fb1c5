"""What exports that pack module by module share: a checkpoint's tensors by name, the folder, and what its headers say."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from advisor.apply import quantized_layers
from advisor.errors import ModelError, PlanError
from advisor.folders import PLAN_FILE, new_folder, save_tensors
from advisor.stored import Stored
from advisor.types import Catalogue, Format, Layer, Plan, Role
from advisor.weights import get_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Packs a `(rows, features)` weight: its tensors by their names inside the module.
Pack = Callable[[torch.Tensor, Format], dict[str, torch.Tensor]]

AGAIN = "the folder was changed after it was written: apply the plan again"

# In the header of each file: modules in the checkpoint -> layers, where the model calls them otherwise; "" is no layer.
_RENAMED = "advisor_layers"
_PLAIN = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}


# ------------------------------------------------------------------------------------------- write


def refuse_modules(model: PreTrainedModel, layers: Iterable[Layer], library: str, embeddings: bool = False) -> None:
    """Raises PlanError for a layer that `library` does not pack: whatever is no `nn.Linear` (or embedding)."""
    kinds = (torch.nn.Linear, torch.nn.Embedding) if embeddings else (torch.nn.Linear,)
    for layer in layers:
        fused = layer.parameter != f"{layer.name}.weight"
        module = None if fused else model.get_submodule(layer.name)
        # A subclass may scale what it looks up or add a bias of its own.
        if not fused and (type(module) in kinds or (embeddings and layer.role is Role.EMBEDDING)):
            continue
        kind = "a fused weight" if fused else type(module).__name__
        raise PlanError(
            f"{layer.name}: {library} packs nn.Linear only, and this is {kind}; leave it in the model's dtype, or apply "
            "the plan another way."
        )


def packed_layers(catalogue: Catalogue, plan: Plan) -> dict[Layer, Format]:
    """The layers that the plan quantizes, with their formats, in the model's order."""
    return dict(quantized_layers(catalogue, plan.assignments))


def kept_linear(model: PreTrainedModel, packed: Iterable[Layer]) -> list[str]:
    """The names of all linear modules that stay as they are."""
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return sorted(linear - {layer.name for layer in packed})


def state_of(
    model: PreTrainedModel, catalogue: Catalogue, packed: Mapping[Layer, Format], pack: Pack
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Every tensor of the folder by its name in the published checkpoint, and the names that are not the layers' own."""
    from transformers.core_model_loading import revert_weight_conversion

    state, renamed = {}, {}
    for layer in catalogue.layers:
        weight = get_weight(model, layer).data
        if layer in packed:
            state |= {f"{layer.name}.{local}": tensor for local, tensor in pack(weight, packed[layer]).items()}
            continue
        for name, tensor in revert_weight_conversion(model, {layer.parameter: weight}).items():
            # A slice of a fused tensor would be taken for one that shares its memory with others.
            state[name] = tensor.clone().contiguous()
            if layer_of(name) != layer.name:
                renamed[layer_of(name)] = layer.name
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = revert_weight_conversion(model, {n: t for n, t in model.state_dict().items() if n not in parameters})
    return state | buffers, renamed | dict.fromkeys(map(layer_of, buffers), "")


def write(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    state: dict[str, torch.Tensor],
    renamed: Mapping[str, str],
    described: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """The folder, whole or not at all: tensors, the model's configuration with what `described` adds, and the plan.

    Raises StorageError: the folder is taken or cannot be written.
    """
    with new_folder(folder) as target:
        header = {_RENAMED: json.dumps(dict(renamed)), "format": "pt"} | dict(metadata or {})
        save_tensors(state, model, tokenizer, target, header)
        path = target / "config.json"
        config = {k: v for k, v in json.loads(path.read_text()).items() if k != "quantization_config"} | dict(described)
        path.write_text(json.dumps(config, indent=2))
        (target / PLAN_FILE).write_text(plan.model_dump_json(indent=2))


# ------------------------------------------------------------------------------------------- read back


class Header(NamedTuple):
    """A tensor as the header of its file describes it."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int


def config_of(folder: Path) -> dict[str, Any]:
    """What config.json holds; raises ModelError."""
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} cannot be read back ({error}): apply the plan again.") from error
    if not isinstance(found, dict):
        raise ModelError(f"{folder} cannot be read back (config.json is no table): apply the plan again.")
    return found


def has_method(folder: Path, method: str) -> bool:
    """Whether config.json names this `quant_method`; never raises."""
    try:
        described = config_of(folder).get("quantization_config")
    except ModelError:
        return False
    return isinstance(described, dict) and described.get("quant_method") == method


def headers(folder: Path) -> tuple[dict[str, Header], dict[str, str]]:
    """The tensors of all files by name, and the files' own notes; raises ModelError for a file that cannot be read."""
    from safetensors import SafetensorError, safe_open

    found, notes = {}, {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                notes |= file.metadata() or {}
                found |= {name: _header(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be read back ({path.name}: {error}): apply the plan again.") from error
    return found, notes


def _header(part: Any) -> Header:
    dtype, shape = part.get_dtype(), tuple(part.get_shape())
    bits = 8 if dtype == "BOOL" else int("".join(filter(str.isdigit, dtype.split("_")[0])))
    return Header(dtype, shape, torch.Size(shape).numel() * bits // 8)


def modules_of(folder: Path, locals_: Iterable[str]) -> tuple[dict[str, dict[str, Header]], dict[str, Header]]:
    """The packed modules of a folder with their tensors by local name, and all other tensors by layer.

    `locals_` are the names that tensors of packed modules end in; one of them tells packed modules from plain ones, so
    `weight` alone is a plain one. Raises ModelError.
    """
    found, notes = headers(folder)
    renamed = json.loads(notes.get(_RENAMED, "{}"))
    # A longer name may end in a shorter one.
    endings = sorted((f".{local}" for local in locals_), key=len, reverse=True)
    modules: dict[str, dict[str, Header]] = defaultdict(dict)
    plain = {}
    for name, tensor in found.items():
        ending = next((end for end in endings if name.endswith(end)), None)
        if ending is None:
            plain[layer_of(name)] = tensor
        else:
            modules[name.removesuffix(ending)][ending[1:]] = tensor
    for module in [name for name, parts in modules.items() if parts.keys() == {"weight"}]:
        plain[module] = modules.pop(module)["weight"]
    named = {renamed.get(name, name): tensor for name, tensor in plain.items()}
    return dict(modules), {name: tensor for name, tensor in named.items() if name}


def stored_plain(plain: Mapping[str, Header]) -> dict[str, Stored]:
    """What layers that are not packed are stored as; raises ModelError for a dtype that no plain tensor has."""
    for name, tensor in plain.items():
        if tensor.dtype not in _PLAIN:
            raise ModelError(f"{name} ({tensor.dtype}): the folder does not say what its codes mean; {AGAIN}.")
    return {name: Stored(_PLAIN[tensor.dtype], None, tensor.bytes) for name, tensor in plain.items()}


def refuse_other_tensors(
    name: str, parts: Mapping[str, Header], layout: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]]
) -> None:
    """Raises ModelError unless a module's tensors are those of its layout: local name -> (dtypes, shape)."""
    for local in parts.keys() | layout.keys():
        found, (dtypes, shape) = parts.get(local), layout.get(local, ((), ()))
        if found is None or found.dtype not in dtypes or found.shape != shape:
            holds = f"is {found.dtype} {found.shape}" if found else "is missing"
            wanted = f"it is {' or '.join(dtypes)} {shape}" if dtypes else "there is none"
            raise ModelError(f"{name}.{local} {holds}, but by what describes it {wanted}; {AGAIN}.")


def layer_of(tensor_name: str) -> str:
    """A weight is named by its module, everything else by itself, as layers of a catalogue are."""
    return tensor_name.removesuffix(".weight")


def tensors_of(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, torch.Tensor]:
    """The tensors of a folder's files whose names are `wanted`, by name; raises ModelError."""
    from safetensors import SafetensorError, safe_open

    state = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                state |= {name: file.get_tensor(name) for name in filter(wanted, file.keys())}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be read back ({path.name}: {error}): apply the plan again.") from error
    return state


def model_of(folder: Path, state: dict[str, torch.Tensor], dtype: torch.dtype) -> PreTrainedModel:
    """The folder's model in `dtype` with these plain tensors, by their names in the checkpoint, for its weights.

    Raises ModelError: tensors are missing or are no tensors of this model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        for key in ("quantization", "quantization_config"):
            if hasattr(config, key):
                delattr(config, key)
        architecture = AutoModelForCausalLM._model_mapping[type(config)]
        model, found = architecture.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder} cannot be read back as a model ({error}): apply the plan again.") from error
    wrong = [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]
    if wrong:
        raise ModelError(f"{folder} does not hold its model's tensors ({sorted(map(str, wrong))[:3]}): {AGAIN}.")
    return in_dtype(model, dtype)


def load_with_transformers(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The folder's model as transformers alone loads it; raises ModelError."""
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises OSError, ValueError, RuntimeError, ImportError, safetensors' errors
        raise ModelError(f"{folder} cannot be read as a packed model ({error}): apply the plan again.") from error
    return model.eval().requires_grad_(False)


def in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same model, to be read only; transformers leaves some parameters that it renames as they are in the files."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False)
