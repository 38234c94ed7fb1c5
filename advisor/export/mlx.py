"""MLX export, as mlx-lm loads it: affine codes with a scale and a bias for every group, each module with its own bits.

Layout of `mlx.core.quantize`, mode affine: a value is code * scale + bias; codes are unsigned and lie densely in 32-bit
words along the row, the first in the lowest bits. Codes and scales are ours (`formats.quantize`), the codes moved up by
half their range. Nothing of the package is needed to write or to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from advisor.apply import refuse_rounded_inputs
from advisor.errors import ModelError, PlanError
from advisor.export import module_files
from advisor.export.bits import pack_rows, unpack_rows
from advisor.export.planned import expected_by, simulate_by
from advisor.export.safetensors_files import AGAIN, Header
from advisor.export_checks import refuse_unfit
from advisor.formats.quantize import Codes
from advisor.knowledge import find_engine, find_format, formats, stored_format
from advisor.stored import Stored
from advisor.types import Catalogue, Format, Layer, Plan, Role

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ENGINE = "mlx"
ROUNDED = "its zero points times their scales, which MLX stores as biases, are rounded to 16 bits"
_PARTS = ("weight", "scales", "biases")
# Whose exports mlx-lm 0.32.2 was seen to compute as transformers does.
_TRIED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3")

expected = expected_by(ENGINE)


def check(model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> None:
    """Raises PlanError for a plan that these files cannot hold; looks at no weights."""
    refuse_rounded_inputs(plan.assignments, "an MLX export")
    refuse_unfit(catalogue, plan.assignments, find_engine(ENGINE))
    layers = module_files.packed_layers(catalogue, plan)
    fused = [layer.name for layer in layers if layer.role is Role.EXPERT]
    if fused:
        raise PlanError(
            f"{fused[0]}: mlx-lm stacks experts under names of its own, which this export does not write; leave "
            "experts in the model's dtype, or apply the plan another way."
        )
    if model.config.model_type not in _TRIED:
        raise PlanError(
            f"{catalogue.architecture}: only {', '.join(_TRIED)} models were tried in mlx-lm, and another one might "
            "compute something else there; apply the plan another way."
        )
    module_files.refuse_modules(model, layers, "MLX", embeddings=True)


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    catalogue: Catalogue,
    plan: Plan,
    folder: Path,
    codes: Mapping[str, Codes] = MappingProxyType({}),
) -> dict[str, str]:
    """Write the folder; `model`, in the dtype to store, stays as it is.

    Returns:
        Layer name -> what is other than it was measured: zero points of asymmetric formats.

    Raises:
        PlanError: MLX lacks a format or packs no such module. StorageError: `folder` is taken or cannot be written.
    """
    check(model, catalogue, plan)
    layers = module_files.packed_layers(catalogue, plan)
    state, names = module_files.state_of(model, catalogue, layers, _packed, codes)
    module_files.write(folder, model, tokenizer, plan, state, names, _described(model, layers) | _rope(model))
    return {layer.name: ROUNDED for layer, fmt in layers.items() if not fmt.symmetric}


def _described(model: PreTrainedModel, layers: dict[Layer, Format]) -> dict[str, Any]:
    """What config.json says: every module by name, since one without an entry would get the first two numbers."""
    if not layers:
        return {}
    by_name: dict[str, Any] = {
        layer.name: {"group_size": _group_size(fmt), "bits": fmt.bits} for layer, fmt in layers.items()
    }
    kept = [name for name in module_files.kept_linear(model, layers) if name not in by_name]
    return {"quantization": {**next(iter(by_name.values())), **by_name, **dict.fromkeys(kept, False)}}


def _rope(model: PreTrainedModel) -> dict[str, Any]:
    """Rotary embeddings under the names of older transformers, which mlx-lm reads: it knows no `rope_parameters`."""
    found = dict(getattr(model.config, "rope_parameters", None) or {})
    named = {key: found.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in found}
    return named | {"rope_scaling": None if found.get("rope_type", "default") == "default" else found}


def _group_size(fmt: Format) -> int:
    return stored_format(find_engine(ENGINE), fmt).group_size


def _packed(codes: Codes, fmt: Format) -> dict[str, torch.Tensor]:
    half = 2 ** (fmt.bits - 1)
    values = codes.values.flatten(1).to(torch.int32) + half
    zero = half if codes.zero_point is None else codes.zero_point.float() + half
    scale, bias = codes.scale, -zero * codes.scale.float()
    # MLX has no scales of whole channels: every group of a channel gets the channel's own.
    groups = values.shape[1] // _group_size(fmt) // scale.shape[1]
    scale, bias = (part.flatten(1).repeat_interleave(groups, 1).to(scale.dtype) for part in (scale, bias))
    return {"weight": pack_rows(values, fmt.bits), "scales": scale, "biases": bias}


def _values(parts: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
    """The fp32 values of a packed module, `(rows, features)`."""
    scales, biases = parts["scales"].float().unsqueeze(-1), parts["biases"].float().unsqueeze(-1)
    features = parts["weight"].shape[1] * 32 // bits
    codes = unpack_rows(parts["weight"], bits, features).float().view(*scales.shape[:2], -1)
    return (codes * scales + biases).flatten(1)


# ------------------------------------------------------------------------------------------- read back

simulate = simulate_by(lambda codes, fmt: _values(_packed(codes, fmt), fmt.bits))


def is_one(folder: Path) -> bool:
    """Whether the folder holds a model that is packed for MLX; never raises."""
    try:
        return isinstance(module_files.config_of(folder).get("quantization"), dict)
    except ModelError:
        return False


def read(folder: Path) -> dict[str, Stored]:
    """Layer name -> what the folder's safetensors hold of it, from the files alone. Raises ModelError."""
    by_name = _described_modules(folder)
    return module_files.read(folder, _PARTS, lambda name, parts: _stored(name, parts, by_name.get(name)), by_name)


def _described_modules(folder: Path) -> dict[str, dict[str, int]]:
    """Module -> its bits and group size, as config.json has them, for every module that is quantized."""
    described = module_files.config_of(folder).get("quantization") or {}
    return {name: found for name, found in described.items() if isinstance(found, dict)}


def _stored(name: str, parts: dict[str, Header], described: dict[str, int] | None) -> Stored:
    if described is None:
        raise ModelError(f"{name}: config.json does not say how it is packed; {AGAIN}.")
    bits, group = described.get("bits", 0), described.get("group_size", 0)
    engine = find_engine(ENGINE)
    fitting = [
        own
        for own in engine.formats
        if (formats()[own].kind, find_format(own).bits, stored_format(engine, find_format(own)).group_size)
        == ("integer", bits, group)
    ]
    if not fitting:
        raise ModelError(f"{name}: config.json says {bits} bits in groups of {group}, which is no format of ours.")
    rows, words = parts["weight"].shape if "weight" in parts else (0, 0)
    scales = ("BF16", "F16"), (rows, words * 32 // bits // group)
    module_files.refuse_other_tensors(
        name, parts, {"weight": (("U32",), (rows, words)), "scales": scales, "biases": scales}
    )
    return Stored(fitting[0], group, sum(part.bytes for part in parts.values()))


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of such a folder in transformers, its weights unpacked to `dtype`: mlx-lm has models of its own.

    Raises ModelError: the folder is not whole.
    """
    read(folder)
    bits = {name: described["bits"] for name, described in _described_modules(folder).items()}
    return module_files.load_unpacked(folder, dtype, bits, _PARTS, _values)
