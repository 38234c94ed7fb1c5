"""What each rule forbids and advises, against the product's own tables of devices, engines, formats and roles."""

import itertools
from dataclasses import replace

import pytest

from advisor.errors import KnowledgeError, PlanError
from advisor.knowledge import find_format, formats, hardware
from advisor.planner.groups import decision_groups
from advisor.planner.rules import FLOOR_PRICE, RULES, allowed, judge
from advisor.types import Role
from tests.planning_cases import catalogue, layer, request
from tests.rule_cases import BLOCK, context, named, said

MATRIX = layer("matrix", Role.MLP_DOWN, (64, 1536))


def test_every_rule_has_a_name_of_its_own():
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.name == rule.check.__name__ and rule.check.__doc__ for rule in RULES)


def test_whatever_a_rule_says_has_a_source():
    wishes = {"locks": {"blocks 0-0": "int8"}, "excluded": ("block 1",), "floor_bits": {Role.MLP_DOWN: 8}}
    spoken = [
        verdict
        for engine, sequences in itertools.product(("vllm", "transformers"), (1, 64))
        for one in [*catalogue().layers, MATRIX]
        for fmt in formats().values()
        for verdict in judge(
            one, fmt, context(engine=engine, formats=("int8",), weight_bits=5, sequences=sequences, **wishes)
        )
    ]
    one = replace(context(engine="transformers-bitsandbytes"), only="nf4_g64")
    spoken += judge(MATRIX, find_format("int8"), one)  # one_format and runtime_rounding
    assert {verdict.rule for verdict in spoken} == {rule.name for rule in RULES}
    assert all(verdict.source and verdict.reason for verdict in spoken)
    assert all(verdict.allowed or not (verdict.advice or verdict.price) for verdict in spoken)


def test_a_format_that_the_device_cannot_compute_is_forbidden():
    verdict = said("hardware_support", MATRIX, "fp8_e4m3", hardware="m4-max-128gb", engine="mlx")
    assert not verdict.allowed
    assert "M4 Max" in verdict.reason and "FP8" in verdict.reason and verdict.source


def test_a_format_that_the_device_only_stores_is_allowed_with_advice():
    verdict = said("hardware_support", MATRIX, "int4_g64")
    assert verdict.allowed and verdict.advice
    assert "saves memory, not arithmetic" in verdict.reason
    assert said("hardware_support", MATRIX, "int8") is None


def test_where_the_guide_differs_from_the_hardware_both_are_told():
    assert hardware()["h100-sxm-80gb"].guide["int4"] == "native"
    assert "the guide says: native" in said("hardware_support", MATRIX, "int4_g64").reason


def test_a_plain_dtype_that_a_device_lacks_is_never_forbidden():
    without_bf16 = [name for name, device in hardware().items() if device.support["bf16"] in ("none", "emulated")]
    assert without_bf16
    for name in without_bf16:
        engine = "mlx" if hardware()[name].vendor == "apple" else "transformers"
        verdict = said("hardware_support", MATRIX, "bf16", hardware=name, engine=engine)
        assert verdict.allowed and verdict.advice


@pytest.mark.parametrize(("engine", "fmt"), [("vllm", "int3_g64"), ("transformers", "nf4_g64"), ("vllm", "int2_g64")])
def test_a_format_that_the_engine_cannot_store_is_forbidden(engine, fmt):
    verdict = said("engine_support", MATRIX, fmt, engine=engine)
    assert not verdict.allowed and "does not store" in verdict.reason


def test_engines_forbid_the_roles_that_they_do_not_quantize():
    embedding = layer("embed", Role.EMBEDDING, (1024, 576))
    head = layer("lm_head", Role.LM_HEAD, (1024, 576))
    experts = layer("experts", Role.EXPERT, (4, 512, 576))
    for one in (embedding, head, experts):
        assert "does not quantize" in said("role_not_quantized", one, "int8").reason
    assert said("role_not_quantized", experts, "int8", engine="vllm") is None
    assert "no kernel for experts" in said("role_not_quantized", experts, "fp8_e4m3", engine="vllm").reason
    for one in (embedding, head):
        assert said("role_not_quantized", one, "int8", engine="mlx", hardware="m4-max-128gb") is None
    assert said("role_not_quantized", embedding, "bf16") is None


@pytest.mark.parametrize("role", [Role.NORM, Role.ROUTER])
def test_norms_and_routers_are_never_quantized(role):
    verdict = said("stays_high", layer("one", role, (8, 576)), "int8", engine="vllm")
    assert not verdict.allowed and "never quantized" in verdict.reason and verdict.source
    assert said("stays_high", layer("one", role, (8, 576)), "bf16", engine="vllm") is None


def test_activations_are_rounded_only_where_the_device_has_matrix_units_for_it():
    native = {"int8_w8a8": "a100-sxm-80gb", "fp8_w8a8": "h100-sxm-80gb"}
    for fmt, device in native.items():
        assert said("quantized_activations", MATRIX, fmt, engine="vllm", hardware=device) is None
    verdict = said("quantized_activations", MATRIX, "fp8_w8a8", engine="vllm", hardware="a100-sxm-80gb")
    assert not verdict.allowed and "no matrix units for FP8 W8A8" in verdict.reason
    assert said("quantized_activations", MATRIX, "fp8_e4m3", engine="vllm", hardware="a100-sxm-80gb") is None


def test_rounding_that_the_engine_does_at_run_time_and_no_score_counts_is_told():
    verdict = said("runtime_rounding", MATRIX, "int8", engine="transformers-bitsandbytes")
    assert verdict.allowed and verdict.advice and not verdict.price
    assert "rounds activations to 8 bits" in verdict.reason and "linear8bit" in verdict.source
    for engine, fmt in (("transformers-bitsandbytes", "nf4_g64"), ("transformers", "int8"), ("vllm", "int8_w8a8")):
        assert said("runtime_rounding", MATRIX, fmt, engine=engine) is None


@pytest.mark.parametrize("fmt", ["int4_g32", "int4_g64", "int4_g128", "int4_g64_asym"])
def test_torchaos_int4_kernel_needs_a_hopper_gpu(fmt):
    verdict = said("engine_support", MATRIX, fmt, engine="transformers-torchao", hardware="t4")
    assert not verdict.allowed and "it takes compute capability 9" in verdict.reason
    for device in ("a100-sxm-80gb", "rtx-3090", "b200-180gb"):
        assert not said("engine_support", MATRIX, fmt, engine="transformers-torchao", hardware=device).allowed
    for device in ("h100-sxm-80gb", "h200-sxm-141gb"):
        assert said("engine_support", MATRIX, fmt, engine="transformers-torchao", hardware=device) is None
    assert said("engine_support", MATRIX, "int8", engine="transformers-torchao", hardware="t4") is None


def test_what_has_no_input_of_its_own_cannot_have_it_rounded():
    experts = layer("experts", Role.EXPERT, (4, 512, 576), parameter="experts")
    for one, why in ((named("model.embed_tokens"), "looks rows up"), (experts, "no module of its own")):
        verdict = said("quantized_activations", one, "int8_w8a8", engine="vllm")
        assert not verdict.allowed and why in verdict.reason
        assert said("quantized_activations", one, "int8", engine="vllm") is None


@pytest.mark.parametrize(
    ("sequences", "fmt", "speaks"),
    [(1, "int8_w8a8", "waits for weights"), (4, "fp8_w8a8", "4 sequences at once"), (5, "int8_w8a8", None)]
    + [(16, "int4_g64", "FP8 W8A8 or INT8 W8A8 computes in 8 bits"), (15, "int4_g64", None), (16, "int8_w8a8", None)]
    + [(1, "int4_g64", None), (16, "bf16", None)],
)
def test_the_number_of_sequences_says_which_kind_of_format_is_fast(sequences, fmt, speaks):
    verdict = said("batch_size", MATRIX, fmt, engine="vllm", weight_bits=5, sequences=sequences)
    assert verdict is None if speaks is None else (speaks in verdict.reason and verdict.advice and verdict.allowed)


def test_many_sequences_bring_no_advice_that_engine_or_device_cannot_follow():
    many = {"weight_bits": 5, "sequences": 64}
    assert said("batch_size", MATRIX, "int8", engine="transformers", **many) is None
    on_ampere = said("batch_size", MATRIX, "int4_g64", engine="vllm", hardware="a100-sxm-80gb", **many)
    assert "INT8 W8A8 computes" in on_ampere.reason and "FP8" not in on_ampere.reason


def test_fused_layers_are_told_of_their_partners_where_the_engine_fuses():
    verdict = said("fused_group", named(f"{BLOCK}.self_attn.q_proj"), "int4_g64", engine="vllm")
    assert verdict.advice and "in one kernel with k_proj, v_proj" in verdict.reason
    assert said("fused_group", named(f"{BLOCK}.self_attn.o_proj"), "int4_g64", engine="vllm") is None
    assert said("fused_group", named(f"{BLOCK}.self_attn.q_proj"), "int4_g64") is None


def test_a_tied_embedding_needs_an_engine_that_quantizes_the_output_too():
    tied = context(engine="llama.cpp")
    half = type(tied)(
        tied.hardware, tied.engine.model_copy(update={"quantizes_lm_head": False}), catalogue(), request()
    )
    embedding = named("model.embed_tokens")
    assert allowed(judge(embedding, find_format("int8"), tied))
    assert "it is also lm_head" in judge(embedding, find_format("int8"), half)[-1].reason


def test_group_sizes_must_divide_the_input_features():
    verdict = said("group_size", named(f"{BLOCK}.self_attn.q_proj"), "int4_g128")
    assert not verdict.allowed
    assert verdict.reason.startswith("576 is not divisible by 128, so INT4 group 128")
    assert said("group_size", named(f"{BLOCK}.mlp.down_proj"), "int4_g128") is None
    assert said("group_size", named(f"{BLOCK}.self_attn.q_proj"), "int8") is None


def test_groups_must_also_divide_as_the_engine_stores_them():
    # llama.cpp stores per-channel INT8 in blocks of 32: a layer that no block divides cannot have it there.
    odd = layer("odd", Role.OTHER, (8, 80))
    assert said("group_size", odd, "int8") is None
    assert "80 is not divisible by 32" in said("group_size", odd, "int8", engine="llama.cpp").reason


@pytest.mark.parametrize(("floors", "forbids", "advises"), [("off", 0, 0), ("advise", 0, 1), ("enforce", 1, 0)])
def test_role_floors_are_silent_advice_or_a_ban_as_requested(floors, forbids, advises):
    attention = named(f"{BLOCK}.self_attn.o_proj")
    verdicts = [
        v for v in judge(attention, find_format("int4_g64"), context(role_floors=floors)) if v.rule == "role_floor"
    ]
    assert sum(not v.allowed for v in verdicts) == forbids
    assert sum(v.advice and v.reason.endswith("advice only") for v in verdicts) == advises
    assert said("role_floor", attention, "int8", role_floors=floors) is None
    assert said("role_floor", named(f"{BLOCK}.mlp.up_proj"), "int4_g64", role_floors=floors) is None


def test_a_floor_of_ones_own_replaces_the_guides_for_its_role_alone():
    down, attention = named(f"{BLOCK}.mlp.down_proj"), named(f"{BLOCK}.self_attn.o_proj")
    own = {"floor_bits": {Role.MLP_DOWN: 8, Role.ATTENTION_OUTPUT: 0}, "role_floors": "enforce"}
    verdict = said("role_floor", down, "int4_g64", **own)
    assert not verdict.allowed and "you ask for at least 8 bits" in verdict.reason and verdict.source == "your floor"
    assert said("role_floor", attention, "int4_g64", **own) is None
    assert said("role_floor", named(f"{BLOCK}.self_attn.q_proj"), "int4_g64", **own).source != "your floor"
    assert said("role_floor", down, "int4_g64", **own | {"role_floors": "advise"}).advice
    assert said("role_floor", down, "int4_g64", **own | {"role_floors": "off"}) is None


def test_only_advised_floors_have_a_price():
    attention = named(f"{BLOCK}.self_attn.o_proj")
    assert said("role_floor", attention, "int4_g64").price == FLOOR_PRICE
    assert said("role_floor", attention, "int4_g64", role_floors="enforce").price == 0
    priced = [v for name in formats() for v in judge(attention, find_format(name), context(engine="vllm")) if v.price]
    assert {v.rule for v in priced} == {"role_floor"}


def test_formats_outside_the_list_are_forbidden_unless_locked():
    up, down = named(f"{BLOCK}.mlp.up_proj"), named(f"{BLOCK}.mlp.down_proj")
    wishes = {"formats": ("int8",), "locks": {down.name: "int4_g64"}}
    assert "not among the formats" in said("chosen_formats", up, "int4_g64", **wishes).reason
    for one, fmt in ((up, "int8"), (up, "bf16"), (down, "int4_g64")):
        assert said("chosen_formats", one, fmt, **wishes) is None


def test_an_engine_that_does_not_run_on_the_device_is_refused():
    with pytest.raises(PlanError, match=r"vLLM .* does not run on .*M4 Max"):
        context(engine="vllm", hardware="m4-max-128gb")
    with pytest.raises(KnowledgeError, match="h100-sxm-80gb"):
        context(hardware="h100-sxm-80g")


# --------------------------------------------------------------------------------------------- groups


def test_layers_are_decided_together_exactly_where_the_engine_fuses_them():
    model = catalogue(1)
    names = [one.name for one in model.quantizable]
    fused = decision_groups(model, context(engine="vllm").engine, names)
    assert [[one.name.rsplit(".", 1)[-1] for one in group.layers] for group in fused] == [
        ["embed_tokens"],
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    assert [group.name for group in decision_groups(model, context().engine, reversed(names))] == names
