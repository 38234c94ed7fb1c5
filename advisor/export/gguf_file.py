"""One GGUF file: weights in given types, hyperparameters and tokenizer, written whole; and what it holds, read back.

Weights are encoded by the gguf package, whose bytes are those of llama.cpp's own quantizers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from advisor.errors import ModelError, PlanError
from advisor.export.gguf_architecture import (
    ROPE_FACTORS,
    Architecture,
    architecture_of,
    in_file_order,
    in_model_order,
    layer_names,
    rope_factors,
    write_hyperparameters,
)
from advisor.export.gguf_tokenizer import write_tokenizer
from advisor.knowledge import find_engine, find_format, stored_format
from advisor.stored import Stored
from advisor.types import Catalogue, Format, Layer
from advisor.units import plural
from advisor.weights import read_weight

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter, ReaderTensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# The weights before llama-quantize has seen them.
UNQUANTIZED = "-unquantized.gguf"
COMMAND_FILE = "llama-quantize.sh"
TYPES_FILE = "tensor-types.txt"
_ENGINES = ("llama.cpp", "llama.cpp-k-quants")


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    catalogue: Catalogue,
    types: Mapping[str, str],
    path: Path,
) -> None:
    """Write one GGUF file; beside the model one weight at a time is held.

    Args:
        types: layer name -> GGUF type, by its name in the gguf package, for every layer of the catalogue.

    Raises:
        PlanError: the architecture or the tokenizer cannot be written. OSError: the disk is full or not writable.
    """
    from gguf import GGML_QUANT_VERSION, GGUFWriter, LlamaFileType

    config = model.config
    architecture = architecture_of(config)
    names = _tensor_names(architecture, config, catalogue)
    factors = rope_factors(architecture, config)
    common = Counter(types[layer.name] for layer in catalogue.quantizable).most_common(1)[0][0]
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
    for layer in catalogue.layers:
        _declare(writer, names[layer.name], layer.shape, types[layer.name])
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors.numpy())
        for layer in catalogue.layers:
            values = in_file_order(architecture, config, layer.parameter, read_weight(model, layer))
            writer.write_tensor_data(encode(values, types[layer.name]))
    finally:
        if writer.fout is not None:
            writer.close()


def encode(values: torch.Tensor, kind: str) -> np.ndarray:
    """Values `(rows, features)` or `(values,)` as the bytes of a GGUF type; features are whole blocks of it."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    return quantize(values.detach().float().cpu().contiguous().numpy(), GGMLQuantizationType[kind])


def decode(encoded: np.ndarray, kind: str) -> torch.Tensor:
    """The fp32 values that the bytes of a GGUF type stand for."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return torch.from_numpy(dequantize(encoded, GGMLQuantizationType[kind]))


def read(path: Path) -> dict[str, Stored]:
    """Layer name -> what a GGUF file holds of it, from the file alone; `path` is the file or the folder that has it.

    Raises ModelError: the file is damaged, or of an architecture or with a type that is not written here.
    """
    formats, found = _formats(), {}
    for layer, tensor in _tensors(path).items():
        fmt = formats.get(tensor.tensor_type.name)
        if fmt is None:
            raise ModelError(f"{path}: {layer} is {tensor.tensor_type.name}, which stands for none of our formats.")
        found[layer] = Stored(fmt.name, fmt.group_size, int(tensor.n_bytes))
    return found


def stored_as(catalogue: Catalogue, types: Mapping[str, str]) -> dict[str, Stored]:
    """Layer name -> what a file with these GGUF types must hold; KeyError for a type of no format of ours."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    formats, found = _formats(), {}
    for layer in catalogue.layers:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[types[layer.name]]]
        fmt = formats[types[layer.name]]
        found[layer.name] = Stored(fmt.name, fmt.group_size, layer.parameters // block * size)
    return found


def values(path: Path, config: PretrainedConfig) -> Callable[[Layer], torch.Tensor]:
    """Layer -> its fp32 values, decoded when they are asked for, rows as the model has them. Raises ModelError."""
    tensors, architecture = _tensors(path), architecture_of(config)

    def of(layer: Layer) -> torch.Tensor:
        if layer.name not in tensors:
            raise ModelError(f"{path} holds no {layer.name}: apply the plan again.")
        tensor = tensors[layer.name]
        decoded = decode(tensor.data, tensor.tensor_type.name).view(layer.shape)
        return in_model_order(architecture, config, layer.parameter, decoded)

    return of


def read_types(path: Path) -> dict[str, str]:
    """Layer name -> its GGUF type in the file. Raises ModelError like `read`."""
    return {layer: tensor.tensor_type.name for layer, tensor in _tensors(path).items()}


def file_of(path: Path) -> Path:
    """The GGUF file that `path` is or holds, beside unquantized weights. Raises ModelError where it cannot be told."""
    if path.is_file():
        return path
    every = sorted(path.glob("*.gguf"))
    found = [file for file in every if not file.name.endswith(UNQUANTIZED)]
    if every and not found:
        raise ModelError(f"{path} holds unquantized weights only: run {path / COMMAND_FILE} first.")
    if len(found) != 1:
        raise ModelError(f"{path} holds {plural(len(found), 'GGUF file')}, not one: name the file itself.")
    return found[0]


def _formats() -> dict[str, Format]:
    """GGUF type -> the format of ours that it stores, the first one where there are several."""
    return {
        own.stored_as: stored_format(engine, find_format(name))
        for engine in map(find_engine, reversed(_ENGINES))
        for name, own in reversed(engine.formats.items())
    }


def _tensors(path: Path) -> dict[str, ReaderTensor]:
    """The file's tensors by the layers that they are; one that no layer is keeps its own name."""
    from gguf import GGUFReader

    path = file_of(path)
    try:
        reader = GGUFReader(path)
        architecture = reader.fields["general.architecture"].contents()
        names = layer_names(architecture, reader.fields[f"{architecture}.block_count"].contents())
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(
            f"{path} cannot be read back as the GGUF file of a plan ({error}): apply the plan again."
        ) from error
    return {
        names.get(tensor.name, tensor.name).removesuffix(".weight"): tensor
        for tensor in reader.tensors
        if tensor.name != ROPE_FACTORS
    }


def _tensor_names(architecture: Architecture, config: PretrainedConfig, catalogue: Catalogue) -> dict[str, str]:
    """Layer name -> tensor name. Raises PlanError for a weight that the architecture has no tensor for in GGUF."""
    known = {parameter: name for name, parameter in layer_names(architecture.name, config.num_hidden_layers).items()}
    unknown = [layer.name for layer in catalogue.layers if layer.parameter not in known]
    if unknown:
        raise PlanError(
            f"GGUF has no tensor for {unknown[0]} in {architecture.name} models: choose another export, or convert the "
            "model with llama.cpp's own convert_hf_to_gguf.py."
        )
    return {layer.name: known[layer.parameter] for layer in catalogue.layers}


def _declare(writer: GGUFWriter, name: str, shape: Sequence[int], kind: str) -> None:
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    stored = math.prod(shape) // block * size
    writer.add_tensor_info(name, shape, np.dtype(np.float32), stored, GGMLQuantizationType[kind])
