"""Holds a whole plan in a model for a while: quantized weights, and rounded inputs where formats ask for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from advisor.activations import rounded_inputs
from advisor.formats.quantize import Quantizer, fake_quantize
from advisor.types import Format, Layer
from advisor.weights import holding, read_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def plan_in_place(
    model: PreTrainedModel, chosen: Iterable[tuple[Layer, Format]], quantizer: Quantizer = fake_quantize
) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, Format]]]:
    """Quantize every chosen layer within the block.

    Gives the original weights by layer, which return to their places at the end, and the layers whose inputs are
    rounded.
    """
    chosen = tuple(chosen)
    originals: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        rounding = stack.enter_context(rounded_inputs(model, chosen))
        for layer, fmt in chosen:
            originals[layer.name] = read_weight(model, layer)
            quantized = quantizer(originals[layer.name], fmt, layer.input_axis)
            stack.enter_context(holding(model, layer, quantized))
        yield originals, rounding
