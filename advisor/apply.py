"""Puts a plan onto a model in memory: really packed where optimum-quanto has the format, else simulated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import torch

from advisor.activations import rounded_inputs
from advisor.export_checks import refuse_rounded_inputs
from advisor.formats.quantize import Codes, fake_quantize, quantize
from advisor.knowledge import find_format
from advisor.types import Catalogue, Format, Layer
from advisor.weights import get_weight

if TYPE_CHECKING:
    from optimum.quanto import QLinear
    from transformers import PreTrainedModel


def quantized_layers(catalogue: Catalogue, assignments: Mapping[str, str]) -> Iterator[tuple[Layer, Format]]:
    """The assigned layers whose format changes their values, in the model's order."""
    for layer in catalogue.layers:
        fmt = find_format(assignments[layer.name]) if layer.name in assignments else None
        if fmt is not None and fmt.name != catalogue.dtype:
            yield layer, fmt


def simulate(
    model: PreTrainedModel,
    layers: Iterable[tuple[Layer, Format]],
    codes: Mapping[str, Codes] = MappingProxyType({}),
) -> None:
    """Replace each layer's weight by the values that its format can represent; dtype, modules and inputs stay.

    `codes`, by the names of layers, take the place of the nearest ones.
    """
    for layer, fmt in layers:
        parameter = get_weight(model, layer)
        if layer.name in codes:
            parameter.data = codes[layer.name].dequantize().movedim(-1, layer.input_axis).to(parameter.data)
        else:
            parameter.data = fake_quantize(parameter.data, fmt, layer.input_axis)


@contextmanager
def simulated(model: PreTrainedModel, catalogue: Catalogue, assignments: Mapping[str, str]) -> Iterator[None]:
    """The model as if quantized, for a while; its own weights are put back afterwards, even after an error.

    Inputs are rounded too where a format does so.
    """
    chosen = list(quantized_layers(catalogue, assignments))
    originals = [get_weight(model, layer).data for layer, _ in chosen]
    try:
        simulate(model, chosen)
        with rounded_inputs(model, chosen):
            yield
    finally:
        for (layer, _), original in zip(chosen, originals, strict=True):
            get_weight(model, layer).data = original


class Packing(NamedTuple):
    """Which layers optimum-quanto can hold, and for the others why not (layer name -> reason)."""

    packed: list[tuple[Layer, Format]]
    refused: dict[str, str]


def packing(model: PreTrainedModel, catalogue: Catalogue, assignments: Mapping[str, str]) -> Packing:
    """Sort the assigned layers into those that optimum-quanto packs and those that stay simulated; changes nothing."""
    found = Packing([], {})
    for layer, fmt in quantized_layers(catalogue, assignments):
        reason = _why_not_packed(model, layer, fmt)
        if reason:
            found.refused[layer.name] = reason
        else:
            found.packed.append((layer, fmt))
    return found


def pack_with_quanto(
    model: PreTrainedModel,
    catalogue: Catalogue,
    assignments: Mapping[str, str],
    codes: Mapping[str, Codes] = MappingProxyType({}),
) -> dict[str, str]:
    """Replace linear modules by optimum-quanto's with packed codes; what quanto cannot hold is simulated in place.

    The codes are ours (`formats.quantize`), the storage and the kernels quanto's, so the packed layer computes with the
    very values that the profiler measured.

    Args:
        codes: layer name -> what takes the place of the nearest codes.

    Returns:
        Layer name -> reason, for every layer that had to be simulated.

    Raises:
        PlanError: a format rounds activations, which neither of the two does.
    """
    refuse_rounded_inputs(assignments, "a model packed by optimum-quanto")
    packed, refused = packing(model, catalogue, assignments)
    simulated_layers = (pair for pair in quantized_layers(catalogue, assignments) if pair[0].name in refused)
    simulate(model, simulated_layers, codes)
    for layer, fmt in packed:
        linear = model.get_submodule(layer.name)
        own = codes[layer.name] if layer.name in codes else quantize(linear.weight.data, fmt)
        replace_module(model, layer.name, _packed_linear(linear, own, fmt))
    return refused


def _why_not_packed(model: PreTrainedModel, layer: Layer, fmt: Format) -> str:
    if quanto_type(fmt) is None:
        return f"optimum-quanto has no {fmt.name}"
    if not layer.parameter.endswith(".weight"):
        return "optimum-quanto packs nn.Linear only, this is a fused weight"
    module = model.get_submodule(layer.name)
    if type(module) is not torch.nn.Linear:
        return f"optimum-quanto packs nn.Linear only, this is {type(module).__name__}"
    return "the weight is shared with another layer" if layer.tied_names else ""


def quanto_type(fmt: Format) -> str | None:
    """The optimum-quanto type that stores `fmt`, or None."""
    if fmt.quantizes_activations:
        return None
    if fmt.kind == "float_scaled":
        return "qfloat8_e4m3fn"
    if fmt.kind != "integer" or fmt.bits not in (2, 4, 8) or (fmt.bits == 8) != (fmt.group_size is None):
        return None
    return f"qint{fmt.bits}"


def _packed_linear(linear: torch.nn.Linear, codes: Codes, fmt: Format) -> QLinear:
    from optimum.quanto import QLinear, WeightQBitsTensor, WeightQBytesTensor, qtypes

    use_torch_unpack()
    weight, kind = linear.weight.data, qtypes[quanto_type(fmt)]
    if kind.bits == 8:
        scale = codes.scale.flatten(1).to(weight.dtype)
        packed = WeightQBytesTensor(kind, 0, weight.size(), weight.stride(), codes.values.flatten(1), scale, None)
    else:
        values, scale, shift = _unsigned(codes, kind.bits, weight.dtype)
        packed = WeightQBitsTensor(kind, 0, fmt.group_size, weight.size(), weight.stride(), values, scale, shift)
    return quanto_linear(QLinear, linear, kind, packed)


def quanto_linear(cls: type[QLinear], linear: torch.nn.Linear, kind, packed: torch.Tensor) -> QLinear:
    """A frozen quanto module with `linear`'s shape and bias around a packed weight."""
    with torch.device("meta"):
        module = cls(linear.in_features, linear.out_features, bias=False, dtype=packed.dtype, weights=kind)
    for name in ("input_scale", "output_scale"):  # activations stay unquantized: quanto keeps ones here
        module.register_buffer(name, torch.ones((), dtype=packed.dtype))
    module.weight = torch.nn.Parameter(packed, requires_grad=False)
    module.bias = linear.bias
    return module.eval()


def _unsigned(codes: Codes, bits: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quanto stores unsigned codes and an unsigned zero point per group, symmetric formats included."""
    offset = 2 ** (bits - 1)
    zero = torch.zeros_like(codes.scale, dtype=torch.int8) if codes.zero_point is None else codes.zero_point
    values = (codes.values.to(torch.int16) + offset).to(torch.uint8)
    shift = (zero.to(torch.int16) + offset).to(torch.uint8)
    return values.flatten(0, 1), codes.scale.flatten(0, 1).to(dtype), shift.flatten(0, 1)


def use_torch_unpack() -> None:
    """Unpack quanto's codes on the CPU with torch.

    Quanto would compile a C++ extension on first use: 50 s, and a compiler that a user's machine may lack, for the same
    two shifts.
    """
    from types import SimpleNamespace

    from optimum.quanto.library.extensions.extension import get_extension

    get_extension("quanto_cpp")._lib = SimpleNamespace(unpack=_unpack)


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    mask = (1 << bits) - 1
    return torch.cat([(packed >> shift) & mask for shift in range(0, 8, bits)])


def replace_module(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
