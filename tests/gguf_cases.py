"""Tiny models, mixed plans and a tokenizer, which the tests of GGUF files share."""

import pytest
import torch

from advisor.catalogue import catalogue_model
from advisor.knowledge import find_engine
from advisor.types import ModelRef
from tests.test_apply import DTYPES, a_plan
from tests.tiny_models import merging_tokenizer, tiny_model

VOCABULARY = 320
FORMATS = ("int8", "int4_g64", "int4_g32", None, "int4_g64_asym", "int8_g64")
ENGINE, K_QUANTS = find_engine("llama.cpp"), find_engine("llama.cpp-k-quants")
TEXT = "The  quick brown fox's 1234 tests: naïve, 東京!\n\tif x == 10:\n        return None"
PROMPTS = [[5], [7, 200, 31, 90, 12, 64], [3 + 7 * i % 300 for i in range(30)]]
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def tokenizer():
    return merging_tokenizer(VOCABULARY)


def a_model(architecture="llama", dtype="bf16", **overrides):
    """A tiny model whose attention is sharp enough to notice wrongly rotated heads, and its catalogue."""
    if architecture == "qwen3":
        overrides["head_dim"] = 128  # transformers' reader takes Qwen3's default
    model = tiny_model(architecture, vocab_size=VOCABULARY, **overrides)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj.weight" in name or "k_proj.weight" in name:
                parameter.mul_(12)
            # Parameters alone: the rotary frequencies stay in fp32, as `from_pretrained` leaves them.
            parameter.data = parameter.to({**DTYPES, "fp32": torch.float32}[dtype])
    model.requires_grad_(False)
    return model, catalogue_model(model, ModelRef(source="tiny", kind="folder", name="tiny"))


def mixed(catalogue, formats=FORMATS):
    chosen = {layer.name: formats[i % len(formats)] for i, layer in enumerate(catalogue.quantizable)}
    plan = a_plan(catalogue, {name: fmt for name, fmt in chosen.items() if fmt})
    return plan.model_copy(update={"request": plan.request.model_copy(update={"engine": ENGINE.name})})


def log_probs(model, prompts):
    with torch.no_grad():
        return [model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for prompt in prompts]
