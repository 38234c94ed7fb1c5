"""Locks and exclusions: what they hold, and which are refused, each naming layer, rule or pattern."""

import pytest

from advisor.errors import KnowledgeError, PlanError
from advisor.planner.rules import refuse_impossible_locks
from tests.planning_cases import catalogue
from tests.rule_cases import BLOCK, context, named, said


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
    assert context(locks={"o_proj": "int8"}).locks.keys() == held.keys()  # the module's name, as on the map
    assert all(".mlp." in name for name in context(locks={"mlp": "int8"}).locks)  # and that of one which holds others
    with pytest.raises(PlanError, match="matches no layer"):
        _ = context(locks={"proj": "int8"}).locks


@pytest.mark.filterwarnings("error::FutureWarning")
def test_brackets_that_python_warns_of_are_refused_or_read_without_a_warning():
    with pytest.raises(PlanError, match="valid regular expression"):
        _ = context(locks={"[[[": "int8"}).locks
    with pytest.raises(PlanError, match="matches no layer"):
        _ = context(locks={"[[a]x": "int8"}).locks


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
        (f"{BLOCK}.input_layernorm", "int8", "stays_high", {}),
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


def test_blocks_name_every_layer_in_them():
    for pattern, blocks in (("block 1", (1,)), ("blocks 0-1", (0, 1)), ("blocks 0 - 1", (0, 1))):
        held = context(locks={pattern: "int8"}).locks
        expected = {one.name for one in catalogue().quantizable if one.block in blocks}
        assert set(held) == expected and {one.format for one in held.values()} == {"int8"}
    with pytest.raises(PlanError, match="matches no layer .* blocks such as `blocks 0-1`"):
        _ = context(locks={"block one": "int8"}).locks


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("blocks 1-7", "goes beyond tiny-llama, which has the blocks 0 to 1: name blocks that it has"),
        ("block 2", "goes beyond tiny-llama"),
        ("blocks 1-0", "runs backwards: write the smaller number first, as in 'blocks 0-1'"),
    ],
)
def test_blocks_that_the_model_has_not_and_ranges_that_run_backwards_are_refused(pattern, said):
    with pytest.raises(PlanError, match=f"The lock '{pattern}' {said}"):
        _ = context(locks={pattern: "int8"}).locks
    with pytest.raises(PlanError, match=f"The exclusion '{pattern}' {said}"):
        _ = context(excluded=(pattern,)).locks


def test_an_exclusion_leaves_the_models_own_dtype_and_says_so():
    name = f"{BLOCK}.mlp.up_proj"
    excluded = {"excluded": ("block 0",)}
    assert said("exclusion", named(name), "bf16", **excluded) is None
    verdict = said("exclusion", named(name), "int8", **excluded)
    assert not verdict.allowed and verdict.reason == "Excluded by 'block 0': kept at BF16"
    assert said("lock", named(name), "int8", **excluded) is None
    assert said("exclusion", named("model.layers.1.mlp.up_proj"), "int8", **excluded) is None
    partner = said("exclusion", named(f"{BLOCK}.mlp.gate_proj"), "int8", excluded=(name,), engine="vllm")
    assert "which you excluded and which vLLM" in partner.reason


def test_an_exact_lock_wins_over_excluded_blocks():
    name = f"{BLOCK}.mlp.down_proj"
    held = context(locks={name: "int8"}, excluded=("blocks 0-1",)).locks
    assert held[name].format == "int8" and held["model.layers.1.mlp.down_proj"].format == "bf16"


@pytest.mark.parametrize(
    ("wishes", "sentence"),
    [
        ({"locks": {f"{BLOCK}.mlp.up_proj": "int8"}, "excluded": (f"{BLOCK}.mlp.up_proj",)}, "two formats, int8 and"),
        (
            {"locks": {r".*\.up_proj": "int8"}, "excluded": ("block 0",)},
            r"The lock .* and the exclusion 'block 0' give",
        ),
        ({"excluded": ("block 9",)}, "The exclusion 'block 9' goes beyond tiny-llama"),
        ({"excluded": ("(",)}, "exclusion .* valid regular expression"),
        (
            {
                "locks": {f"{BLOCK}.self_attn.q_proj": "int8"},
                "excluded": (f"{BLOCK}.self_attn.k_proj",),
                "engine": "vllm",
            },
            "lock both to the same format or exclude both",
        ),
    ],
)
def test_exclusions_that_match_nothing_or_contradict_a_lock_are_refused_in_one_sentence(wishes, sentence):
    with pytest.raises(PlanError, match=sentence) as refusal:
        refuse_impossible_locks(context(**wishes))
    assert ". " not in str(refusal.value) and str(refusal.value).endswith(".")
