"""What the catalogue cannot read is refused by name, with what was found and what to do next."""

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, Gemma3Config, T5Config

from advisor.catalogue import catalogue_model
from advisor.errors import ModelError
from advisor.types import ModelRef
from advisor.weights import get_weight
from tests.tiny_models import tiny_model

REF = ModelRef(source="tiny", kind="folder", name="tiny")


def test_a_layer_of_another_model_is_refused():
    layer = catalogue_model(tiny_model("llama"), REF).layers[1]
    with pytest.raises(ModelError, match="use the model that this catalogue was made from"):
        get_weight(tiny_model("gpt2"), layer)


def test_a_state_space_model_is_refused_with_what_was_found():
    with pytest.raises(ModelError) as refusal:
        catalogue_model(tiny_model("mamba"), REF)
    message = str(refusal.value)
    assert message.startswith("MambaForCausalLM cannot be catalogued")
    assert "backbone.layers.0.mixer.in_proj (Linear 256x64)" in message
    assert message.count("mixer.") == 5
    assert message.endswith("checkpoint.")


def _attention_and_state_in_one_block():
    return tiny_model("falcon_h1")


def _encoder_decoder():
    return AutoModelForSeq2SeqLM.from_config(
        T5Config(vocab_size=256, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4)
    )


def _vision_model():
    text = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "head_dim": 16}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    return AutoModelForCausalLM.from_config(Gemma3Config(text_config=text, vision_config=vision))


def _packed_by_quanto():
    from optimum.quanto import freeze, qint8, quantize

    model = tiny_model("llama")
    quantize(model, weights=qint8)
    freeze(model)
    return model


def _integer_weights():
    model = tiny_model("llama")
    codes = torch.zeros(64, 64, dtype=torch.int8)
    model.model.layers[0].self_attn.q_proj.weight = nn.Parameter(codes, requires_grad=False)
    return model


def _byte_wide_floats():
    model = tiny_model("llama")
    model.model.layers[0].mlp.up_proj.to(torch.float8_e4m3fn)
    return model


def _without_head():
    return AutoModel.from_config(tiny_model("llama").config)


def _without_blocks():
    model = tiny_model("llama")
    model.model.layers = nn.Sequential(*model.model.layers)
    return model


def _unknown_giant():
    model = tiny_model("llama")
    model.model.layers[1].self_attn.memory = nn.Linear(48, 96)
    return model


def _unknown_side_branch():
    model = tiny_model("llama")
    for block in model.model.layers:
        block.side_branch = nn.Linear(64, 96)
    return model


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (_attention_and_state_in_one_block, r"what its blocks keep of a sequence \(found hybrid\)"),
        (lambda: tiny_model("rwkv"), r"no attention and MLP .*attention.receptance \(Linear 64x64\)"),
        (_encoder_decoder, "T5ForConditionalGeneration .*encoder-decoder"),
        (_vision_model, "reads more than text .*vision_config"),
        (_packed_by_quanto, r"already quantized \(found model.layers.0.self_attn.q_proj \(QLinear\)"),
        (_integer_weights, r"already quantized \(found model.layers.0.self_attn.q_proj.weight \(torch.int8\)\)"),
        (_byte_wide_floats, r"already quantized \(found model.layers.0.mlp.up_proj.weight \(torch.float8_e4m3fn\)\)"),
        (_without_head, "no vocabulary head"),
        (_without_blocks, "no list of identical decoder blocks .*embed_tokens"),
        (_unknown_giant, r"block 1 has weights whose role is unknown .*self_attn.memory \(Linear 96x48\)"),
        (_unknown_side_branch, r"block 0 has weights whose role is unknown .*side_branch \(Linear 96x64\)"),
        (lambda: tiny_model("llama").double(), "not all bf16, fp16 or fp32 .*float64"),
        (lambda: nn.Sequential(nn.Linear(4, 4)), "no transformers configuration"),
    ],
)
def test_what_cannot_be_catalogued_is_refused_in_a_sentence(build, what):
    with pytest.raises(ModelError, match=what) as refusal:
        catalogue_model(build(), REF)
    message = str(refusal.value)
    assert " cannot be catalogued: " in message and "\n" not in message
    assert "; choose " in message or "; load it" in message


def test_an_unknown_trifle_stays_in_full_precision():
    model = tiny_model("llama")
    model.model.layers[1].self_attn.gate_of_time = nn.Linear(6, 6, bias=False)
    layers = catalogue_model(model, REF).by_name()
    assert layers["model.layers.1.self_attn.gate_of_time"].role == "other"
    assert not layers["model.layers.1.self_attn.gate_of_time"].quantizable
