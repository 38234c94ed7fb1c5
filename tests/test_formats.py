"""Formats against independent implementations: compressed-tensors, bitsandbytes, optimum-quanto, and torch's fp8."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given
from hypothesis import strategies as st

from advisor.formats.quantize import fake_quantize, quantize
from advisor.formats.table import packed_bytes
from advisor.knowledge import find_format, formats
from advisor.types import Layer, Role

QUANTIZED = [name for name, fmt in formats().items() if fmt.quantized]
INTEGER = [name for name, fmt in formats().items() if fmt.kind == "integer"]


def a_layer(*shape: int, input_axis: int = -1) -> Layer:
    return Layer(
        name="w",
        parameter="w.weight",
        role=Role.MLP_DOWN,
        block=0,
        shape=shape,
        input_axis=input_axis,
        quantizable=True,
    )


def a_weight(*shape: int, dtype=torch.bfloat16, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul_(0.02).to(dtype)


def reference_codes(weight: torch.Tensor, name: str):
    """Scales, zero points and integer codes by compressed-tensors' own arithmetic, in fp32 with the stored scale."""
    fmt = find_format(name)
    args = QuantizationArgs(num_bits=fmt.bits, symmetric=fmt.symmetric, type="int", strategy="channel")
    groups = weight.float().view(weight.shape[0], -1, fmt.group_size or weight.shape[1])
    scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    scale = scale.bfloat16().float()[..., None]
    low, high = -(2 ** (fmt.bits - 1)), 2 ** (fmt.bits - 1) - 1
    zero = torch.zeros_like(scale)
    if not fmt.symmetric:
        zero = (low - groups.amin(-1, keepdim=True).clamp_max(0) / scale).round().clamp(low, high)
    return scale, zero, (groups / scale + zero).round().clamp(low, high)


@pytest.mark.parametrize("name", INTEGER)
def test_integer_codes_and_scales_are_those_of_compressed_tensors(name):
    weight = a_weight(48, 256)
    codes = quantize(weight, find_format(name))
    scale, zero, expected = reference_codes(weight, name)
    assert torch.equal(codes.scale.float(), scale)
    assert torch.equal(codes.values.float(), expected)
    assert torch.equal(fake_quantize(weight.float(), find_format(name)), ((expected - zero) * scale).flatten(1))


@pytest.mark.parametrize("name", INTEGER)
@pytest.mark.parametrize("shape", [(48, 256), (40, 128), (7, 384)])
def test_packed_bytes_are_those_of_compressed_tensors_tensors(name, shape):
    fmt = find_format(name)
    codes = quantize(a_weight(*shape), fmt)
    tensors = [pack_to_int32(codes.values.flatten(1), fmt.bits), codes.scale]
    if not fmt.symmetric:
        tensors.append(pack_to_int32(codes.zero_point.squeeze(-1), fmt.bits, packed_dim=0))
    assert packed_bytes(fmt, a_layer(*shape)) == sum(t.numel() * t.element_size() for t in tensors)


def test_rows_are_padded_to_whole_words():
    codes = quantize(a_weight(5, 130), find_format("int8"))
    packed = pack_to_int32(codes.values.flatten(1), 8)
    assert packed_bytes(find_format("int8"), a_layer(5, 130)) == packed.numel() * 4 + 5 * 2


def test_nf4_is_bitsandbytes_nf4():
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = a_weight(32, 256, dtype=torch.float32)
    packed, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    fmt = find_format("nf4_g64")
    torch.testing.assert_close(fake_quantize(weight, fmt), dequantize_4bit(packed, state), rtol=0, atol=1e-7)
    assert packed_bytes(fmt, a_layer(32, 256)) == packed.numel() + state.absmax.numel() * state.absmax.element_size()


def test_fp8_is_torch_e4m3_with_one_scale_per_channel():
    weight = a_weight(16, 64)
    fmt = find_format("fp8_e4m3")
    scale = (weight.float().abs().amax(-1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max).bfloat16().float()
    expected = (weight.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
    assert torch.equal(fake_quantize(weight.float(), fmt), expected)
    assert packed_bytes(fmt, a_layer(16, 64)) == 16 * 64 + 16 * 2


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_plain_dtypes_are_torch_casts(name, dtype):
    weight = a_weight(8, 8, dtype=torch.float32)
    assert torch.equal(fake_quantize(weight, find_format(name)), weight.to(dtype).float())
    assert packed_bytes(find_format(name), a_layer(8, 8)) == 64 * dtype.itemsize


@pytest.mark.parametrize("name", QUANTIZED)
def test_the_input_axis_carries_the_groups(name):
    weight = a_weight(64, 128)
    across = fake_quantize(weight.T.contiguous(), find_format(name), input_axis=0)
    assert torch.equal(across, fake_quantize(weight, find_format(name)).T)
    assert packed_bytes(find_format(name), a_layer(128, 64, input_axis=0)) == packed_bytes(
        find_format(name), a_layer(64, 128)
    )


@pytest.mark.parametrize("name", QUANTIZED)
def test_fused_experts_are_quantized_matrix_by_matrix(name):
    experts = a_weight(3, 32, 128)
    expected = torch.stack([fake_quantize(matrix, find_format(name)) for matrix in experts])
    assert torch.equal(fake_quantize(experts, find_format(name)), expected)
    assert packed_bytes(find_format(name), a_layer(3, 32, 128)) == 3 * packed_bytes(find_format(name), a_layer(32, 128))


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantizing_leaves_its_input_alone_and_zero_stays_zero(name):
    weight = a_weight(4, 128)
    weight[1] = 0
    before = weight.clone()
    result = fake_quantize(weight, find_format(name))
    assert torch.equal(weight, before)
    assert torch.equal(result[1], torch.zeros(128, dtype=torch.bfloat16))
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("name", QUANTIZED)
def test_slices_of_rows_give_what_the_whole_matrix_gives(name, monkeypatch):
    weight = a_weight(37, 128)
    whole = fake_quantize(weight, find_format(name))
    monkeypatch.setattr("advisor.formats.quantize._SLICE_ELEMENTS", 1000)
    assert torch.equal(fake_quantize(weight, find_format(name)), whole)


def test_groups_that_do_not_divide_the_features_are_refused():
    with pytest.raises(ValueError, match="576 input features do not split into groups of 128"):
        fake_quantize(a_weight(4, 576), find_format("int4_g128"))


@given(seed=st.integers(0, 1000))
def test_more_bits_never_make_a_larger_error(seed):
    weight = a_weight(8, 128, dtype=torch.float32, seed=seed)
    errors = [
        (fake_quantize(weight, find_format(name)) - weight).square().sum().item()
        for name in ("int2_g64", "int3_g64", "int4_g64_asym", "int8_g64")
    ]
    assert errors == sorted(errors, reverse=True)


def test_average_bits_include_scales_and_zero_points():
    layer = a_layer(4096, 4096)
    for name, bits in (("int4_g64", 4.25), ("int4_g64_asym", 4.25 + 4 / 64), ("nf4_g64", 4.5)):
        assert packed_bytes(find_format(name), layer) * 8 / layer.parameters == bits
