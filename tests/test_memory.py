"""Memory: what is counted equals what other libraries really store and allocate, and grows with what is asked."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from advisor.errors import KnowledgeError, PlanError
from advisor.formats.table import packed_bytes
from advisor.knowledge import engines, find_engine, find_format, find_hardware
from advisor.memory import (
    activation_bytes,
    decided_bits,
    estimate_memory,
    kv_cache_bytes,
    stored_bytes,
    usable_bytes,
)
from advisor.types import AttentionGeometry, Budget, Catalogue, Layer, ModelRef, Role

GIB = 2**30


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


def cached_bytes(model, context: int, sequences: int) -> int:
    """Bytes that transformers' own cache holds after reading `context` tokens of `sequences` sequences."""
    tokens = torch.zeros(sequences, context, dtype=torch.long)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return sum(part.nbytes for entry in cache.layers for part in (entry.keys, entry.values))


# ------------------------------------------------------------------------------------------- KV cache


@pytest.mark.parametrize(("context", "sequences"), [(16, 1), (40, 3)])
def test_the_kv_cache_is_the_one_that_transformers_allocates(context, sequences):
    model = LlamaForCausalLM(LlamaConfig(**TINY, intermediate_size=128)).to(torch.bfloat16).eval()
    assert kv_cache_bytes(catalogue_of(model.config), context, sequences, 16) == cached_bytes(model, context, sequences)


def test_a_sliding_window_caches_as_transformers_does_give_or_take_the_newest_token():
    model = MistralForCausalLM(MistralConfig(**TINY, intermediate_size=128, sliding_window=8)).to(torch.bfloat16).eval()
    ours = kv_cache_bytes(catalogue_of(model.config), 40, 2, 16)
    one_token = kv_cache_bytes(catalogue_of(model.config), 1, 2, 16)
    assert 0 <= ours - cached_bytes(model, 40, 2) <= one_token


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
