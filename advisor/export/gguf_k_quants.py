"""GGUF with K-quants, which llama.cpp's llama-quantize encodes: run where it is found, else the command to run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from advisor.errors import ModelError, PlanError
from advisor.export import gguf, gguf_file
from advisor.export.gguf_architecture import architecture_of, check_architecture, layer_names
from advisor.export_checks import refuse_rounded_inputs
from advisor.folders import new_folder
from advisor.formats.table import divides
from advisor.knowledge import find_engine, find_format, stored_format
from advisor.memory import kept_format
from advisor.stored import Stored
from advisor.types import Catalogue, Engine, Layer, Plan
from advisor.weights import get_weight

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ENGINE = "llama.cpp-k-quants"
# GGUF's types with blocks of 32 have 4 bits or more.
_LEAST_IN_SMALL_BLOCKS = "int4_g32"


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, plan: Plan, folder: Path
) -> dict[str, str]:
    """Write the folder, let llama-quantize encode the weights, and read the result back; `model` stays as it is.

    The program is looked for on PATH, or where LLAMA_QUANTIZE says. Without it the folder has the weights in the
    model's dtype, the types that they are to have, and a script with the command.

    Returns:
        Layer name -> what is other than it was measured, and what becomes of rows that K-quants do not divide.

    Raises:
        PlanError: GGUF lacks a format, or the architecture or the tokenizer cannot be written. StorageError: `folder`
            is taken or cannot be written. ModelError: llama-quantize failed, or made something else of a tensor.
    """
    engine = find_engine(ENGINE)
    check(model, catalogue, plan)
    types, reasons = _types(catalogue, plan, engine)
    kept = {
        layer.name: engine.formats[kept_format(engine, catalogue, layer).name].stored_as for layer in catalogue.layers
    }
    name = catalogue.model.name
    source, result = f"{name}{gguf_file.UNQUANTIZED}", f"{name}.gguf"
    command = ["--tensor-type-file", gguf_file.TYPES_FILE, source, result, "Q8_0"]
    program = shutil.which(os.environ.get("LLAMA_QUANTIZE") or "llama-quantize")
    with new_folder(folder) as target:
        gguf_file.write(model, tokenizer, catalogue, kept, target / source)
        gguf.write_beside(tokenizer, plan, target)
        (target / gguf_file.TYPES_FILE).write_text(_type_file(model, catalogue, types))
        if program is None:
            line = shlex.join(["llama-quantize", *command])
            (target / gguf_file.COMMAND_FILE).write_text(f'#!/bin/sh\ncd "$(dirname "$0")" && {line}\n')
            return reasons
        _quantize([program, *command], target)
        (target / source).unlink()
        _check(types, gguf_file.read_types(target / result), folder)
    return reasons


def check(model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> None:
    """Raises PlanError for a plan that GGUF cannot hold, and for a model that it does not describe."""
    engine = find_engine(ENGINE)
    refuse_rounded_inputs(plan.assignments, "a GGUF file")
    unknown = next((item for item in plan.assignments.items() if item[1] not in engine.formats), None)
    if unknown:
        raise PlanError(
            f"{unknown[0]} has {unknown[1]}, which GGUF lacks: plan for {engine.label}, whose formats are "
            f"{', '.join(engine.formats)}."
        )
    check_architecture(catalogue.architecture)


def expected(model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> dict[str, Stored]:
    """Layer name -> what the file must hold, rows that K-quants do not divide included."""
    return gguf_file.stored_as(catalogue, _types(catalogue, plan, find_engine(ENGINE))[0])


def is_one(folder: Path) -> bool:
    """Whether the folder holds what `export` wrote."""
    return (folder / gguf_file.TYPES_FILE).is_file()


def read(folder: Path) -> dict[str, Stored]:
    """Layer name -> what the exported file holds of it. Raises ModelError, also before llama-quantize has run."""
    return gguf.read(folder)


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of an exported file. Raises ModelError like `read`."""
    return gguf.load(folder, dtype)


def simulate(model: PreTrainedModel, catalogue: Catalogue, plan: Plan, folder: Path) -> None:
    """Give the model the values that the file holds, as the gguf package decodes them; it encodes no K-quants."""
    values = gguf_file.values(folder, model.config)
    for layer in catalogue.layers:
        parameter = get_weight(model, layer)
        parameter.data = values(layer).to(parameter)


def _types(catalogue: Catalogue, plan: Plan, engine: Engine) -> tuple[dict[str, str], dict[str, str]]:
    """Layer name -> GGUF type, for every layer; and why that is not what was measured, for those where it is not."""
    types, reasons = gguf.types_of(catalogue, plan, engine), gguf.rounded_otherwise(catalogue, plan, engine)
    layers = catalogue.by_name()
    for name in reasons:
        stored, layer = stored_format(engine, find_format(plan.assignments[name])), layers[name]
        if not divides(stored, layer):
            instead = _instead(catalogue, layer, plan.assignments[name], engine)
            reasons[name] = (
                f"measured as {plan.assignments[name]}; its {layer.matrix_shape[1]} input features do not split into "
                f"the {stored.group_size} of {types[name]}, so it is {instead}"
            )
            types[name] = instead
    return types, reasons


def _instead(catalogue: Catalogue, layer: Layer, name: str, engine: Engine) -> str:
    """The type of rows that K-quants do not divide: that of smaller blocks, 4 bits at the least, or the dtype."""
    plain = find_engine(gguf.ENGINE)
    fmt = find_format(name if name in plain.formats else _LEAST_IN_SMALL_BLOCKS)
    if divides(stored_format(plain, fmt), layer):
        return plain.formats[fmt.name].stored_as
    return engine.formats[catalogue.dtype].stored_as


def _type_file(model: PreTrainedModel, catalogue: Catalogue, types: dict[str, str]) -> str:
    """One `pattern=type` a line, for every matrix, so that nothing is left to llama-quantize's own choice."""
    config = model.config
    names = layer_names(architecture_of(config).name, config.num_hidden_layers)
    tensors = {parameter: tensor for tensor, parameter in names.items()}
    return "".join(
        f"^{re.escape(tensors[layer.parameter])}$={types[layer.name].lower()}\n" for layer in catalogue.quantizable
    )


def _quantize(command: list[str], folder: Path) -> None:
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if ran.returncode:
        said = (ran.stderr or ran.stdout).strip().splitlines()
        raise ModelError(
            f"{command[0]} failed ({said[-1] if said else f'exit status {ran.returncode}'}): check its version, or "
            "export without K-quants."
        )


def _check(wanted: dict[str, str], found: dict[str, str], folder: Path) -> None:
    wrong = [
        f"{name} is {found.get(name, 'missing')} instead of {kind}"
        for name, kind in wanted.items()
        if found.get(name) != kind
    ]
    if wrong:
        raise ModelError(
            f"llama-quantize made something else than was planned, {folder} was not written: {'; '.join(wrong[:3])}."
        )
