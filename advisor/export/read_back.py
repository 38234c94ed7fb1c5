"""Holds an export against its plan: what its files store, the values that these stand for, and what they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import torch

from advisor import models, texts, verify
from advisor.activations import rounded_inputs
from advisor.apply import quantized_layers
from advisor.errors import ModelError
from advisor.export import bitsandbytes
from advisor.export.calibrated import put
from advisor.export.digests import changed
from advisor.export.registry import module_of
from advisor.formats.quantize import Codes, quantize
from advisor.knowledge import find_engine
from advisor.planner.planning import check_plan_fits
from advisor.scoring import kl_of
from advisor.types import Catalogue, ExportRecord, Layer, Plan, Progress, Role, Target, Verification
from advisor.weights import get_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEQUENCES, LENGTH = 2, 64
# Of the norm of a row of weights. One rounding to BF16 moves no row of a real matrix by more; another scale, zero point
# or code does.
ROW_TOLERANCE = 0.01
# Where scales of 32 bits are fitted to values in BF16, some of these fall on the other side of a rounding.
ROW_TOLERANCE_FITTED = 0.02
# Nats per token, the mean over the sequences. BF16 instead of FP32 costs 0.001 on a small model.
KL_TOLERANCE = 0.01
# Where inputs are rounded: engines differ by half a step in the scale of a token, which moves every input near a
# rounding boundary; bitsandbytes rounds them without the plan's asking, for 0.022 on a small model.
KL_TOLERANCE_ROUNDED = 0.05
_NAMED = 3


def read_back(
    folder: Path,
    plan: Plan,
    target: Target,
    record: ExportRecord | None,
    report: Callable[[Progress], None],
    codes: Mapping[str, Codes] = MappingProxyType({}),
    weights: Mapping[str, torch.Tensor] = MappingProxyType({}),
    trained: bool = False,
) -> Verification:
    """Compare an export with its plan; one model is in memory at a time.

    First what the files say of every tensor, then the de-quantized values of every layer with those of the simulated
    plan, then the probabilities of both models on a few sequences of text.

    Args:
        codes: layer name -> what was written in place of the nearest codes; weights: parameter name -> what was written
            in place of the model's own.
        trained: scales and norms of the nearest codes were trained, and are known from nothing but the files.

    Raises:
        ModelError: anything is other than it was planned, with the names of the tensors. PlanError: the plan is for
            another model.
    """
    export = module_of(target)
    report(Progress(stage="verify", message="Reading the files back"))
    _refuse(changed(folder, record) if record else [])
    stored = export.read(folder)
    loaded = models.load(plan.model.source, report, dtype="own")
    catalogue, own, device = loaded.catalogue, loaded.model.dtype, loaded.device
    check_plan_fits(plan, catalogue)
    wanted = export.expected(loaded.model, catalogue, plan)
    _refuse(verify.compare(wanted, stored, find_engine(target.stored_by)))

    report(Progress(stage="verify", message="Comparing with the simulated plan"))
    length = min(LENGTH, catalogue.max_context)
    windows = texts.token_windows("python-docs", loaded.tokenizer, "evaluation", SEQUENCES, length)
    compute = models.pick_dtype("auto", device, own)
    rounded = list(quantized_layers(catalogue, plan.assignments)) if target.activations else []
    if trained:
        codes, weights = _trained(export.load(folder, torch.float32), loaded.model, catalogue, plan)
    put(loaded.model, {}, weights)
    export.simulate(loaded.model, catalogue, plan, folder, **({"codes": codes} if codes else {}))
    planned_rows = _rows_of(loaded.model, catalogue.layers)
    with rounded_inputs(loaded.model, rounded):
        planned = _log_probs(loaded.model.to(compute), windows)
    del loaded

    model = export.load(folder, own).to(device)
    row_tolerance = ROW_TOLERANCE_FITTED if trained else ROW_TOLERANCE
    furthest = _refuse_other_values(planned_rows, _rows_of(model, catalogue.layers), row_tolerance)
    if compute != own:
        del model
        model = export.load(folder, compute).to(device)
    kl = kl_of(planned, _log_probs(model, windows)).mean().item()
    rounds_inputs = target.rounds_inputs or any(fmt.quantizes_activations for _, fmt in rounded)
    tolerance = KL_TOLERANCE_ROUNDED if rounds_inputs else KL_TOLERANCE
    if not kl <= tolerance:
        raise ModelError(
            f"The model that was read back computes something else than the simulated plan (KL {kl:.3g} nats per "
            f"token, {tolerance:g} is tolerated), although its weights are as planned: its configuration was changed, "
            "or a package reads it otherwise; apply the plan again."
        )
    return Verification(
        layers=len(stored),
        bytes=sum(layer.bytes for layer in stored.values()),
        largest_row_difference=furthest,
        row_tolerance=row_tolerance,
        tokens=windows.numel(),
        kl=kl,
        kl_tolerance=tolerance,
    )


def _trained(
    written: PreTrainedModel, original: PreTrainedModel, catalogue: Catalogue, plan: Plan
) -> tuple[dict[str, Codes], dict[str, torch.Tensor]]:
    """The plan's nearest codes with the scales that fit the written values best, and the written norms.

    A code, a zero point or a format that is not the plan's leaves values that no scale fits; scales and norms
    themselves are held by the digests alone.
    """
    codes = {}
    for layer, fmt in quantized_layers(catalogue, plan.assignments):
        if len(layer.shape) == 2 and fmt.quantized:
            weight = get_weight(original, layer).data.movedim(layer.input_axis, -1)
            values = _values(written, layer).to(weight.device).movedim(layer.input_axis, -1)
            codes[layer.name] = _fitted(quantize(weight, fmt), values)
    norms = [layer for layer in catalogue.layers if layer.role is Role.NORM]
    return codes, {layer.parameter: written.get_parameter(layer.parameter).data for layer in norms}


def _fitted(codes: Codes, values: torch.Tensor) -> Codes:
    """The codes with the slopes of `(rows, features)` values over them for scales, as they are stored.

    A constant beside the slope takes up what some files round in the product of scale and zero point.
    """
    levels = replace(codes, scale=torch.ones_like(codes.scale)).dequantize().view(codes.values.shape)
    apart = levels - levels.mean(-1, keepdim=True)
    products = (apart * values.float().reshape(levels.shape)).sum(-1, keepdim=True)
    squares = apart.square().sum(-1, keepdim=True)
    slopes = torch.where(squares > 0, products / squares, codes.scale.float())
    return replace(codes, scale=slopes.to(codes.scale.dtype))


class _Rows(NamedTuple):
    """A layer's weights, small enough to keep: per row two projections `(rows, 2)` and the norm `(rows,)`."""

    projections: torch.Tensor
    norms: torch.Tensor


def _rows_of(model: PreTrainedModel, layers: Iterable[Layer]) -> dict[str, _Rows]:
    """Layer name -> its rows; a vector's values are rows of one. Raises ModelError where the model lacks a layer."""
    try:
        return {layer.name: _projected(_values(model, layer).to(torch.float32)) for layer in layers}
    except AttributeError as error:
        raise ModelError(
            f"The model that was read back lacks layers of the plan ({error}): its configuration was changed; apply "
            "the plan again."
        ) from error


def _values(model: PreTrainedModel, layer: Layer) -> torch.Tensor:
    """The values of a layer that a loaded export may hold packed."""
    module = model.get_submodule(layer.parameter.rpartition(".")[0])
    if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):  # their codes are plain tensors
        return bitsandbytes.weight_of(model, layer).to(model.dtype)  # as the simulated plan's values are
    weight = model.get_parameter(layer.parameter).data
    return weight if type(weight) in (torch.Tensor, torch.nn.Parameter) else weight.dequantize()


def _projected(values: torch.Tensor) -> _Rows:
    rows = values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
    random = torch.Generator().manual_seed(0)
    # Of random sign and size: any two weights that change places, and any one that changes, move both sums.
    directions = torch.randn(rows.shape[1], 2, generator=random).to(rows)
    directions = directions.sign() * (0.5 + directions.abs())
    return _Rows((rows @ directions).cpu(), rows.norm(dim=1).cpu())


def _refuse_other_values(planned: dict[str, _Rows], found: dict[str, _Rows], tolerance: float) -> float:
    """The largest difference of a row, of its norm; raises ModelError where one is larger than tolerated."""
    furthest = {name: _difference(planned[name], found[name]) for name in planned}
    _refuse(
        [
            f"{name}: its values are not those of the plan (a row differs by {100 * far:.3g} % of its norm)."
            for name, far in furthest.items()
            if not far <= tolerance
        ]
    )
    return max(furthest.values())


def _difference(planned: _Rows, found: _Rows) -> float:
    if planned.projections.shape != found.projections.shape:
        return float("inf")
    apart = (planned.projections - found.projections).abs().amax(1)
    return (apart / planned.norms.clamp_min(torch.finfo(torch.float32).tiny)).max().item()


@torch.no_grad()
def _log_probs(model: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
    """`(sequences, length)` ids -> `(tokens, vocabulary)`, fp32 on the CPU."""
    texts.check_vocabulary(windows, model.get_input_embeddings().weight.shape[0])
    logits = model(input_ids=windows.to(model.device), use_cache=False).logits
    return logits.flatten(0, 1).float().log_softmax(-1).cpu()


def _refuse(found: list[str]) -> None:
    if found:
        more = f" ({len(found) - _NAMED:,} more differ.)" if len(found) > _NAMED else ""
        raise ModelError(f"The files are not what was planned: {' '.join(found[:_NAMED])}{more} Apply the plan again.")
