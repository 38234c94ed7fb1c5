"""Tensor parallelism: every GPU holds the share that Megatron-LM would give it, and a solver's sum stays exact."""

import random
from fnmatch import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.catalogue import catalogue_model
from advisor.errors import PlanError
from advisor.knowledge import find_engine, find_hardware
from advisor.memory import activation_bytes, estimate_memory, kv_cache_bytes, overhead_bytes, weights_bytes
from advisor.planner.candidates import prepare
from advisor.planner.planning import make_plan
from advisor.sharding import refuse_split, shard
from advisor.types import Budget, ModelRef, Role
from tests import planning_cases
from tests.tiny_models import tiny_model

REF = ModelRef(source="tiny", kind="folder", name="tiny")
VLLM = find_engine("vllm")
# Its 9 heads, 3 K/V heads and 1,536 MLP features come apart over 3 GPUs.
CASE = planning_cases.catalogue(blocks=2)


def of(architecture: str, **overrides):
    return catalogue_model(tiny_model(architecture, **overrides), REF)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "mixtral", "qwen3_moe", "deepseek_v3"])
def test_layers_are_cut_along_the_axis_that_transformers_own_plan_cuts(architecture):
    model = tiny_model(architecture)
    known, checked = catalogue_model(model, REF), 0
    for layer in known.layers:
        name = layer.name.removeprefix("model.")
        style = next((s for pattern, s in model.config.base_model_tp_plan.items() if fnmatch(name, pattern)), "")
        if style in ("colwise", "packed_colwise", "rowwise") and layer.quantizable:
            expected = list(layer.shape)
            expected[-1 if style == "rowwise" else -2] //= 2
            assert list(shard(layer, known, 2).shape) == expected, name
            checked += 1
    assert checked >= 6


def test_norms_routers_and_biases_are_on_every_gpu():
    for known in (of("qwen2_moe"), of("qwen3"), of("bamba")):
        whole = [layer for layer in known.layers if not layer.quantizable]
        assert {layer.role for layer in whole} >= {Role.NORM}
        assert all(shard(layer, known, 2) == layer for layer in whole)


def test_a_gpu_beyond_the_kv_heads_keeps_a_whole_one():
    known = of("llama", num_attention_heads=8, num_key_value_heads=2, hidden_size=64)
    layers = known.by_name()
    for gpus, queries, keys in ((2, 32, 8), (4, 16, 8), (8, 8, 8)):
        assert shard(layers["model.layers.0.self_attn.q_proj"], known, gpus).shape == (queries, 64)
        assert shard(layers["model.layers.0.self_attn.v_proj"], known, gpus).shape == (keys, 64)
        assert kv_cache_bytes(known, 100, 1, 16, gpus) == kv_cache_bytes(known, 100, 1, 16) // 2


def test_fused_queries_keys_and_values_are_cut_one_by_one():
    known = of("phi3", num_attention_heads=8, num_key_value_heads=2, hidden_size=64)
    fused = known.by_name()["model.layers.0.self_attn.qkv_proj"]
    assert fused.shape == ((8 + 2 + 2) * 8, 64)
    assert shard(fused, known, 4).shape == ((2 + 1 + 1) * 8, 64)


def test_the_latent_of_latent_attention_and_what_makes_it_are_on_every_gpu():
    known = of("deepseek_v3")
    layers = known.by_name()
    held = {name: shard(layers[f"model.layers.0.self_attn.{name}"], known, 4).shape for name in
            ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")}  # fmt: skip
    assert held == {
        "q_a_proj": (32, 64),
        "q_b_proj": (24, 32),
        "kv_a_proj_with_mqa": (40, 64),
        "kv_b_proj": (32, 32),
        "o_proj": (64, 16),
    }
    assert kv_cache_bytes(known, 100, 3, 16, 4) == kv_cache_bytes(known, 100, 3, 16)


def test_states_of_linear_attention_are_shared_out_with_their_heads():
    known = of("qwen3_next")
    assert 2 * kv_cache_bytes(known, 100, 1, 16, 2) == kv_cache_bytes(known, 100, 1, 16)


@given(st.sampled_from(CASE.layers), st.integers(1, 64))
def test_shares_cover_a_layer_and_shrink_with_more_gpus(layer, gpus):
    share = shard(layer, CASE, gpus)
    assert share.parameters <= layer.parameters <= gpus * share.parameters
    assert shard(layer, CASE, gpus + 1).parameters <= share.parameters
    assert share.model_copy(update={"shape": layer.shape}) == layer


@given(st.integers(1, 8192), st.integers(1, 64), st.sampled_from([1, 3]))
def test_more_gpus_never_need_more_of_each(context, sequences, gpus):
    one = estimate_memory(CASE, {}, VLLM, find_hardware("l4"), budget(context, sequences, 1))
    several = estimate_memory(CASE, {}, VLLM, find_hardware("l4"), budget(context, sequences, gpus))
    for part in ("weights_bytes", "kv_cache_bytes", "activation_bytes", "total_bytes"):
        assert getattr(several, part) <= getattr(one, part) <= gpus * getattr(several, part)
    assert several.overhead_bytes == one.overhead_bytes == overhead_bytes(VLLM)
    assert several.model_weights_bytes == one.weights_bytes == one.model_weights_bytes
    assert several.all_gpus_bytes == gpus * several.total_bytes


def budget(context: int, sequences: int, gpus: int) -> Budget:
    return Budget(vram_bytes=8 * 2**30, context=context, sequences=sequences, gpus=gpus)


def test_activations_are_divided_but_for_the_hidden_state_and_the_logits():
    one, three = activation_bytes(CASE, 4096, 1), activation_bytes(CASE, 4096, 1, 3)
    assert one / 3 < three < one


@given(st.integers(0, 2**32), st.sampled_from([1, 3]), st.sampled_from(["vllm", "llama.cpp"]))
def test_the_solvers_sum_is_the_memory_of_the_plan(seed, gpus, engine):
    gpus = gpus if engine == "vllm" else 1
    request = planning_cases.request(engine, vram_bytes=2 * 2**30, gpus=gpus)
    case = prepare(planning_cases.profile(2), request)
    chance = random.Random(seed)
    chosen = [chance.choice(options) for options in case.options]
    formats = {
        layer.name: option.format.name
        for group, option in zip(case.groups, chosen, strict=True)
        for layer in group.layers
    }
    memory = estimate_memory(case.catalogue, formats, case.context.engine, case.context.hardware, request.budget)
    assert case.fixed_bytes + sum(option.cost for option in chosen) == memory.total_bytes


def test_a_limit_on_the_weights_counts_them_once_however_many_gpus_share_them():
    sensitivity = planning_cases.profile(2)
    whole = weights_bytes(sensitivity.catalogue, {}, VLLM)
    plan = make_plan(sensitivity, planning_cases.request("vllm", weight_bytes=whole // 2, gpus=3))
    assert plan.memory.weights_bytes < plan.memory.model_weights_bytes <= whole // 2


def test_a_model_that_no_gpu_holds_alone_fits_on_three():
    sensitivity = planning_cases.profile(2)
    limits = {"vram_bytes": int(2.3 * 10**9), "context": 8192, "sequences": 64}
    alone, shared = (
        estimate_memory(sensitivity.catalogue, {}, VLLM, find_hardware("l4"), Budget(**limits, gpus=gpus))
        for gpus in (1, 3)
    )
    assert shared.fits and not alone.fits


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        (2, "9 attention heads: it can be over 1, 3"),
        (9, "1536 MLP features"),
        (5, "9 attention heads"),
    ],
)
def test_gpus_that_do_not_divide_the_model_are_refused_with_those_that_do(gpus, said):
    with pytest.raises(PlanError, match=said):
        refuse_split(CASE, VLLM, gpus)
    refuse_split(CASE, VLLM, 3)


def test_kv_heads_that_do_not_come_apart_are_refused():
    known = of("llama", num_attention_heads=6, num_key_value_heads=3, hidden_size=96, intermediate_size=192)
    refuse_split(known, VLLM, 6)
    with pytest.raises(PlanError, match="over 2 GPUs, which do not divide its 3 K/V heads: it can be over 1, 3, 6"):
        refuse_split(known, VLLM, 2)


def test_an_engine_without_tensor_parallelism_is_refused():
    refuse_split(CASE, find_engine("transformers"), 1)
    with pytest.raises(PlanError, match="optimum-quanto does not split layers over several GPUs here: plan for one"):
        refuse_split(CASE, find_engine("transformers"), 3)
