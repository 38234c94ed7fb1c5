"""GGUF export for llama.cpp: one file with weights, hyperparameters and tokenizer, and the plan beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from advisor.apply import refuse_rounded_inputs
from advisor.errors import ModelError, PlanError
from advisor.export.gguf_architecture import (
    ROPE_FACTORS,
    Architecture,
    architecture_of,
    in_file_order,
    layer_names,
    rope_factors,
    write_hyperparameters,
)
from advisor.export.gguf_tokenizer import write_tokenizer
from advisor.folders import PLAN_FILE, new_folder
from advisor.formats.quantize import fake_quantize
from advisor.formats.table import divides
from advisor.knowledge import find_engine, find_format, stored_format
from advisor.memory import kept_format
from advisor.stored import Stored
from advisor.types import Catalogue, Engine, Format, Layer, Plan
from advisor.units import plural
from advisor.weights import get_weight, read_weight

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ENGINE = "llama.cpp"
_PLAIN = ("F32", "F16", "BF16")


class Tensor(NamedTuple):
    """One tensor of the file: its type by GGUF's name, and why that is not what the plan says, if so."""

    layer: Layer
    fmt: Format
    type: str
    reason: str


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, plan: Plan, folder: Path
) -> dict[str, str]:
    """Write a folder with one GGUF file and the plan; `model`, in the dtype to store, stays as it is.

    Weights are rounded by llama.cpp's own rules, which the gguf package has.

    Returns:
        Layer name -> reason, for every layer that is stored as something else than was measured.

    Raises:
        PlanError: the architecture or the tokenizer cannot be written, or a format rounds activations.
        StorageError: `folder` is taken, or the disk is full or not writable.
    """
    tensors = tensors_of(catalogue, plan)
    with new_folder(folder) as target:
        write(model, tokenizer, catalogue, tensors, target / f"{catalogue.model.name}.gguf")
        (target / PLAN_FILE).write_text(plan.model_dump_json(indent=2))
    return {tensor.layer.name: tensor.reason for tensor in tensors if tensor.reason}


def tensors_of(catalogue: Catalogue, plan: Plan) -> list[Tensor]:
    """What each layer of the catalogue becomes, in its order. Raises PlanError when a format rounds activations."""
    refuse_rounded_inputs(plan.assignments, "a GGUF file")
    engine = find_engine(ENGINE)
    return [_tensor(engine, catalogue, layer, plan.assignments.get(layer.name)) for layer in catalogue.layers]


def _tensor(engine: Engine, catalogue: Catalogue, layer: Layer, assigned: str | None) -> Tensor:
    kept = kept_format(engine, catalogue, layer)
    fmt = kept if assigned is None else find_format(assigned)
    in_dtype = f"its de-quantized values are stored as {engine.formats[kept.name].stored_as}"
    if fmt.name not in engine.formats:
        return Tensor(layer, fmt, engine.formats[kept.name].stored_as, f"GGUF has no {fmt.name}: {in_dtype}")
    stored = stored_format(engine, fmt)
    if not divides(stored, layer):
        why = f"{layer.matrix_shape[1]} input features do not split into blocks of {stored.group_size}"
        return Tensor(layer, fmt, engine.formats[kept.name].stored_as, f"{why}: {in_dtype}")
    name = engine.formats[fmt.name].stored_as
    reason = (
        f"measured as {fmt.name}, stored as {name}, which has scales and a rounding of its own" if fmt.quantized else ""
    )
    return Tensor(layer, fmt, name, reason)


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    catalogue: Catalogue,
    tensors: list[Tensor],
    path: Path,
) -> None:
    """Write one GGUF file; beside the model one weight at a time is held. Raises OSError, and PlanError as `export`."""
    from gguf import GGML_QUANT_VERSION, GGUFWriter, LlamaFileType

    config = model.config
    architecture = architecture_of(config)
    names = _tensor_names(architecture, config, tensors)
    factors = rope_factors(architecture, model)
    common = Counter(tensor.type for tensor in tensors if len(tensor.layer.shape) > 1).most_common(1)[0][0]
    writer = GGUFWriter(None, architecture.name)
    writer.add_type("model")
    # Transformers takes a file that is called just "mistral" for an architecture of that name, which GGUF has not.
    writer.add_name(f"{catalogue.model.name}, mixed precision")
    writer.add_file_type(LlamaFileType["ALL_F32" if common == "F32" else f"MOSTLY_{common}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    write_hyperparameters(writer, config)
    write_tokenizer(writer, tokenizer, catalogue.model, config.vocab_size)
    if factors is not None:
        _declare(writer, ROPE_FACTORS, factors.shape, "F32")
    for tensor in tensors:
        _declare(writer, names[tensor.layer.name], tensor.layer.shape, tensor.type)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors.numpy())
        for tensor in tensors:
            values = in_file_order(architecture, config, tensor.layer.parameter, _values(model, tensor))
            writer.write_tensor_data(_encoded(values, tensor.type))
    finally:
        if writer.fout is not None:
            writer.close()


def simulate(model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> None:
    """Give the model the very values that the file stands for; dtype and modules stay. Raises PlanError as `export`."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    for tensor in tensors_of(catalogue, plan):
        encoded = _encoded(_values(model, tensor), tensor.type)
        parameter = get_weight(model, tensor.layer)
        stored = torch.from_numpy(dequantize(encoded, GGMLQuantizationType[tensor.type]))
        parameter.data = stored.view(parameter.shape).to(parameter)


def _tensor_names(architecture: Architecture, config: PretrainedConfig, tensors: list[Tensor]) -> dict[str, str]:
    """Layer name -> tensor name. Raises PlanError for a weight that the architecture has no tensor for in GGUF."""
    known = {parameter: name for name, parameter in layer_names(architecture.name, config.num_hidden_layers).items()}
    unknown = [tensor.layer.name for tensor in tensors if tensor.layer.parameter not in known]
    if unknown:
        raise PlanError(
            f"GGUF has no tensor for {unknown[0]} in {architecture.name} models: choose another export, or convert the "
            "model with llama.cpp's own convert_hf_to_gguf.py."
        )
    return {tensor.layer.name: known[tensor.layer.parameter] for tensor in tensors}


def _declare(writer: GGUFWriter, name: str, shape: Sequence[int], kind: str) -> None:
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    writer.add_tensor_info(
        name, shape, np.dtype(np.float32), math.prod(shape) // block * size, GGMLQuantizationType[kind]
    )


def _values(model: PreTrainedModel, tensor: Tensor) -> torch.Tensor:
    """What is encoded: the weight itself, or the values that its format stands for where GGUF lacks the format."""
    weight = read_weight(model, tensor.layer).detach().cpu()
    if tensor.fmt.quantized and tensor.type in _PLAIN:
        weight = fake_quantize(weight, tensor.fmt, tensor.layer.input_axis)
    return weight.float()


def _encoded(values: torch.Tensor, kind: str) -> np.ndarray:
    """fp32 values `(rows, features)` or `(values,)` as the bytes of a GGUF type, rows split into its blocks."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    return quantize(values.contiguous().numpy(), GGMLQuantizationType[kind])


def read(path: Path) -> dict[str, Stored]:
    """Layer name -> what a GGUF file holds of it, from the file alone; `path` is the file or the folder that has it.

    Raises ModelError: the file is damaged, or of an architecture or with a type that was not written here.
    """
    from gguf import GGUFReader

    path = file_of(path)
    engine = find_engine(ENGINE)
    formats = {own.stored_as: name for name, own in reversed(engine.formats.items())}
    try:
        reader = GGUFReader(path)
        architecture = reader.fields["general.architecture"].contents()
        names = layer_names(architecture, reader.fields[f"{architecture}.block_count"].contents())
        found = {}
        for tensor in reader.tensors:
            if tensor.name == ROPE_FACTORS:
                continue
            layer = names.get(tensor.name, tensor.name).removesuffix(".weight")
            fmt = stored_format(engine, find_format(formats[tensor.tensor_type.name]))
            found[layer] = Stored(fmt.name, fmt.group_size, int(tensor.n_bytes))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(
            f"{path} cannot be read back as the GGUF of a plan ({error!r}): apply the plan again."
        ) from error
    return found


def load(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a GGUF file that `export` wrote, de-quantized, in `dtype`, by transformers' own loader.

    Raises ModelError: the file is missing or damaged.
    """
    from transformers import AutoModelForCausalLM

    path = file_of(path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=dtype, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise ModelError(f"{path} cannot be read back ({error}): apply the plan again.") from error
    return model.eval().requires_grad_(False)


def file_of(path: Path) -> Path:
    """The GGUF file that `path` is or holds. Raises ModelError where that is none or several."""
    if path.is_file():
        return path
    found = sorted(path.glob("*.gguf"))
    if len(found) != 1:
        raise ModelError(f"{path} holds {plural(len(found), 'GGUF file')}, not one: name the file itself.")
    return found[0]
