"""Simulated export: a plain safetensors folder of de-quantized weights, which transformers loads as any other model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from advisor import models, verify
from advisor.export.checkpoint import buffers_of, pieces_of, renamed, whole
from advisor.export.compressed_tensors_files import read
from advisor.export.planned import simulate
from advisor.export_checks import refuse_rounded_inputs
from advisor.folders import PLAN_FILE, QUANTO_MAP, new_folder, save_tensors
from advisor.formats.quantize import Codes
from advisor.knowledge import find_engine
from advisor.stored import Stored
from advisor.types import Catalogue, Plan

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["check", "expected", "export", "is_one", "load", "read", "simulate"]

ENGINE = "transformers"


def check(model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> None:
    """Raises PlanError for a plan that rounds activations."""
    refuse_rounded_inputs(plan.assignments, "a simulated export")


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    catalogue: Catalogue,
    plan: Plan,
    folder: Path,
    codes: Mapping[str, Codes] = MappingProxyType({}),
) -> dict[str, str]:
    """Write the folder; `model`, in the dtype to store, is changed on the way.

    Returns:
        An empty mapping: every layer of the plan is in the files, as values.

    Raises:
        PlanError: a format rounds activations.
    """
    check(model, catalogue, plan)
    simulate(model, catalogue, plan, folder, codes)
    pieces, buffers = pieces_of(model, catalogue), buffers_of(model)
    state = {name: whole(tensor) for found in pieces.values() for name, tensor in found.items()}
    with new_folder(folder) as target:
        save_tensors(state | buffers, model, tokenizer, target, renamed(pieces, buffers))
        (target / PLAN_FILE).write_text(plan.model_dump_json(indent=2))
    return {}


def expected(model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> dict[str, Stored]:
    """Layer name -> what the files must hold: every layer in the model's dtype."""
    return verify.expected(catalogue, plan.model_copy(update={"assignments": {}}), find_engine(ENGINE))


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a folder that `export` wrote, in `dtype`. Raises ModelError."""
    return models.load_plain(str(folder), dtype)


def is_one(folder: Path) -> bool:
    """Whether the folder holds a plan, and a model that is not packed."""
    try:
        config = json.loads((folder / "config.json").read_text())
        plain = isinstance(config, dict) and config.keys().isdisjoint(("quantization_config", "quantization"))
        return plain and (folder / PLAN_FILE).is_file() and not (folder / QUANTO_MAP).is_file()
    except (OSError, ValueError):
        return False
