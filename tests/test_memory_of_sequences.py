"""Memory of sequences: KV caches, states and activations equal what transformers keeps and allocates."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, QuantizedCache

from advisor.catalogue import catalogue_model
from advisor.errors import PlanError
from advisor.knowledge import engines, find_engine
from advisor.memory import activation_bytes, kv_cache_bytes, state_bytes, stored_kv_bits
from advisor.types import Catalogue
from tests.memory_cases import REF, catalogue, plain_bytes
from tests.tiny_models import tiny_model


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
