"""Counts every byte that a format stores; formats themselves are rows of `profiles/formats.toml`. No torch."""

from __future__ import annotations

import math

from advisor.types import Format, Layer, Role

_WORD_BITS = 32


def packed_bytes(fmt: Format, layer: Layer) -> int:
    """Bytes of one weight stored in `fmt`: codes, scales, zero points and the padding between them.

    The layout is that of compressed-tensors' `pack-quantized`: the codes of one row (one output channel) are packed
    densely into 32-bit words, so a row is padded to the next word; zero points are packed the same way along the
    output channels, one column per group. For nf4 it is bitsandbytes' size without double quantization: 4-bit codes
    and one 32-bit absmax per block.
    """
    rows, features = layer.matrix_shape
    if not fmt.quantized:
        return rows * features * fmt.bits // 8
    groups = groups_per_row(fmt, features)
    codes = rows * _words(features * fmt.bits) * 4
    scales = rows * groups * fmt.scale_bits // 8
    return codes + scales + _zero_point_bytes(fmt, layer, groups)


def groups_per_row(fmt: Format, features: int) -> int:
    """How many scales one row of `features` weights has."""
    return 1 if fmt.group_size is None else math.ceil(features / fmt.group_size)


def divides(fmt: Format, layer: Layer) -> bool:
    """Whether the layer's input features split into whole groups."""
    return fmt.group_size is None or layer.matrix_shape[1] % fmt.group_size == 0


def fits(fmt: Format, layer: Layer) -> bool:
    """Whether the layer can be in this format at all: whole groups, and an input where activations are rounded."""
    return divides(fmt, layer) and (multiplies_input(layer) or not fmt.quantizes_activations)


def multiplies_input(layer: Layer) -> bool:
    """Whether a module of its own multiplies the weight with its input.

    An embedding looks rows up, and a fused weight (experts) is used in the middle of a larger computation.
    """
    return layer.role is not Role.EMBEDDING and layer.parameter == f"{layer.name}.weight"


def _zero_point_bytes(fmt: Format, layer: Layer, groups: int) -> int:
    # Each matrix of a fused 3-D expert weight is packed on its own, so each is padded on its own.
    matrices = layer.shape[0] if len(layer.shape) == 3 else 1
    rows = layer.matrix_shape[0] // matrices
    return matrices * groups * _words(rows * fmt.zero_point_bits) * 4


def _words(bits: int) -> int:
    return math.ceil(bits / _WORD_BITS)
