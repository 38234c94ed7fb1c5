"""A model is the same whichever way it was loaded, and another one when a weight is."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from advisor.catalogue import catalogue_model, fingerprint
from advisor.types import ModelRef
from tests.tiny_models import tiny_model

REF = ModelRef(source="tiny", kind="folder", name="tiny")


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "qwen3_moe"])
def test_a_model_without_values_is_catalogued_like_the_real_one(architecture):
    with torch.device("meta"):
        shapes_only = tiny_model(architecture)
    assert next(shapes_only.parameters()).is_meta
    assert catalogue_model(shapes_only, REF).layers == catalogue_model(tiny_model(architecture), REF).layers


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_the_fingerprint_survives_saving_and_loading(architecture, tmp_path):
    model = tiny_model(architecture).to(torch.bfloat16)
    saved = catalogue_model(model, REF).model
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)

    assert len(saved.fingerprint) == 64
    assert catalogue_model(loaded, REF).model == saved


def test_the_fingerprint_tells_models_apart():
    model = tiny_model("llama")
    layers = catalogue_model(model, REF).layers
    before = fingerprint(model, layers)

    assert fingerprint(tiny_model("llama"), layers) == before
    assert fingerprint(tiny_model("llama", seed=1), layers) != before
    assert fingerprint(tiny_model("mistral"), layers) != before
    assert fingerprint(tiny_model("llama").to(torch.float16), layers) != before
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    assert fingerprint(model, layers) != before
