"""The catalogue names every weight once, in forward order, with the right role."""

import pytest
import torch
from torch import nn

from advisor.catalogue import catalogue_model
from advisor.errors import ModelError
from advisor.types import ModelRef
from advisor.weights import get_weight
from tests.tiny_models import BLOCKS, tiny_model

REF = ModelRef(source="tiny", kind="folder", name="tiny")


LLAMA_MLP = {"mlp.gate_proj": "mlp_gate_up", "mlp.up_proj": "mlp_gate_up", "mlp.down_proj": "mlp_down"}


LLAMA_QKV = {f"self_attn.{x}_proj": "attention_qkv" for x in "qkv"}


LLAMA_OUT = {"self_attn.o_proj": "attention_output"}


QK_NORMS = {"self_attn.q_norm": "norm", "self_attn.k_norm": "norm"}


FIRST_NORM = {"input_layernorm": "norm"}


SECOND_NORM = {"post_attention_layernorm": "norm"}


EXPERTS = {"mlp.gate": "router", "mlp.experts.gate_up_proj": "expert", "mlp.experts.down_proj": "expert"}


QKV_WITH_BIASES = {
    f"self_attn.{x}_proj{bias}": "other" if bias else "attention_qkv" for x in "qkv" for bias in ("", ".bias")
}


LLAMA_BLOCK = {**FIRST_NORM, **LLAMA_QKV, **LLAMA_OUT, **SECOND_NORM, **LLAMA_MLP}


SANDWICH = {"pre_feedforward_layernorm": "norm", **LLAMA_MLP, "post_feedforward_layernorm": "norm"}


# architecture -> (name of the block list, roles of a block's weights in forward order)
BLOCK_ROLES = {
    "llama": ("model.layers", LLAMA_BLOCK),
    "mistral": ("model.layers", LLAMA_BLOCK),
    "gemma": ("model.layers", LLAMA_BLOCK),
    "qwen2": ("model.layers", {**FIRST_NORM, **QKV_WITH_BIASES, **LLAMA_OUT, **SECOND_NORM, **LLAMA_MLP}),
    "qwen3": ("model.layers", {**FIRST_NORM, **LLAMA_QKV, **QK_NORMS, **LLAMA_OUT, **SECOND_NORM, **LLAMA_MLP}),
    "gemma2": ("model.layers", {**FIRST_NORM, **LLAMA_QKV, **LLAMA_OUT, **SECOND_NORM, **SANDWICH}),
    "gemma3": ("model.layers", {**FIRST_NORM, **LLAMA_QKV, **QK_NORMS, **LLAMA_OUT, **SECOND_NORM, **SANDWICH}),
    "mixtral": ("model.layers", {**FIRST_NORM, **LLAMA_QKV, **LLAMA_OUT, **SECOND_NORM, **EXPERTS}),
    "qwen3_moe": ("model.layers", {**FIRST_NORM, **LLAMA_QKV, **QK_NORMS, **LLAMA_OUT, **SECOND_NORM, **EXPERTS}),
    "phi3": (
        "model.layers",
        {
            "input_layernorm": "norm",
            "self_attn.qkv_proj": "attention_qkv",
            "self_attn.o_proj": "attention_output",
            "post_attention_layernorm": "norm",
            "mlp.gate_up_proj": "mlp_gate_up",
            "mlp.down_proj": "mlp_down",
        },
    ),
    "gpt2": (
        "transformer.h",
        {
            "ln_1": "norm",
            "ln_1.bias": "norm",
            "attn.c_attn": "attention_qkv",
            "attn.c_attn.bias": "other",
            "attn.c_proj": "attention_output",
            "attn.c_proj.bias": "other",
            "ln_2": "norm",
            "ln_2.bias": "norm",
            "mlp.c_fc": "mlp_gate_up",
            "mlp.c_fc.bias": "other",
            "mlp.c_proj": "mlp_down",
            "mlp.c_proj.bias": "other",
        },
    ),
    "gpt_neox": (
        "gpt_neox.layers",
        {
            "input_layernorm": "norm",
            "input_layernorm.bias": "norm",
            "attention.query_key_value": "attention_qkv",
            "attention.query_key_value.bias": "other",
            "attention.dense": "attention_output",
            "attention.dense.bias": "other",
            "post_attention_layernorm": "norm",
            "post_attention_layernorm.bias": "norm",
            "mlp.dense_h_to_4h": "mlp_gate_up",
            "mlp.dense_h_to_4h.bias": "other",
            "mlp.dense_4h_to_h": "mlp_down",
            "mlp.dense_4h_to_h.bias": "other",
        },
    ),
    "opt": (
        "model.decoder.layers",
        {
            "self_attn_layer_norm": "norm",
            "self_attn_layer_norm.bias": "norm",
            **QKV_WITH_BIASES,
            "self_attn.out_proj": "attention_output",
            "self_attn.out_proj.bias": "other",
            "final_layer_norm": "norm",
            "final_layer_norm.bias": "norm",
            "fc1": "mlp_gate_up",
            "fc1.bias": "other",
            "fc2": "mlp_down",
            "fc2.bias": "other",
        },
    ),
    "qwen2_moe": (
        "model.layers",
        {
            **FIRST_NORM,
            **QKV_WITH_BIASES,
            **LLAMA_OUT,
            **SECOND_NORM,
            "mlp.gate": "router",
            "mlp.shared_expert_gate": "router",
            "mlp.experts.gate_up_proj": "expert",
            "mlp.experts.down_proj": "expert",
            "mlp.shared_expert.gate_proj": "mlp_gate_up",
            "mlp.shared_expert.up_proj": "mlp_gate_up",
            "mlp.shared_expert.down_proj": "mlp_down",
        },
    ),
}


# architecture -> roles of the weights before and after the blocks; the head is absent where it is tied by default
OUTSIDE = {
    "gpt2": ({"transformer.wte": "embedding", "transformer.wpe": "other"}, {"ln_f": "norm", "ln_f.bias": "norm"}),
    "gpt_neox": (
        {"gpt_neox.embed_in": "embedding"},
        {"final_layer_norm": "norm", "final_layer_norm.bias": "norm", "lm_head": "lm_head"},
    ),
    "opt": (
        {"model.decoder.embed_tokens": "embedding", "model.decoder.embed_positions": "other"},
        {"final_layer_norm": "norm", "final_layer_norm.bias": "norm"},
    ),
    **{name: ({"model.embed_tokens": "embedding"}, {"norm": "norm"}) for name in ("gemma", "gemma2", "gemma3")},
}


PLAIN_OUTSIDE = ({"model.embed_tokens": "embedding"}, {"norm": "norm", "lm_head": "lm_head"})


ARCHITECTURES = sorted(BLOCK_ROLES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_has_its_role_in_forward_order(architecture):
    blocks, roles = BLOCK_ROLES[architecture]
    before, after = OUTSIDE.get(architecture, PLAIN_OUTSIDE)
    root = blocks.rpartition(".")[0]
    expected = [(name, role, None) for name, role in before.items()]
    expected += [(f"{blocks}.{b}.{name}", role, b) for b in range(BLOCKS) for name, role in roles.items()]
    expected += [(name if name == "lm_head" else f"{root}.{name}", role, None) for name, role in after.items()]

    layers = catalogue_model(tiny_model(architecture), REF).layers

    assert [(layer.name, layer.role.value, layer.block) for layer in layers] == expected
    matrices = set(roles.values()) - {"norm", "other", "router"} | {"embedding", "lm_head"}
    assert [layer.name for layer in layers if layer.quantizable] == [n for n, role, _ in expected if role in matrices]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_is_counted_once(architecture):
    model = tiny_model(architecture)
    catalogue = catalogue_model(model, REF)

    assert catalogue.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert {id(get_weight(model, layer)) for layer in catalogue.layers} == {id(p) for p in model.parameters()}
    assert len(catalogue.by_name()) == len(catalogue.layers)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_order_is_the_one_in_which_a_forward_pass_calls_the_modules(architecture):
    model = tiny_model(architecture)
    # Left out: what the library calls in an order of its own (norms between q, k and v; the shared expert).
    own_order = ("q_norm", "k_norm", "shared_expert")
    layers = [layer for layer in catalogue_model(model, REF).layers if not any(w in layer.name for w in own_order)]
    modules = [layer.name for layer in layers if layer.parameter == f"{layer.name}.weight"]
    called = []
    for name in modules:
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.append(name))

    model(input_ids=torch.arange(8).unsqueeze(0))

    assert called == modules


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "gpt2", "opt", "mixtral"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_stored_once_under_the_embedding(architecture, tied):
    model = tiny_model(architecture, tie_word_embeddings=tied)
    layers = catalogue_model(model, REF).layers

    assert layers[0].tied_names == (("lm_head",) if tied else ())
    assert ("lm_head" in [layer.name for layer in layers]) is not tied
    assert sum(layer.parameters for layer in layers) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("llama", {"self_attn:qkv": ("q_proj", "k_proj", "v_proj"), "mlp:gate_up": ("gate_proj", "up_proj")}),
        ("opt", {"self_attn:qkv": ("q_proj", "k_proj", "v_proj")}),
        ("phi3", {}),
        ("gpt2", {}),
        (
            "qwen2_moe",
            {
                "self_attn:qkv": ("q_proj", "k_proj", "v_proj"),
                "mlp.experts:experts": ("gate_up_proj", "down_proj"),
                "mlp.shared_expert:gate_up": ("gate_proj", "up_proj"),
            },
        ),
    ],
)
def test_layers_that_engines_fuse_share_a_key(architecture, expected):
    groups = {}
    for layer in catalogue_model(tiny_model(architecture), REF).layers:
        if layer.fused_with and layer.block == 1:
            key = layer.fused_with.partition("layers.1.")[2]
            assert layer.fusion == key.partition(":")[2]
            groups[key] = (*groups.get(key, ()), layer.name.rpartition(".")[2])
    assert groups == expected


@pytest.mark.parametrize(("architecture", "used"), [("mixtral", 2), ("qwen2_moe", 2), ("llama", None)])
def test_a_mixture_of_experts_says_how_many_a_token_uses(architecture, used):
    assert catalogue_model(tiny_model(architecture), REF).experts_per_token == used


@pytest.mark.parametrize(
    ("architecture", "layer", "axis", "matrix"),
    [
        ("llama", "model.layers.0.mlp.down_proj", -1, (64, 128)),
        ("llama", "model.embed_tokens", -1, (256, 64)),
        ("gpt2", "transformer.h.0.mlp.c_proj", 0, (64, 256)),
        ("gpt2", "transformer.h.0.attn.c_proj", 0, (64, 64)),
        ("mixtral", "model.layers.0.mlp.experts.gate_up_proj", -1, (4 * 256, 64)),
        ("mixtral", "model.layers.0.mlp.experts.down_proj", -1, (4 * 64, 128)),
        ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj", 1, (4 * 256, 64)),
        ("gpt_oss", "model.layers.0.mlp.experts.down_proj", 1, (4 * 64, 128)),
        ("llama4", "model.layers.0.feed_forward.experts.gate_up_proj", 1, (4 * 256, 64)),
        ("llama4", "model.layers.0.feed_forward.experts.down_proj", 1, (4 * 64, 128)),
    ],
)
def test_the_input_axis_is_the_one_the_layer_contracts(architecture, layer, axis, matrix):
    found = catalogue_model(tiny_model(architecture), REF).by_name()[layer]
    assert (found.input_axis, found.matrix_shape) == (axis, matrix)


def test_square_fused_experts_take_their_axis_from_a_sibling():
    square = tiny_model("llama4", intermediate_size=64)
    layers = catalogue_model(square, REF).by_name()
    assert layers["model.layers.0.feed_forward.experts.down_proj"].shape == (4, 64, 64)
    assert layers["model.layers.0.feed_forward.experts.down_proj"].input_axis == 1

    for block in square.model.layers:
        del block.feed_forward.experts.gate_up_proj
    with pytest.raises(ModelError, match="input axis of its fused experts"):
        catalogue_model(square, REF)


def test_experts_kept_as_separate_modules_are_not_mistaken_for_blocks():
    model = tiny_model("mixtral", num_local_experts=8)
    donor = tiny_model("llama", num_hidden_layers=8)
    for block in model.model.layers:
        block.mlp.experts = nn.ModuleList(block.mlp for block in donor.model.layers)
        donor = tiny_model("llama", num_hidden_layers=8, seed=1)

    catalogue = catalogue_model(model, REF)

    experts = [layer for layer in catalogue.layers if layer.role == "expert"]
    assert catalogue.attention.blocks == BLOCKS
    assert len(experts) == BLOCKS * 8 * 3
    assert {layer.fused_with for layer in experts if layer.block == 1} == {"model.layers.1.mlp.experts:experts"}


def test_shapes_decide_where_names_are_foreign():
    model = tiny_model("gpt_neox")
    for block in model.gpt_neox.layers:
        for part, old, new in (
            (block.attention, "query_key_value", "mixer"),
            (block.attention, "dense", "merge"),
            (block.mlp, "dense_h_to_4h", "widen"),
            (block.mlp, "dense_4h_to_h", "narrow"),
        ):
            setattr(part, new, getattr(part, old))
            delattr(part, old)

    roles = {layer.name: layer.role.value for layer in catalogue_model(model, REF).layers if layer.quantizable}

    assert {name.partition("layers.1.")[2]: role for name, role in roles.items() if "layers.1." in name} == {
        "attention.mixer": "attention_qkv",
        "attention.merge": "attention_output",
        "mlp.widen": "mlp_gate_up",
        "mlp.narrow": "mlp_down",
    }


def test_a_gate_is_a_router_only_beside_experts():
    model = tiny_model("llama")
    for block in model.model.layers:
        block.mlp.gate = block.mlp.gate_proj
        del block.mlp.gate_proj
    layer = catalogue_model(model, REF).by_name()["model.layers.0.mlp.gate"]
    assert (layer.role, layer.quantizable) == ("mlp_gate_up", True)


@pytest.mark.parametrize(
    ("architecture", "fused", "alone"),
    [
        ("deepseek_v3", {"q_a_proj", "kv_a_proj_with_mqa"}, {"q_b_proj", "kv_b_proj"}),
        ("qwen3_next", {"in_proj_qkvz", "in_proj_ba"}, {"conv1d"}),
        ("bamba", set(), {"in_proj", "conv1d"}),
    ],
)
def test_only_projections_of_the_hidden_state_are_fused(architecture, fused, alone):
    layers = [one for one in catalogue_model(tiny_model(architecture), REF).layers if one.block == 0]
    by_name = {layer.name.rpartition(".")[2]: layer for layer in layers}
    assert {name for name, layer in by_name.items() if layer.fusion == "qkv"} == fused
    assert all(by_name[name].fusion is None for name in alone)
    assert all(by_name[name].quantizable for name in (fused | alone) - {"conv1d"})
    assert "conv1d" not in by_name or not by_name["conv1d"].quantizable
