"""Simulated export: a plain safetensors folder of de-quantized weights, which transformers loads as any other model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from advisor.apply import quantized_layers, refuse_rounded_inputs, simulate
from advisor.folders import PLAN_FILE, new_folder, save_model
from advisor.types import Catalogue, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, plan: Plan, folder: Path
) -> dict[str, str]:
    """Write the folder; `model`, in the dtype to store, is changed on the way.

    Returns:
        An empty mapping: every layer of the plan is in the files, as values.

    Raises:
        PlanError: a format rounds activations.
    """
    refuse_rounded_inputs(plan.assignments, "a simulated export")
    simulate(model, quantized_layers(catalogue, plan.assignments))
    with new_folder(folder) as target:
        save_model(model, tokenizer, target)
        (target / PLAN_FILE).write_text(plan.model_dump_json(indent=2))
    return {}
