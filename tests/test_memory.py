"""Memory: what is counted equals what other libraries really store and allocate, and grows with what is asked."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, QuantizedCache

from advisor.catalogue import catalogue_model
from advisor.errors import KnowledgeError, PlanError
from advisor.evaluate import tensor_bytes
from advisor.formats.table import packed_bytes
from advisor.knowledge import engines, find_engine, find_format, find_hardware
from advisor.memory import (
    activation_bytes,
    decided_bits,
    estimate_memory,
    kv_cache_bytes,
    refuse_impossible_load,
    state_bytes,
    stored_bytes,
    stored_kv_bits,
    usable_bytes,
    weights_bytes,
)
from advisor.types import AttentionGeometry, Budget, Catalogue, Layer, MemoryEstimate, ModelRef, Role
from tests.tiny_models import tiny_model

GIB = 2**30
REF = ModelRef(source="tiny", kind="folder", name="tiny")


def layer(name: str, *shape: int, role: Role = Role.MLP_DOWN, **more) -> Layer:
    return Layer(
        name=name, parameter=f"{name}.weight", role=role, block=0, shape=shape, quantizable=len(shape) > 1, **more
    )


def catalogue(dtype="bf16", layers=(), **geometry) -> Catalogue:
    shape = {"blocks": 4, "attention_heads": 8, "kv_heads": 2, "head_dim": 16} | geometry
    return Catalogue(
        model=ModelRef(source="x", kind="folder", name="tiny"),
        architecture="LlamaForCausalLM",
        dtype=dtype,
        hidden_size=128,
        intermediate_size=512,
        vocabulary=1000,
        max_context=4096,
        attention=AttentionGeometry(**shape),
        layers=layers
        or (
            layer("embed", 1000, 128, role=Role.EMBEDDING, tied_names=("lm_head",)),
            layer("up", 512, 128, role=Role.MLP_GATE_UP),
            layer("down", 128, 512),
            layer("norm", 128, role=Role.NORM),
        ),
    )


def catalogue_of(config, dtype="fp32") -> Catalogue:
    window = getattr(config, "sliding_window", None)
    return catalogue(
        dtype,
        blocks=config.num_hidden_layers,
        attention_heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        sliding_window=window,
        sliding_blocks=config.num_hidden_layers if window else 0,
    ).model_copy(
        update={
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "vocabulary": config.vocab_size,
        }
    )


TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "tie_word_embeddings": True,
}


def held_bytes(value) -> int:
    """Bytes of all tensors in what a cache keeps: a tensor, or several by number."""
    if isinstance(value, dict):
        return sum(held_bytes(part) for part in value.values())
    return value.nbytes if isinstance(value, torch.Tensor) else 0


def cached_bytes(model, context: int, sequences: int) -> int:
    """Bytes that transformers' own cache holds after reading `context` tokens of `sequences` sequences."""
    cache = DynamicCache(config=model.config)
    read(model, cache, context, sequences)
    kept = ("keys", "values", "conv_states", "recurrent_states")
    return sum(held_bytes(getattr(entry, name, None)) for entry in cache.layers for name in kept)


def read(model, cache, context: int, sequences: int) -> None:
    tokens = torch.zeros(sequences, context, dtype=torch.long)
    with torch.inference_mode():
        model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)


# ------------------------------------------------------------------------------------------- KV cache


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "deepseek_v3", "qwen3_next", "bamba"])
@pytest.mark.parametrize(("context", "sequences"), [(16, 1), (40, 3)])
def test_a_sequence_leaves_behind_what_transformers_keeps_of_it(architecture, context, sequences):
    model = tiny_model(architecture).to(torch.bfloat16)
    ours = kv_cache_bytes(catalogue_model(model, REF), context, sequences, 16)
    assert ours == cached_bytes(model, context, sequences) > 0


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3"])
def test_a_sliding_window_caches_as_transformers_does_and_the_newest_token(architecture):
    # transformers drops the token that leaves the window with the next one; engines hold it until then.
    model = tiny_model(architecture, sliding_window=8, num_hidden_layers=6).to(torch.bfloat16)
    known = catalogue_model(model, REF)
    newest = known.attention.sliding_blocks * 2 * 2 * known.attention.kv_heads * known.attention.head_dim * 2
    assert known.attention.sliding_blocks >= 3
    assert kv_cache_bytes(known, 40, 2, 16) == cached_bytes(model, 40, 2) + newest


def test_a_4_bit_cache_of_transformers_has_the_bits_of_its_table():
    model = tiny_model("llama", head_dim=64).to(torch.bfloat16)
    cache = QuantizedCache("quanto", model.config, nbits=4, q_group_size=64)
    read(model, cache, 64, 2)
    packed = sum(
        plain_bytes(part) for entry in cache.layers for part in (entry._quantized_keys, entry._quantized_values)
    )
    bits = stored_kv_bits(find_engine("transformers"), 4)
    assert kv_cache_bytes(catalogue_model(model, REF), 64, 2, bits) == packed


@pytest.mark.parametrize(("kv_bits", "gguf_type"), [(8, "Q8_0"), (4, "Q4_0")])
def test_llama_cpps_cache_has_the_bits_of_its_gguf_type(kv_bits, gguf_type):
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[gguf_type]]
    assert stored_kv_bits(find_engine("llama.cpp"), kv_bits) == 8 * size / values


def test_a_cache_that_the_engine_lacks_is_refused_with_those_it_has():
    with pytest.raises(PlanError, match="vLLM .* has no KV cache of 4 bits: choose 16 or 8, or another engine"):
        stored_kv_bits(find_engine("vllm"), 4)


def test_every_engine_can_keep_its_cache_in_16_bits_and_in_no_fewer_than_it_says():
    for engine in engines().values():
        assert engine.kv_bits[0] == 16
        assert all(stored_kv_bits(engine, bits) >= bits for bits in engine.kv_bits)


def test_a_state_is_as_large_for_one_token_as_for_thousands():
    model = catalogue(state_blocks=3, recurrent_values=100, convolution_values=10)
    assert state_bytes(model, 2) == 3 * 2 * (100 * 4 + 10 * 2)
    grown = kv_cache_bytes(model, 4000, 2, 16) - kv_cache_bytes(model, 1, 2, 16)
    assert grown == 2 * 3999 * 2 * 2 * 16 * 2
    assert kv_cache_bytes(model, 1, 2, 8) > state_bytes(model, 2)


counts = st.integers(1, 4096)


@given(counts, counts, st.integers(1, 64), st.integers(1, 64), st.sampled_from([None, 1, 100, 5000]))
def test_more_context_or_sequences_never_need_less(context, more, sequences, sequences_more, window):
    model = catalogue(sliding_window=window, sliding_blocks=2 if window else 0)
    for needs in (lambda c, s: kv_cache_bytes(model, c, s, 16), lambda c, s: activation_bytes(model, c, s)):
        assert needs(context, sequences) <= needs(context + more, sequences)
        assert needs(context, sequences) <= needs(context, sequences + sequences_more)


@given(counts, st.integers(1, 64), st.integers(1, 8192))
def test_a_window_never_needs_more_than_full_attention_and_less_only_past_it(context, sequences, window):
    full = kv_cache_bytes(catalogue(), context, sequences, 16)
    slid = kv_cache_bytes(catalogue(sliding_window=window, sliding_blocks=4), context, sequences, 16)
    assert slid == full if context <= window else slid < full


@given(counts, st.integers(1, 64))
def test_an_8_bit_cache_is_half_a_16_bit_one(context, sequences):
    model = catalogue()
    assert 2 * kv_cache_bytes(model, context, sequences, 8) == kv_cache_bytes(model, context, sequences, 16)


def test_a_window_without_sliding_blocks_changes_nothing():
    assert kv_cache_bytes(catalogue(sliding_window=10), 100, 1, 16) == kv_cache_bytes(catalogue(), 100, 1, 16)


# ---------------------------------------------------------------------------------------- activations


class PeakOfLiveTensors(TorchDispatchMode):
    """Watches every tensor that an operation makes and keeps the largest sum of those alive at once, in bytes."""

    def __init__(self, model):
        super().__init__()
        self.live, self.peak = {}, 0
        self.weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.weights:
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


@pytest.mark.parametrize(("intermediate", "context"), [(256, 300), (172, 600), (1024, 64), (16, 300)])
def test_activations_cover_what_a_prefill_allocates_without_doubling_it(intermediate, context):
    model = LlamaForCausalLM(LlamaConfig(**TINY, intermediate_size=intermediate)).eval()
    watch = PeakOfLiveTensors(model)
    with torch.inference_mode(), watch:
        model(torch.zeros(1, context, dtype=torch.long), use_cache=False, logits_to_keep=1)
    ours = activation_bytes(catalogue_of(model.config), context, 1)
    assert watch.peak <= ours <= 1.25 * watch.peak


# -------------------------------------------------------------------------------------------- weights


def plain_bytes(tensor) -> int:
    """Bytes of a tensor subclass: of all the plain tensors inside it."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(plain_bytes(getattr(tensor, name)) for name in names)


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
    assert stored_bytes(find_engine("transformers"), fmt, layer("w", 96, 256)) == plain_bytes(packed)


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


@pytest.mark.parametrize(("name", "bits"), [("int8", 8.5), ("int4_g64", 4.5), ("int4_g128", 4.25), ("int2_g64", 2.5)])
def test_mlx_pays_32_bits_per_group(name, bits):
    weight = layer("w", 96, 256)
    assert stored_bytes(find_engine("mlx"), find_format(name), weight) == weight.parameters * bits / 8


@pytest.mark.parametrize("shape", [(96, 256), (7, 320)])
def test_bitsandbytes_counts_what_it_packs(shape):
    from bitsandbytes import functional, nn

    engine, weight = find_engine("transformers-bitsandbytes"), torch.randn(*shape, dtype=torch.float16)
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert stored_bytes(engine, find_format("nf4_g64"), layer("w", *shape)) == codes.nbytes + state.absmax.nbytes
    linear = nn.Linear8bitLt(shape[1], shape[0], bias=False, has_fp16_weights=False)
    linear.load_state_dict({"weight": weight})
    saved = linear.to("cpu").state_dict()
    assert stored_bytes(engine, find_format("int8"), layer("w", *shape)) == saved["weight"].nbytes + saved["SCB"].nbytes


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
    assert estimate.weights_bytes == kept + packed_bytes(find_format("int4_g64"), model.by_name()["up"])
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
