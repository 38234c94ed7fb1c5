"""Matrix products on a processor's bf16 units: with fp32's accuracy where it can be had, in bf16 where it suffices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

_ERROR_GROWTH = 8.0  # against plain fp32; a library that rounds its inputs to bf16 is 1,000 times off


@contextmanager
def fast_fp32_matmul(device: torch.device) -> Iterator[None]:
    """Let fp32 products on a CPU run on bf16 units within the block, if that was tried and found accurate.

    oneDNN splits fp32 operands into bf16 parts: twice as fast where the processor has such units. Nothing changes on
    accelerators, whose reduced precisions do lose accuracy.
    """
    if device.type != "cpu" or not _accurate():
        yield
        return
    with _precision("medium"):
        yield


@contextmanager
def bf16_where_fast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Let an fp32 model on a CPU with bf16 units compute its matrix products in bf16 within the block."""
    with torch.autocast(
        "cpu", torch.bfloat16, enabled=device.type == "cpu" and dtype == torch.float32 and _has_units()
    ):
        yield


def _has_units() -> bool:
    # Without them bf16 is emulated, and slower than fp32. torch has no public question for this.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in asked if hasattr(torch.cpu, name))


@contextmanager
def _precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def _accurate() -> bool:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 512, generator=generator) for _ in range(2))
    true = left.double() @ right.double().T
    errors = []
    for name in ("highest", "medium"):
        with _precision(name):
            errors.append((left @ right.T - true).abs().max().item())
    plain, fast = errors
    return fast <= _ERROR_GROWTH * plain
