"""What most targets make alike of a plan: what their files must hold, and the values that these stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from advisor import verify
from advisor.apply import quantized_layers
from advisor.apply import simulate as simulate_rounding
from advisor.formats.quantize import Codes, quantize
from advisor.knowledge import find_engine
from advisor.stored import Stored
from advisor.types import Catalogue, Format, Plan
from advisor.weights import get_weight

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Expected = Callable[["PreTrainedModel", Catalogue, Plan], dict[str, Stored]]


def expected_by(engine: str) -> Expected:
    """`expected` of a target whose files hold every layer as this engine stores it."""

    def expected(model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> dict[str, Stored]:
        """Layer name -> what the files must hold."""
        return verify.expected(catalogue, plan, find_engine(engine))

    return expected


def simulate(
    model: PreTrainedModel,
    catalogue: Catalogue,
    plan: Plan,
    folder: Path,
    codes: Mapping[str, Codes] = MappingProxyType({}),
) -> None:
    """Give the model the values that the exported weights stand for; dtype and modules stay."""
    simulate_rounding(model, quantized_layers(catalogue, plan.assignments), codes)


def simulate_by(values: Callable[[Codes, Format], torch.Tensor]) -> Callable[..., None]:
    """`simulate` of a target whose files stand for other values than the codes do: what `values` says of them."""

    def simulate(
        model: PreTrainedModel,
        catalogue: Catalogue,
        plan: Plan,
        folder: Path,
        codes: Mapping[str, Codes] = MappingProxyType({}),
    ) -> None:
        """Give the model the values that the exported weights stand for; dtype and modules stay."""
        for layer, fmt in quantized_layers(catalogue, plan.assignments):
            parameter = get_weight(model, layer)
            own = codes[layer.name] if layer.name in codes else quantize(parameter.data, fmt)
            parameter.data = values(own, fmt).to(parameter.dtype)

    return simulate
