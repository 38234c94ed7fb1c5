"""Round-to-nearest quantizers, one pure function per kind of format: weight in, weight out, nothing changed on the way.

`fake_quantize` gives the values that the packed weight stands for, so the profiler, the simulated export and the packed
model all see the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from advisor.types import Format

# (weight, format, input axis) -> the values that the stored weight stands for, in the weight's shape and dtype.
Quantizer = Callable[[torch.Tensor, Format, int], torch.Tensor]

# Rows are quantized in slices, so the fp32 working copy of a large embedding stays small.
_SLICE_ELEMENTS = 1 << 24

_INT8_MAX = 127
_FP8_MAX = 448.0  # largest finite e4m3 value: Micikevicius et al. 2022, "FP8 Formats for Deep Learning", table 1

# Quantiles of N(0, 1) scaled to [-1, 1] with an exact zero: Dettmers et al. 2023, "QLoRA", appendix E.
NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

_PLAIN_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Codes:
    """A quantized matrix of `rows x features`, not yet packed.

    Attributes:
        values: codes, `(rows, groups, group size)`: int8 in [-2^(bits-1), 2^(bits-1)-1], uint8 indices of nf4, or fp8.
        scale: `(rows, groups, 1)` in the dtype that is stored.
        zero_point: `(rows, groups, 1)` int8, or None for symmetric formats.
    """

    values: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None

    def dequantize(self) -> torch.Tensor:
        """The fp32 values that the codes stand for, `(rows, features)`."""
        if self.values.dtype == torch.uint8:
            levels = torch.tensor(NF4_LEVELS, device=self.values.device)[self.values.int()]
        else:
            levels = self.values.float()
            if self.zero_point is not None:
                levels = levels - self.zero_point.float()
        return (levels * self.scale.float()).flatten(1)


def fake_quantize(weight: torch.Tensor, fmt: Format, input_axis: int = -1) -> torch.Tensor:
    """`weight` rounded to what `fmt` can represent, in the shape, dtype and device of `weight`.

    Args:
        weight: any shape; 3-D expert weights are treated as a stack of matrices.
        input_axis: the axis along which groups run (0 for GPT-2's `Conv1D`).

    Raises:
        ValueError: the input features do not split into whole groups.
    """
    if not fmt.quantized:
        return weight.to(_PLAIN_DTYPES[fmt.name]).to(weight.dtype)
    rows_last = weight.detach().movedim(input_axis, -1)
    result = torch.empty(rows_last.shape, dtype=weight.dtype, device=weight.device)
    matrix, target = rows_last.reshape(-1, rows_last.shape[-1]), result.view(-1, rows_last.shape[-1])
    for rows in _slices(matrix):
        target[rows] = quantize(matrix[rows], fmt).dequantize().to(weight.dtype)
    return result.movedim(-1, input_axis)


def quantize(matrix: torch.Tensor, fmt: Format) -> Codes:
    """Quantize a `(rows, features)` matrix, input features last.

    Scales are computed in fp32, rounded to the 16 or 32 bits that are stored, and only then used to round the weights:
    the codes fit the scale that the engine will multiply with.

    Raises:
        ValueError: `fmt` is a plain dtype, or the features do not split into whole groups.
    """
    if not fmt.quantized:
        raise ValueError(f"{fmt.name} is a plain dtype: it has no codes")
    features = matrix.shape[1]
    group = fmt.group_size or features
    if features % group:
        raise ValueError(f"{features} input features do not split into groups of {group} ({fmt.name})")
    values = matrix.float().view(matrix.shape[0], features // group, group)
    store = torch.float32 if fmt.scale_bits == 32 else torch.bfloat16  # whatever the weights' own dtype is
    if fmt.kind == "float_scaled":
        return _fp8(values, store)
    if fmt.kind == "codebook":
        return _nf4(values, store)
    return _symmetric(values, fmt.bits, store) if fmt.symmetric else _asymmetric(values, fmt.bits, store)


def fake_quantize_input(inputs: torch.Tensor, fmt: Format) -> torch.Tensor:
    """The input `(..., features)` of a weight in `fmt`, as it is rounded while the model runs; in its own dtype.

    Every token has its own scale, kept in fp32: the token's largest magnitude falls on the largest code (127 or 448),
    as vLLM's dynamic per-token kernels have it. Formats that leave activations alone give the very same tensor.
    """
    if not fmt.quantizes_activations:
        return inputs
    values = inputs.float()
    largest = _FP8_MAX if fmt.kind == "float_scaled" else _INT8_MAX
    # A token of zeros would divide by zero; any positive scale represents it exactly.
    scale = (values.abs().amax(-1, keepdim=True) / largest).clamp_min(torch.finfo(torch.float32).tiny)
    codes = (values / scale).clamp(-largest, largest)
    rounded = codes.to(torch.float8_e4m3fn).float() if fmt.kind == "float_scaled" else codes.round()
    return (rounded * scale).to(inputs.dtype)


def _symmetric(values: torch.Tensor, bits: int, store: torch.dtype) -> Codes:
    # The full range of 2^bits - 1 steps spans [-absmax, absmax], as compressed-tensors defines it: the largest weight
    # is clipped by half a step, and every other one gets a finer step than with absmax / (2^(bits-1) - 1).
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = _stored(values.abs().amax(-1, keepdim=True) / ((high - low) / 2), store)
    codes = (values / scale.float()).round_().clamp_(low, high).to(torch.int8)
    return Codes(codes, scale, None)


def _asymmetric(values: torch.Tensor, bits: int, store: torch.dtype) -> Codes:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    # Zero must be representable, so the range always includes it.
    smallest = values.amin(-1, keepdim=True).clamp_max(0)
    largest = values.amax(-1, keepdim=True).clamp_min(0)
    scale = _stored((largest - smallest) / (high - low), store)
    zero = (low - smallest / scale.float()).round_().clamp_(low, high)
    codes = (values / scale.float() + zero).round_().clamp_(low, high).to(torch.int8)
    return Codes(codes, scale, zero.to(torch.int8))


def _fp8(values: torch.Tensor, store: torch.dtype) -> Codes:
    scale = _stored(values.abs().amax(-1, keepdim=True) / _FP8_MAX, store)
    codes = (values / scale.float()).clamp_(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)
    return Codes(codes, scale, None)


def _nf4(values: torch.Tensor, store: torch.dtype) -> Codes:
    levels = torch.tensor(NF4_LEVELS, device=values.device)
    scale = _stored(values.abs().amax(-1, keepdim=True), store)
    codes = torch.bucketize((values / scale).contiguous(), (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    return Codes(codes, scale, None)


def _stored(scale: torch.Tensor, store: torch.dtype) -> torch.Tensor:
    # An all-zero group would divide by zero; any positive scale represents it exactly.
    return scale.to(store).clamp_min(torch.finfo(store).tiny)


def _slices(matrix: torch.Tensor) -> Iterator[slice]:
    step = max(1, _SLICE_ELEMENTS // matrix.shape[1])
    return (slice(start, start + step) for start in range(0, matrix.shape[0], step))
