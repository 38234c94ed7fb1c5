"""Rounds what goes into linear modules while a model runs, as engines do for formats that quantize activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from advisor.formats.quantize import fake_quantize_input
from advisor.types import Format, Layer


@contextmanager
def rounded_inputs(model: nn.Module, layers: Iterable[tuple[Layer, Format]]) -> Iterator[dict[str, Format]]:
    """Round the inputs of these layers' modules within the block, where their formats say so.

    Gives layer name -> format of those that are rounded; a layer taken out of it computes with its input as it is.
    """
    rounded = {layer.name: (layer, fmt) for layer, fmt in layers if fmt.quantizes_activations}
    formats = {name: fmt for name, (_, fmt) in rounded.items()}
    with ExitStack() as hooks:
        for name, (layer, _) in rounded.items():
            for module in (name, *layer.tied_names):
                hook = model.get_submodule(module).register_forward_pre_hook(partial(_round, formats, name))
                hooks.callback(hook.remove)
        yield formats


def _round(formats: dict[str, Format], name: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if name not in formats:
        return None
    inputs: torch.Tensor = args[0]
    rounded = fake_quantize_input(inputs, formats[name])
    if inputs.requires_grad and torch.is_grad_enabled():
        # Straight through (Bengio et al. 2013): the derivative of rounding itself is zero almost everywhere.
        rounded = inputs + (rounded - inputs).detach()
    return rounded, *args[1:]
