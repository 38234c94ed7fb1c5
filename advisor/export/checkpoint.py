"""A model's tensors by the names of its published checkpoint, and which of them are which layers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from advisor.export.safetensors_files import RENAMED
from advisor.types import Catalogue
from advisor.weights import get_weight

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Pieces = Mapping[str, dict[str, "torch.Tensor"]]


def pieces_of(model: PreTrainedModel, catalogue: Catalogue) -> Pieces:
    """Layer name -> its tensors by their names in the published checkpoint: several for fused experts."""
    from transformers.core_model_loading import revert_weight_conversion

    return {
        layer.name: revert_weight_conversion(model, {layer.parameter: get_weight(model, layer).data})
        for layer in catalogue.layers
    }


def buffers_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a checkpoint holds beside parameters, by its names."""
    from transformers.core_model_loading import revert_weight_conversion

    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return revert_weight_conversion(model, {n: t for n, t in model.state_dict().items() if n not in parameters})


def module_of(tensor_name: str) -> str:
    """A weight is named by its module, everything else by itself, as layers of a catalogue are."""
    return tensor_name.removesuffix(".weight")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with memory of its own: a slice of a fused one would be taken for one that is shared with others."""
    owns = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor.contiguous() if owns else tensor.clone().contiguous()


def renamed(pieces: Pieces, buffers: Iterable[str]) -> dict[str, str]:
    """What goes into the header of every file, so that layers are found again without the model."""
    names = {module: layer for layer, found in pieces.items() for module in map(module_of, found) if module != layer}
    return {RENAMED: json.dumps(names | dict.fromkeys(buffers, ""))}
