"""What a sequence leaves behind, read from real architectures: heads, windows, latents and states."""

import pytest
import torch

from advisor.catalogue import catalogue_model
from advisor.types import ModelRef
from tests.tiny_models import tiny_model

REF = ModelRef(source="tiny", kind="folder", name="tiny")


@pytest.mark.parametrize(
    ("architecture", "kv_heads", "head_dim", "window", "local_blocks", "mlp"),
    [
        ("llama", 2, 16, None, 0, 128),
        ("mistral", 2, 16, 32, 2, 128),
        ("qwen3", 2, 32, None, 0, 128),
        ("gemma2", 2, 16, 32, 1, 128),
        ("phi3", 2, 16, None, 0, 128),
        ("gpt2", 4, 16, None, 0, 256),
        ("opt", 4, 16, None, 0, 128),
        ("falcon", 1, 16, None, 0, 256),
        ("qwen2_moe", 2, 16, None, 0, 128),
        ("gpt_oss", 2, 32, 128, 1, 128),
        ("llama4", 2, 16, 64, 2, 128),
    ],
)
def test_the_geometry_of_the_kv_cache_is_read(architecture, kv_heads, head_dim, window, local_blocks, mlp):
    catalogue = catalogue_model(tiny_model(architecture), REF)
    attention = catalogue.attention
    assert (attention.blocks, attention.attention_heads) == (2, 4)
    assert (attention.kv_heads, attention.head_dim) == (kv_heads, head_dim)
    assert (attention.sliding_window, attention.sliding_blocks) == (window, local_blocks)
    assert (catalogue.hidden_size, catalogue.intermediate_size) == (64, mlp)
    assert (catalogue.vocabulary, catalogue.max_context, catalogue.dtype) == (256, 256, "fp32")


def test_latent_attention_has_heads_of_its_own_and_one_latent():
    attention = catalogue_model(tiny_model("deepseek_v3"), REF).attention
    assert (attention.attention_heads, attention.kv_heads, attention.head_dim) == (4, 4, 16 + 8)
    assert attention.latent_dim == 32 + 8


@pytest.mark.parametrize(
    ("architecture", "recurrent", "convolution"),
    [("qwen3_next", 4 * 16 * 8, (2 * 2 * 16 + 4 * 8) * 4), ("bamba", 4 * 32 * 16, (4 * 32 + 2 * 16) * 4)],
)
def test_the_state_of_linear_attention_is_read_beside_the_kv_cache(architecture, recurrent, convolution):
    attention = catalogue_model(tiny_model(architecture), REF).attention
    assert (attention.blocks, attention.state_blocks) == (2, 1)
    assert (attention.recurrent_values, attention.convolution_values) == (recurrent, convolution)
    # A gate on its output doubles the queries of Qwen3-Next: the K/V heads are still those of the configuration.
    assert (attention.kv_heads, attention.head_dim, attention.sliding_blocks) == (2, 16, 0)


def test_the_intermediate_size_of_narrow_experts_is_their_own():
    assert catalogue_model(tiny_model("qwen3_moe", moe_intermediate_size=32), REF).intermediate_size == 32


def test_half_precision_with_norms_in_full_is_half_precision():
    model = tiny_model("llama").to(torch.bfloat16)
    model.model.norm.to(torch.float32)
    assert catalogue_model(model, REF).dtype == "bf16"
