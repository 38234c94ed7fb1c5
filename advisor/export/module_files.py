"""What exports that pack module by module share: tensors by name, the folder, and what its headers say."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from advisor.apply import quantized_layers
from advisor.errors import ModelError, PlanError
from advisor.export.checkpoint import buffers_of, module_of, pieces_of, renamed, whole
from advisor.export.safetensors_files import AGAIN, Header, headers
from advisor.export.safetensors_files import plain as stored_plain
from advisor.folders import PLAN_FILE, new_folder, save_tensors
from advisor.formats.quantize import Codes, quantize
from advisor.stored import Stored
from advisor.types import Catalogue, Format, Layer, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Packs the codes of a matrix: its tensors by their names inside the module.
Pack = Callable[[Codes, Format], dict[str, torch.Tensor]]


# ------------------------------------------------------------------------------------------- write


def refuse_modules(model: PreTrainedModel, layers: Iterable[Layer], library: str, embeddings: bool = False) -> None:
    """Raises PlanError for a layer that `library` does not pack: whatever is no `nn.Linear` (or embedding)."""
    kinds = (torch.nn.Linear, torch.nn.Embedding) if embeddings else (torch.nn.Linear,)
    for layer in layers:
        fused = layer.parameter != f"{layer.name}.weight"
        module = None if fused else model.get_submodule(layer.name)
        if type(module) is torch.nn.Linear or (embeddings and isinstance(module, torch.nn.Embedding)):
            continue
        kind = "a fused weight" if fused else type(module).__name__
        raise PlanError(
            f"{layer.name}: {library} packs {' and '.join(f'nn.{one.__name__}' for one in kinds)} only, and this is "
            f"{kind}; leave it in the model's dtype, or apply the plan another way."
        )


def packed_layers(catalogue: Catalogue, plan: Plan) -> dict[Layer, Format]:
    """The layers that the plan quantizes, with their formats, in the model's order."""
    return dict(quantized_layers(catalogue, plan.assignments))


def kept_linear(model: PreTrainedModel, packed: Iterable[Layer]) -> list[str]:
    """The names of all linear modules that stay as they are."""
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return sorted(linear - {layer.name for layer in packed})


def state_of(
    model: PreTrainedModel,
    catalogue: Catalogue,
    packed: Mapping[Layer, Format],
    pack: Pack,
    codes: Mapping[str, Codes],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Every tensor of the folder by its name, and what the header of each file says of names.

    Modules that are packed keep the names that the model has for them, by which the configuration speaks of them; all
    other tensors have those of the published checkpoint. Layers that are not in `codes` have the nearest ones.
    """
    state, pieces = {}, {}
    formats = {layer.name: fmt for layer, fmt in packed.items()}
    for name, found in pieces_of(model, catalogue).items():
        if name in formats:
            (weight,) = found.values()
            own = codes[name] if name in codes else quantize(weight, formats[name])
            state |= {f"{name}.{local}": tensor for local, tensor in pack(own, formats[name]).items()}
        else:
            pieces[name] = found
            state |= {piece: whole(tensor) for piece, tensor in found.items()}
    buffers = buffers_of(model)
    return state | buffers, renamed(pieces, buffers)


def write(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    state: dict[str, torch.Tensor],
    metadata: dict[str, str],
    described: Mapping[str, Any],
    beside: Mapping[str, str] | None = None,
) -> None:
    """The folder, whole or not at all: tensors with `metadata`, the model's configuration with `described`, the plan.

    `beside` are further files with their text.

    Raises StorageError: the folder is taken or cannot be written.
    """
    with new_folder(folder) as target:
        save_tensors(state, model, tokenizer, target, metadata)
        path = target / "config.json"
        config = {k: v for k, v in json.loads(path.read_text()).items() if k != "quantization_config"} | dict(described)
        path.write_text(json.dumps(config, indent=2))
        for name, text in {PLAN_FILE: plan.model_dump_json(indent=2), **(beside or {})}.items():
            (target / name).write_text(text)


# ------------------------------------------------------------------------------------------- read back


def config_of(folder: Path) -> dict[str, Any]:
    """What config.json holds; raises ModelError."""
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read back ({error}): apply the plan again.") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} cannot be read back (it is no table): apply the plan again.")
    return found


def has_method(folder: Path, method: str) -> bool:
    """Whether config.json names this `quant_method`; never raises."""
    try:
        described = config_of(folder).get("quantization_config")
    except ModelError:
        return False
    return isinstance(described, dict) and described.get("quant_method") == method


def read(
    folder: Path, locals_: Iterable[str], stored: Callable[[str, dict[str, Header]], Stored], described: Iterable[str]
) -> dict[str, Stored]:
    """Layer name -> what the folder's safetensors hold of it.

    `locals_` are the names that tensors of packed modules end in, `stored` tells what a packed module is by its tensors
    and `described` are the modules that config.json says are packed. Raises ModelError for damaged files, and where
    these do not agree.
    """
    tensors, names = headers(folder)
    modules: dict[str, dict[str, Header]] = defaultdict(dict)
    layers = {}
    # A longer name may end in a shorter one.
    endings = sorted((f".{local}" for local in locals_), key=len, reverse=True)
    for name, tensor in tensors.items():
        ending = next((end for end in endings if name.endswith(end)), None)
        if ending is None:
            layers[module_of(name)] = stored_plain(name, name, tensor)
        else:
            modules[name.removesuffix(ending)][ending[1:]] = tensor
    for name, parts in modules.items():
        alone = parts.keys() == {"weight"}
        layers[name] = stored_plain(name, "weight", parts["weight"]) if alone else stored(name, parts)
    missing = [name for name in described if modules.get(name, {}).keys() <= {"weight"}]
    if missing:
        raise ModelError(
            f"{missing[0]}: config.json says that it is packed, but the files hold no codes of it; {AGAIN}."
        )
    found = {names.get(name, name): layer for name, layer in layers.items()}
    return {name: layer for name, layer in found.items() if name}


def refuse_other_tensors(
    name: str, parts: Mapping[str, Header], layout: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]]
) -> None:
    """Raises ModelError unless a module's tensors are those of its layout: local name -> (dtypes, shape)."""
    for local in parts.keys() | layout.keys():
        found, (dtypes, shape) = parts.get(local), layout.get(local, ((), ()))
        if found is None or found.dtype not in dtypes or found.shape != shape:
            holds = f"is {found.dtype} {found.shape}" if found else "is missing"
            wanted = f"it is {' or '.join(dtypes)} {shape}" if dtypes else "there is none"
            raise ModelError(f"{name}.{local} {holds}, but by config.json {wanted}; {AGAIN}.")


def notes_of(folder: Path) -> dict[str, str]:
    """What the headers of a folder's files say beside their tensors; raises ModelError."""
    notes: dict[str, str] = {}
    for file in _opened(folder):
        notes |= file.metadata() or {}
    return notes


def tensors_of(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, torch.Tensor]:
    """The tensors of a folder's files whose names are `wanted`, by name; raises ModelError."""
    return {name: file.get_tensor(name) for file in _opened(folder) for name in filter(wanted, file.keys())}


def _opened(folder: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} cannot be read back ({error}): apply the plan again.") from error


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


def load_unpacked(
    folder: Path,
    dtype: torch.dtype,
    bits: Mapping[str, int],
    locals_: Iterable[str],
    values: Callable[[dict[str, torch.Tensor], int], torch.Tensor],
) -> PreTrainedModel:
    """The folder's model, the modules in `bits` unpacked by `values` from the tensors whose names end in `locals_`.

    Raises ModelError like `model_of`.
    """
    state = tensors_of(folder)
    for name, own in bits.items():
        parts = {local: state.pop(f"{name}.{local}") for local in locals_}
        state[f"{name}.weight"] = values(parts, own).to(dtype)
    return model_of(folder, state, dtype)


def load_with_transformers(folder: Path, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """The folder's model as transformers alone loads it, with further `options` of its own; raises ModelError."""
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
        )
    except (
        Exception
    ) as error:  # transformers raises OSError, ValueError, RuntimeError, ImportError, safetensors' errors
        raise ModelError(f"{folder} cannot be read as a packed model ({error}): apply the plan again.") from error
    return model.eval().requires_grad_(False)


def in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same model, to be read only; transformers leaves some parameters that it renames as they are in the files."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False)
