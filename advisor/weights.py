"""Reads and swaps single weights of a model, whether they lie in it or accelerate keeps them off the device."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from advisor.errors import ModelError
from advisor.types import Layer


def get_weight(model: nn.Module, layer: Layer) -> nn.Parameter:
    """The parameter behind a layer. Raises ModelError when the model has no such parameter of that shape."""
    try:
        weight = model.get_parameter(layer.parameter)
    except AttributeError:
        weight = None
    if weight is None or tuple(weight.shape) != layer.shape:
        raise ModelError(
            f"{type(model).__name__} has no weight {layer.parameter} of shape {layer.shape}; "
            "use the model that this catalogue was made from."
        )
    return weight


def read_weight(model: nn.Module, layer: Layer) -> torch.Tensor:
    """The values of a layer's weight on the device that computes. Raises ModelError like `get_weight`."""
    weight = get_weight(model, layer)
    if weight.device.type != "meta":
        return weight.data
    module, key = _place(model, layer.parameter)
    return _offload_hook(module).weights_map[key].to(device_of(model))


@contextmanager
def holding(model: nn.Module, layer: Layer, values: torch.Tensor) -> Iterator[None]:
    """Let a layer, and what is tied to it, hold `values` for a while; pointers move, nothing is copied."""
    weight = get_weight(model, layer)
    if weight.device.type != "meta":
        before, weight.data = weight.data, values
        try:
            yield
        finally:
            weight.data = before
        return
    own = layer.parameter
    ties = [f"{name}.{own.rpartition('.')[2]}" for name in layer.tied_names]
    with ExitStack() as stack:
        for parameter in (own, *ties):
            module, key = _place(model, parameter)
            stack.enter_context(_overlay(_offload_hook(module), {key: values}))
        yield


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes, wherever its weights wait."""
    for module in model.modules():
        device = getattr(_offload_hook(module), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(model.parameters()).device


def offloaded(model: nn.Module) -> bool:
    """Whether some weights are loaded only for the moment they are used."""
    return any(parameter.device.type == "meta" for parameter in model.parameters())


@contextmanager
def _overlay(hook: Any, values: dict[str, torch.Tensor]) -> Iterator[None]:
    before = hook.weights_map
    hook.weights_map = ChainMap(values, before)
    try:
        yield
    finally:
        hook.weights_map = before


def _place(model: nn.Module, parameter: str) -> tuple[nn.Module, str]:
    module, _, key = parameter.rpartition(".")
    return model.get_submodule(module), key


def _offload_hook(module: nn.Module) -> Any:
    """accelerate's hook on a module that moves its weights; None where there is none."""
    hook = getattr(module, "_hf_hook", None)
    several = getattr(hook, "hooks", (hook,))  # a SequentialHook holds a few
    return next((h for h in several if getattr(h, "weights_map", None) is not None), several[0] if several else None)
