"""What each rule forbids and advises, against the product's own tables of devices, engines, formats and roles."""

import pytest

from advisor.errors import KnowledgeError, PlanError
from advisor.knowledge import find_format, hardware
from advisor.rules import RULES, allowed, context_for, decision_groups, judge, refuse_impossible_locks
from advisor.types import Role
from tests.planning_cases import catalogue, layer, request

BLOCK = "model.layers.0"
MATRIX = layer("matrix", Role.MLP_DOWN, (64, 1536))


def context(**fields):
    return context_for(catalogue(), request(**fields))


def said(rule, one, fmt, **fields):
    """The verdict of one rule, None when it is silent."""
    spoken = [v for v in judge(one, find_format(fmt), context(**fields)) if v.rule == rule]
    return spoken[0] if spoken else None


def named(name):
    return catalogue().by_name()[name]


def test_every_rule_has_a_name_of_its_own():
    assert len({rule.name for rule in RULES}) == len(RULES)


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
    for one in (embedding, head):
        assert said("role_not_quantized", one, "int8", engine="mlx", hardware="m4-max-128gb") is None
    assert said("role_not_quantized", embedding, "bf16") is None


@pytest.mark.parametrize("role", [Role.NORM, Role.ROUTER])
def test_norms_and_routers_are_never_quantized(role):
    verdict = said("role_not_quantized", layer("one", role, (8, 576)), "int8", engine="vllm")
    assert not verdict.allowed and "never quantized" in verdict.reason


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
    assert sum(v.advice for v in verdicts) == advises
    assert said("role_floor", attention, "int8", role_floors=floors) is None
    assert said("role_floor", named(f"{BLOCK}.mlp.up_proj"), "int4_g64", role_floors=floors) is None


def test_an_engine_that_does_not_run_on_the_device_is_refused():
    with pytest.raises(PlanError, match=r"vLLM .* does not run on .*M4 Max"):
        context(engine="vllm", hardware="m4-max-128gb")
    with pytest.raises(KnowledgeError, match="h100-sxm-80gb"):
        context(hardware="h100-sxm-80g")


# ---------------------------------------------------------------------------------------------- locks


def test_a_lock_leaves_one_format_and_says_who_wanted_it():
    name = f"{BLOCK}.self_attn.o_proj"
    locks = {name: "int8"}
    assert said("lock", named(name), "int8", locks=locks) is None
    assert said("lock", named(name), "int4_g64", locks=locks).reason == "Locked by you to INT8 per channel"
    assert not said("lock", named(name), "bf16", locks=locks).allowed
    assert said("lock", named(f"{BLOCK}.mlp.up_proj"), "int4_g64", locks=locks) is None


def test_an_expression_locks_every_layer_whose_whole_name_it_matches():
    held = context(locks={r".*\.o_proj": "int8"}).locks
    assert set(held) == {f"model.layers.{block}.self_attn.o_proj" for block in (0, 1)}
    with pytest.raises(PlanError, match="matches no layer"):
        _ = context(locks={"o_proj": "int8"}).locks


def test_an_exact_name_wins_over_an_expression():
    name = f"{BLOCK}.self_attn.o_proj"
    for locks in ({name: "bf16", r".*\.o_proj": "int8"}, {r".*\.o_proj": "int8", name: "bf16"}):
        held = context(locks=locks).locks
        assert (held[name].format, held["model.layers.1.self_attn.o_proj"].format) == ("bf16", "int8")


@pytest.mark.parametrize(
    ("locks", "sentence"),
    [
        ({"model.layers.9.mlp.up_proj": "int8"}, "matches no layer of tiny-llama"),
        ({".*layernorm": "int8"}, "matches no layer"),
        ({"(": "int8"}, "valid regular expression"),
        ({r".*\.o_proj": "int8", r".*0.*proj": "int4_g64"}, "two formats, int8 and int4_g64"),
    ],
)
def test_locks_that_match_nothing_or_disagree_are_refused(locks, sentence):
    with pytest.raises(PlanError, match=sentence):
        refuse_impossible_locks(context(locks=locks))


def test_a_lock_to_an_unknown_format_names_the_known_ones():
    with pytest.raises(KnowledgeError, match="int4_g64"):
        refuse_impossible_locks(context(locks={r".*\.o_proj": "int4_g65"}))


@pytest.mark.parametrize(
    ("name", "fmt", "rule", "fields"),
    [
        (f"{BLOCK}.self_attn.q_proj", "int4_g128", "group_size", {}),
        (f"{BLOCK}.self_attn.q_proj", "int3_g64", "engine_support", {"engine": "vllm"}),
        ("model.embed_tokens", "int8", "role_not_quantized", {}),
        (f"{BLOCK}.input_layernorm", "int8", "role_not_quantized", {}),
        (f"{BLOCK}.self_attn.o_proj", "int4_g64", "role_floor", {"role_floors": "enforce"}),
    ],
)
def test_a_lock_that_a_rule_forbids_is_refused_naming_rule_and_layer(name, fmt, rule, fields):
    with pytest.raises(PlanError) as refusal:
        refuse_impossible_locks(context(locks={name: fmt}, **fields))
    assert rule in str(refusal.value) and f"'{name}'" in str(refusal.value)


def test_a_lock_on_one_fused_layer_holds_for_its_partners():
    locks = {f"{BLOCK}.self_attn.q_proj": "int8"}
    partner = named(f"{BLOCK}.self_attn.v_proj")
    verdict = said("lock", partner, "int4_g64", locks=locks, engine="vllm")
    assert not verdict.allowed and "q_proj" in verdict.reason and "vLLM" in verdict.reason
    assert said("lock", partner, "int4_g64", locks=locks, engine="transformers") is None


def test_fused_layers_locked_to_two_formats_are_refused():
    locks = {f"{BLOCK}.self_attn.q_proj": "int8", f"{BLOCK}.self_attn.k_proj": "int4_g64"}
    with pytest.raises(PlanError, match="lock both to the same format"):
        refuse_impossible_locks(context(locks=locks, engine="vllm"))
    refuse_impossible_locks(context(locks=locks, engine="transformers"))


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
