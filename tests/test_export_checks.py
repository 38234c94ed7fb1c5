"""What an engine would load wrongly is refused by name, and the nearest plan is one that it loads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor import verify
from advisor.catalogue import catalogue_model
from advisor.errors import UnfitPlan
from advisor.export_checks import nearest_plan, refuse_unfit, unfit
from advisor.export_size import size_fields
from advisor.formats.table import packed_bytes
from advisor.knowledge import find_engine, find_format, find_hardware, find_target, formats
from advisor.memory import estimate_memory
from advisor.types import Budget, ModelRef, Role
from tests.planning_cases import plan_for
from tests.tiny_models import tiny_model

VLLM = find_engine("vllm")
QKV = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
DOWN, UP, GATE = (f"model.layers.0.mlp.{name}_proj" for name in ("down", "up", "gate"))


def catalogue_of(architecture: str):
    with torch.device("meta"):
        model = tiny_model(architecture, hidden_size=128, intermediate_size=384).to(torch.bfloat16)
    return catalogue_model(model, ModelRef(source="tiny", kind="folder", name="tiny"))


CATALOGUES = {name: catalogue_of(name) for name in ("llama", "qwen3_moe", "gpt2")}
LLAMA = CATALOGUES["llama"]


@pytest.mark.parametrize(
    ("assignments", "reason", "nearest"),
    [
        ({DOWN: "int2_g64"}, "no kernel for int2_g64 (2 bits)", {DOWN: "int4_g128"}),
        ({DOWN: "int3_g64"}, "no kernel for int3_g64 (3 bits)", {DOWN: "int4_g128"}),
        ({DOWN: "int4_g64_asym"}, "4 bits need symmetric formats, and int4_g64_asym is not", {DOWN: "int4_g32"}),
        ({DOWN: "fp16"}, "what is not quantized stays in the model's own bf16, not fp16", {DOWN: "bf16"}),
        ({"model.embed_tokens": "int8"}, "embeddings are not quantized", {"model.embed_tokens": "bf16"}),
        (
            dict(zip(QKV, ["int4_g64", "int8", "int4_g64"], strict=True)),
            "they share one kernel (qkv), so all need one format, not int4_g64 and int8",
            dict.fromkeys(QKV, "int8"),
        ),
        ({GATE: "int4_g64"}, "(gate_up), so all need one format, not bf16 and int4_g64", {GATE: "bf16", UP: "bf16"}),
        ({GATE: "int8", UP: "int8_w8a8"}, "not int8 and int8_w8a8", {GATE: "int8", UP: "int8"}),
    ],
)
def test_each_reason_is_told_with_the_layer_and_the_nearest_plan(assignments, reason, nearest):
    with pytest.raises(UnfitPlan) as refused:
        refuse_unfit(LLAMA, assignments, VLLM)
    assert reason in str(refused.value) and next(iter(assignments)) in str(refused.value)
    assert refused.value.nearest == nearest


def test_experts_have_fewer_kernels_than_linear_modules():
    experts = {layer.name: "fp8_e4m3" for layer in CATALOGUES["qwen3_moe"].quantizable if layer.role is Role.EXPERT}
    with pytest.raises(UnfitPlan, match="no kernel for experts in fp8_e4m3") as refused:
        refuse_unfit(CATALOGUES["qwen3_moe"], experts, VLLM)
    assert set(refused.value.nearest.values()) == {"int8"}


def test_what_the_engine_loads_is_not_refused_and_stays_as_it_is():
    whole = dict.fromkeys(QKV, "int4_g64") | {DOWN: "fp8_w8a8", UP: "int8", GATE: "int8"}
    assert unfit(LLAMA, whole, VLLM) == {}
    assert nearest_plan(LLAMA, whole, VLLM) == whole


def test_fused_layers_may_differ_where_the_engine_fuses_nothing():
    assert unfit(LLAMA, {GATE: "int4_g64"}, find_engine("transformers")) == {}


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_nearest_plan_is_loaded_and_takes_no_bytes_from_a_layer(data):
    catalogue = CATALOGUES[data.draw(st.sampled_from(sorted(CATALOGUES)))]
    names = [name for name, fmt in formats().items() if fmt.quantized] + ["bf16"]
    chosen = {
        layer.name: data.draw(st.sampled_from(names)) for layer in catalogue.quantizable if data.draw(st.booleans())
    }
    nearest = nearest_plan(catalogue, chosen, VLLM)
    assert unfit(catalogue, nearest, VLLM) == {}
    layers = catalogue.by_name()
    for name, fmt in chosen.items():
        assert packed_bytes(find_format(nearest[name]), layers[name]) >= packed_bytes(find_format(fmt), layers[name])


@pytest.mark.parametrize(
    ("engine", "to", "limit", "note", "warning"),
    [
        ("transformers", "quanto", {"weight_bits": 7}, "", ""),
        ("transformers", "quanto", {"weight_bits": 5}, "", "on average, and the plan was limited to 5: plan again"),
        ("transformers", "simulated", {"weight_bits": 6}, "more than planned: the files hold values that are no", ""),
        ("transformers", "torchao", {"weight_bytes": 500_000}, "of 4 bits in a byte each", "limited to 488.3 KiB"),
        ("transformers", "mlx", {"weight_bits": 9}, "8.50 bits a weight for int8, and Transformers with", ""),
        ("transformers-torchao-cpu", "mlx", {"weight_bits": 9}, "less than planned: MLX (mlx-lm) takes 4.50 bits", ""),
        ("transformers", "torchao", {"vram_bytes": 2**20}, "4 bits in a byte", "with cache and activations the files"),
    ],
)
def test_what_files_take_is_told_where_it_is_not_what_was_planned(engine, to, limit, note, warning):
    blocks = [layer.name for layer in LLAMA.quantizable if layer.block is not None]
    assignments = {name: ("int8", "int4_g64")[i % 2] for i, name in enumerate(blocks)}
    own, target = find_engine(engine), find_target(to)
    request = plan_for().request.model_copy(update={"engine": engine, "budget": Budget(**limit, context=64)})
    memory = estimate_memory(LLAMA, assignments, own, find_hardware("h100-sxm-80gb"), request.budget)
    plan = plan_for().model_copy(update={"assignments": assignments, "request": request, "memory": memory})
    stored = verify.expected(LLAMA, plan, find_engine(target.stored_by))
    if not target.packed:
        stored = verify.expected(LLAMA, plan.model_copy(update={"assignments": {}}), own)
    found = size_fields(plan, LLAMA, target, stored)
    assert (note in found["size_note"], warning in found["over_limit"]) == (True, True), found
    assert (bool(note), bool(warning)) == (bool(found["size_note"]), bool(found["over_limit"])), found
