"""torchao export for NVIDIA's devices: two 4-bit codes in a byte (`Int4Tensor`), all else as `torchao` has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from advisor.apply import refuse_rounded_inputs
from advisor.errors import PlanError
from advisor.export import module_files, torchao
from advisor.export.planned import expected_by, simulate_by
from advisor.export.torchao import load, read
from advisor.export_checks import refuse_unfit
from advisor.formats.quantize import Codes
from advisor.knowledge import find_engine
from advisor.types import Catalogue, Format, Plan

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig
    from torchao.utils import TorchAOBaseTensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["check", "expected", "export", "is_one", "load", "read", "simulate"]

ENGINE = "transformers-torchao"
ROUNDED = "its zero points times their scales, which torchao stores, are rounded to 16 bits"

expected = expected_by(ENGINE)


def check(model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> None:
    """Raises PlanError for a plan that these files cannot hold; looks at no weights."""
    refuse_rounded_inputs(plan.assignments, "a torchao export")
    refuse_unfit(catalogue, plan.assignments, find_engine(ENGINE))
    layers = module_files.packed_layers(catalogue, plan)
    four = [layer.name for layer, fmt in layers.items() if _four(fmt)]
    if four and catalogue.dtype != "bf16":
        raise PlanError(
            f"{four[0]} is planned in {plan.assignments[four[0]]}, but torchao's INT4 kernel computes in bf16 and "
            f"{catalogue.model.name} is in {catalogue.dtype}: plan it in INT8, or apply the plan another way."
        )
    module_files.refuse_modules(model, layers, "torchao")


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
        Layer name -> what is other than it was measured: zero points of asymmetric INT4.

    Raises:
        PlanError: torchao lacks a format or packs no such module. StorageError: `folder` is taken or cannot be written.
    """
    check(model, catalogue, plan)
    torchao.write(model, tokenizer, catalogue, plan, folder, codes, _packed, _config)
    layers = module_files.packed_layers(catalogue, plan)
    return {layer.name: ROUNDED for layer, fmt in layers.items() if not fmt.symmetric}


def _four(fmt: Format) -> bool:
    return fmt.kind == "integer" and fmt.bits == 4


def _packed(codes: Codes, fmt: Format, dtype: torch.dtype) -> TorchAOBaseTensor:
    from torchao.quantization import Int4Tensor

    if not _four(fmt):
        return torchao.packed(codes, fmt, dtype)
    values, scale = codes.values.flatten(1), codes.scale.flatten(1)
    zero = torch.zeros_like(scale) if codes.zero_point is None else -codes.zero_point.flatten(1) * scale
    # The low half of a byte holds the first of two codes; torchao keeps a column of scales for each row of weights.
    pairs = (values[:, ::2] & 15) | (values[:, 1::2] << 4)
    return Int4Tensor(pairs, scale.T.contiguous(), zero.T.contiguous(), [1, fmt.group_size], values.shape)


def _config(fmt: Format) -> AOBaseConfig:
    from torchao.quantization import Int4WeightOnlyConfig

    return Int4WeightOnlyConfig(group_size=fmt.group_size) if _four(fmt) else torchao.config(fmt)


def _values(codes: Codes, fmt: Format) -> torch.Tensor:
    """The fp32 values that torchao's tensor stands for, `(rows, features)`."""
    return torchao.nibbles(_packed(codes, fmt, torch.bfloat16)) if _four(fmt) else codes.dequantize()


simulate = simulate_by(_values)


def is_one(folder: Path) -> bool:
    """Whether the folder holds a model of torchao's tensors; without INT4 it is the same as `torchao` writes."""
    return module_files.has_method(folder, "torchao")
