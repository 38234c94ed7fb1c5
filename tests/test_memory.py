"""Memory: what is counted equals what other libraries really store, and what fits is told."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advisor.catalogue import catalogue_model
from advisor.errors import KnowledgeError, PlanError
from advisor.evaluate import tensor_bytes
from advisor.formats.table import packed_bytes
from advisor.knowledge import engines, find_engine, find_format, find_hardware
from advisor.memory import (
    decided_bits,
    estimate_memory,
    refuse_impossible_load,
    stored_bytes,
    usable_bytes,
    weights_bytes,
)
from advisor.types import AttentionGeometry, Budget, MemoryEstimate
from tests.memory_cases import GIB, REF, catalogue, layer, plain_bytes
from tests.tiny_models import tiny_model

# -------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("name", ["int4_g32", "int4_g64", "int4_g128", "int4_g64_asym", "int2_g64", "int8", "fp8_e4m3"])
def test_the_transformers_engine_counts_what_quanto_packs(name):
    from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, qfloat8_e4m3fn, qint2, qint4, qint8, quantize_weight

    fmt = find_format(name)
    qtype = {"int2": qint2, "int4": qint4, "int8": qint8, "fp8": qfloat8_e4m3fn}[fmt.family]
    weight = torch.randn(96, 256, dtype=torch.bfloat16)
    if fmt.group_size is None:
        packed = quantize_weight(weight, qtype, 0, AbsmaxOptimizer()(weight, qtype, 0), optimized=False)
    else:
        scale, shift = MaxOptimizer()(weight, qtype, axis=0, group_size=fmt.group_size, zeropoint=True)
        packed = quantize_weight(weight, qtype, 0, scale, shift, fmt.group_size, optimized=False)
    scales_of_activations = 2 * weight.itemsize  # a module keeps one for its input and one for its output
    assert stored_bytes(find_engine("transformers"), fmt, layer("w", 96, 256)) == (
        plain_bytes(packed) + scales_of_activations
    )


@pytest.mark.parametrize(
    ("name", "gguf_type"),
    [("int8", "Q8_0"), ("int8_g64", "Q8_0"), ("int4_g32", "Q4_0"), ("int4_g64", "Q4_0"), ("int4_g64_asym", "Q4_1")],
)
def test_the_llama_cpp_engine_counts_what_gguf_packs(name, gguf_type):
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    weight = torch.randn(96, 256).numpy()
    packed = quantize(weight, GGMLQuantizationType[gguf_type])
    assert stored_bytes(find_engine("llama.cpp"), find_format(name), layer("w", 96, 256)) == packed.nbytes


@pytest.mark.parametrize(
    ("name", "gguf_type"),
    [("int8", "Q8_0"), ("int4_g64", "Q4_K"), ("int4_g64_asym", "Q4_K"), ("int3_g64", "Q3_K"), ("int2_g64", "Q2_K")],
)
def test_the_k_quants_engine_counts_what_gguf_packs(name, gguf_type):
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    rows, row_bytes = quant_shape_to_byte_shape((96, 512), GGMLQuantizationType[gguf_type])
    assert stored_bytes(find_engine("llama.cpp-k-quants"), find_format(name), layer("w", 96, 512)) == rows * row_bytes


def test_llama_cpp_keeps_norms_in_fp32_and_everything_else_in_the_models_dtype():
    model = catalogue()
    vectors = sum(one.parameters for one in model.layers if len(one.shape) == 1)
    assert vectors
    extra = weights_bytes(model, {}, find_engine("llama.cpp")) - weights_bytes(model, {}, find_engine("vllm"))
    assert extra == 2 * vectors


@pytest.mark.parametrize(("name", "bits"), [("int8", 8.5), ("int4_g64", 4.5), ("int4_g128", 4.25), ("int2_g64", 2.5)])
def test_mlx_pays_32_bits_per_group(name, bits):
    weight = layer("w", 96, 256)
    assert stored_bytes(find_engine("mlx"), find_format(name), weight) == weight.parameters * bits / 8


@pytest.mark.parametrize("shape", [(96, 256), (7, 320)])
def test_bitsandbytes_counts_what_it_packs(shape):
    from bitsandbytes import functional, nn

    engine, weight = find_engine("transformers-bitsandbytes"), torch.randn(*shape, dtype=torch.float16)
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert stored_bytes(engine, find_format("nf4_g64"), layer("w", *shape)) == (
        codes.nbytes + state.absmax.nbytes + state.code.nbytes
    )
    linear = nn.Linear8bitLt(shape[1], shape[0], bias=False, has_fp16_weights=False)
    linear.load_state_dict({"weight": weight})
    saved = linear.to("cpu").state_dict()
    assert stored_bytes(engine, find_format("int8"), layer("w", *shape)) == sum(kept.nbytes for kept in saved.values())


# Measured on torchao 0.18.0, which is no dependency: Int8WeightOnlyConfig and Float8WeightOnlyConfig on a bf16 linear
# of 96 x 256, all inner tensors added up; INT4 needs a GPU there and is counted from its source.
@pytest.mark.parametrize(
    ("name", "bits"),
    [("int8", 8.15625), ("int8_g64", 8.625), ("fp8_e4m3", 8.125), ("int4_g64", 4.5), ("int4_g128", 4.25)],
)
def test_torchao_counts_what_it_packs(name, bits):
    weight = layer("w", 96, 256)
    assert stored_bytes(find_engine("transformers-torchao"), find_format(name), weight) == weight.parameters * bits / 8


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "mixtral", "qwen3_next", "bamba", "gemma3"])
def test_unquantized_weights_have_the_bytes_of_their_safetensors(architecture, tmp_path):
    model = tiny_model(architecture).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert weights_bytes(catalogue_model(model, REF), {}, find_engine("transformers")) == tensor_bytes(tmp_path)


@given(
    st.sampled_from([(e, f) for e in engines().values() for f in e.formats]),
    st.integers(1, 300),
    st.integers(1, 300),
)
def test_no_engine_stores_a_format_in_less_than_its_codes(stored, rows, features):
    engine, name = stored
    fmt, weight = find_format(name), layer("w", rows, features)
    assert stored_bytes(engine, fmt, weight) * 8 >= weight.parameters * fmt.bits


def test_layers_without_an_assignment_keep_their_dtype_and_ties_count_once():
    model = catalogue()
    estimate = estimate_memory(
        model, {"up": "int4_g64"}, find_engine("vllm"), find_hardware("l4"), Budget(weight_bits=4)
    )
    kept = 2 * (1000 * 128 + 128 * 512 + 128)
    shape = 2 * 8  # two 64-bit integers that pack-quantized stores with the codes
    assert estimate.weights_bytes == kept + packed_bytes(find_format("int4_g64"), model.by_name()["up"]) + shape
    assert estimate.original_weights_bytes == kept + 2 * 512 * 128


def test_decided_bits_are_those_of_the_formats_whatever_the_engine_stores():
    model = catalogue()
    half_and_half = {"up": "int4_g64", "down": "int8_g64"}
    assert decided_bits(model, half_and_half) == pytest.approx((4.25 + 8.25) / 2)
    for name in ("llama.cpp", "mlx"):
        estimate = estimate_memory(
            model, half_and_half, find_engine(name), find_hardware("m4-max-128gb"), Budget(weight_bits=7)
        )
        assert estimate.decided_bits == decided_bits(model, half_and_half)


def test_a_plan_for_another_model_is_refused_by_the_name_of_its_layer():
    with pytest.raises(PlanError, match="'elsewhere', which tiny does not have"):
        estimate_memory(
            catalogue(), {"elsewhere": "int8"}, find_engine("vllm"), find_hardware("l4"), Budget(weight_bits=4)
        )


def test_a_format_that_the_engine_lacks_is_refused():
    with pytest.raises(KnowledgeError, match="does not store int2_g64"):
        estimate_memory(
            catalogue(), {"up": "int2_g64"}, find_engine("vllm"), find_hardware("l4"), Budget(weight_bits=4)
        )


# ---------------------------------------------------------------------------------------------- limit


def test_a_budget_in_bytes_replaces_the_devices_memory():
    device, engine = find_hardware("a100-sxm-80gb"), find_engine("vllm")
    assert usable_bytes(device, engine) == int(80e9 * engine.utilisation.value)
    assert usable_bytes(device, engine, 24 * GIB) == int(24 * GIB * engine.utilisation.value)


def test_only_a_part_of_unified_memory_is_usable():
    device, engine = find_hardware("m4-max-128gb"), find_engine("mlx")
    assert usable_bytes(device, engine) == int(128e9 * device.usable_fraction.value * engine.utilisation.value)
    assert usable_bytes(device, engine) < device.memory_bytes


@given(st.integers(GIB, 200 * GIB), st.integers(0, 100 * GIB))
def test_more_memory_never_means_less_to_use(vram, more):
    device, engine = find_hardware("mi300x"), find_engine("vllm")
    assert usable_bytes(device, engine, vram) <= usable_bytes(device, engine, vram + more) <= vram + more


def test_the_parts_add_up_and_decide_whether_it_fits():
    model, engine, device = catalogue(), find_engine("vllm"), find_hardware("l4")
    estimate = estimate_memory(model, {"up": "int8"}, engine, device, Budget(vram_bytes=2 * GIB, context=512))
    parts = estimate.weights_bytes + estimate.kv_cache_bytes + estimate.activation_bytes + estimate.overhead_bytes
    assert estimate.total_bytes == parts
    assert estimate.fits
    tight = estimate_memory(model, {"up": "int8"}, engine, device, Budget(vram_bytes=GIB, context=512))
    assert not tight.fits


def test_estimates_of_earlier_versions_are_of_one_gpu_with_all_weights():
    old = dict.fromkeys(("kv_cache_bytes", "activation_bytes", "overhead_bytes"), 1)
    old |= {"weights_bytes": 5, "limit_bytes": 9, "decided_bits": 4, "original_weights_bytes": 10}
    estimate = MemoryEstimate.model_validate(old)
    assert (estimate.model_weights_bytes, estimate.gpus) == (5, 1)
    assert estimate.all_gpus_bytes == estimate.total_bytes == 8


def test_geometries_of_earlier_versions_have_no_states_and_no_latent():
    old = {
        "blocks": 4,
        "attention_heads": 8,
        "kv_heads": 2,
        "head_dim": 16,
        "sliding_window": None,
        "sliding_blocks": 0,
    }
    assert AttentionGeometry.model_validate(old) == AttentionGeometry(
        blocks=4, attention_heads=8, kv_heads=2, head_dim=16
    )


# ----------------------------------------------------------------------------------------------- load


def test_a_context_beyond_the_models_own_is_refused():
    device = find_hardware("l4")
    refuse_impossible_load(catalogue(), device, Budget(weight_bits=4, context=4096))
    with pytest.raises(PlanError, match="4,097 tokens is more than the 4,096 that tiny was made for: shorten"):
        refuse_impossible_load(catalogue(), device, Budget(weight_bits=4, context=4097))


def test_more_memory_than_the_device_has_is_refused_in_either_reading_of_its_gigabytes():
    device = find_hardware("rtx-4090")
    refuse_impossible_load(catalogue(), device, Budget(vram_bytes=24 * GIB))
    with pytest.raises(PlanError, match="24.00 GiB are more than the 24 GB of NVIDIA GeForce RTX 4090"):
        refuse_impossible_load(catalogue(), device, Budget(vram_bytes=24 * GIB + 1))
