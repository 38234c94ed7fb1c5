"""GGUF export for llama.cpp: one file with weights, hyperparameters and tokenizer, and the plan beside it."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from advisor import verify
from advisor.errors import ModelError
from advisor.export import gguf_file
from advisor.export.gguf_architecture import check_architecture
from advisor.export_checks import refuse_rounded_inputs, refuse_unfit
from advisor.folders import PLAN_FILE, new_folder
from advisor.knowledge import find_engine, find_format
from advisor.memory import kept_format
from advisor.stored import Stored
from advisor.types import Catalogue, Engine, Plan
from advisor.weights import get_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ENGINE = "llama.cpp"


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, plan: Plan, folder: Path
) -> dict[str, str]:
    """Write the folder; `model`, in the dtype to store, stays as it is.

    Returns:
        Layer name -> what is other than it was measured: llama.cpp has scales and a rounding of its own.

    Raises:
        PlanError: GGUF lacks a format, or the architecture or the tokenizer cannot be written. StorageError: `folder`
            is taken or cannot be written.
    """
    check(model, catalogue, plan)
    types = types_of(catalogue, plan, find_engine(ENGINE))
    with new_folder(folder) as target:
        gguf_file.write(model, tokenizer, catalogue, types, target / f"{catalogue.model.name}.gguf")
        write_beside(tokenizer, plan, target)
    return rounded_otherwise(catalogue, plan, find_engine(ENGINE))


def check(model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> None:
    """Raises PlanError for a plan that GGUF cannot hold, and for a model that it does not describe."""
    refuse_rounded_inputs(plan.assignments, "a GGUF file")
    refuse_unfit(catalogue, plan.assignments, find_engine(ENGINE))
    check_architecture(catalogue.architecture)


def types_of(catalogue: Catalogue, plan: Plan, engine: Engine) -> dict[str, str]:
    """Layer name -> GGUF type, for every layer of the catalogue; raises KeyError for a format that GGUF lacks."""
    return {
        layer.name: engine.formats[
            plan.assignments.get(layer.name) or kept_format(engine, catalogue, layer).name
        ].stored_as
        for layer in catalogue.layers
    }


def write_beside(tokenizer: PreTrainedTokenizerBase, plan: Plan, target: Path) -> None:
    """The plan, and the tokenizer once more: transformers makes another one of what GGUF says of it."""
    (target / PLAN_FILE).write_text(plan.model_dump_json(indent=2))
    tokenizer.save_pretrained(target)


def rounded_otherwise(catalogue: Catalogue, plan: Plan, engine: Engine) -> dict[str, str]:
    """Layer name -> what it was measured as and what it is, for every layer that is rounded by llama.cpp's rules."""
    types = types_of(catalogue, plan, engine)
    return {
        name: f"measured as {fmt}, rounded by llama.cpp's rules as {types[name]}"
        for name, fmt in plan.assignments.items()
        if find_format(fmt).quantized
    }


def simulate(model: PreTrainedModel, catalogue: Catalogue, plan: Plan, folder: Path | None = None) -> None:
    """Give the model the very values that an exported file stands for; dtype and modules stay, no file is read."""
    types = types_of(catalogue, plan, find_engine(ENGINE))
    for layer in catalogue.layers:
        parameter, kind = get_weight(model, layer), types[layer.name]
        parameter.data = gguf_file.decode(gguf_file.encode(parameter, kind), kind).view(parameter.shape).to(parameter)


def expected(model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> dict[str, Stored]:
    """Layer name -> what the file must hold."""
    return verify.expected(catalogue, plan, find_engine(ENGINE))


def is_one(folder: Path) -> bool:
    """Whether the folder holds GGUF files that this module wrote; those with K-quants have their types beside them."""
    return any(folder.glob("*.gguf")) and not (folder / gguf_file.TYPES_FILE).is_file()


def read(path: Path) -> dict[str, Stored]:
    """Layer name -> what the exported file or folder holds of it, from the file alone. Raises ModelError."""
    return gguf_file.read(path)


def load(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of an exported file or folder, de-quantized to `dtype` by transformers' own loader.

    Raises ModelError: the file is missing or damaged.
    """
    from transformers import AutoModelForCausalLM

    file = gguf_file.file_of(path)
    try:
        with redirect_stderr(io.StringIO()):  # transformers draws a progress bar whatever it is told
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=dtype, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise ModelError(f"{file} cannot be read back ({error}): apply the plan again.") from error
    return model.eval().requires_grad_(False)
