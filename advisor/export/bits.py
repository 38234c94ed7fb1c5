"""Codes of a few bits in 32-bit words, densely, the first in the lowest bits: how MLX and GPTQ lay them out."""

from __future__ import annotations

import math

import torch

_WORD = 32


def pack_rows(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """`(rows, features)` unsigned codes to `(rows, features * bits / 32)` uint32, in whole words."""
    rows, features = codes.shape
    count, words = _period(bits)
    codes = codes.to(torch.int64).view(rows, features // count, count)
    packed = torch.zeros(rows, features // count, words, dtype=torch.int64, device=codes.device)
    for index in range(count):
        word, shift = divmod(index * bits, _WORD)
        packed[..., word] |= codes[..., index] << shift
        if shift + bits > _WORD:  # the rest begins the next word
            packed[..., word + 1] |= codes[..., index] >> (_WORD - shift)
    return (packed & 0xFFFFFFFF).flatten(1).to(torch.uint32)


def unpack_rows(packed: torch.Tensor, bits: int, features: int) -> torch.Tensor:
    """`(rows, words)` 32-bit words to `(rows, features)` unsigned codes, int32: the inverse of `pack_rows`."""
    count, words = _period(bits)
    packed = packed.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    packed = packed.view(packed.shape[0], -1, words)
    codes = []
    for index in range(count):
        word, shift = divmod(index * bits, _WORD)
        code = packed[..., word] >> shift
        if shift + bits > _WORD:
            code = code | packed[..., word + 1] << (_WORD - shift)
        codes.append(code & (2**bits - 1))
    return torch.stack(codes, -1).flatten(1)[:, :features].to(torch.int32)


def _period(bits: int) -> tuple[int, int]:
    """How many codes fill how many words exactly."""
    common = math.lcm(bits, _WORD)
    return common // bits, common // _WORD
