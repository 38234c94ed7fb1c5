"""What a plan decides: layers, formats, locks, floors and prices; and the plan as a document."""

import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.errors import InfeasibleBudget, PlanError
from advisor.knowledge import find_engine, find_format, find_hardware
from advisor.memory import usable_bytes
from advisor.planner.planning import ADVISOR_VERSION
from advisor.planner.rules import FLOOR_PRICE
from advisor.types import Plan
from tests.planning_cases import BLOCK, FEW, WHOLE, catalogue, fisher_profile, plan_for, profile, request

# ------------------------------------------------------------------------------- what a plan decides


def test_layers_that_the_engine_cannot_quantize_are_left_out_but_have_a_reason():
    plan = plan_for(engine="transformers")
    assert "model.embed_tokens" not in plan.assignments
    assert plan.reasons["model.embed_tokens"].text == (
        "Kept at BF16: Transformers with optimum-quanto does not quantize embeddings."
    )
    decided_elsewhere = plan_for(engine="mlx", hardware="m4-max-128gb")
    assert "model.embed_tokens" in decided_elsewhere.assignments


def test_every_layer_has_a_reason_in_sentences():
    for engine in ("transformers", "vllm"):
        plan = plan_for(profile(formats=("int8", "int4_g64")), engine=engine)
        assert list(plan.reasons) == [layer.name for layer in WHOLE.catalogue.layers]
        for reason in plan.reasons.values():
            sentences = reason.text.removesuffix(".").split(". ")
            assert reason.text.endswith(".") and all(one[0].isupper() for one in sentences)
        assert plan.reasons[f"{BLOCK}.input_layernorm"].text == "Kept at BF16: norms are never quantized."


def test_layers_that_were_not_measured_keep_their_dtype_and_say_so():
    plan = plan_for(profile(measured="layers.0."))
    assert all(name.startswith(BLOCK) for name in plan.assignments)
    assert "was not measured" in plan.reasons["model.layers.1.mlp.up_proj"].text
    assert "profile it" in plan.reasons["model.layers.1.mlp.up_proj"].text
    assert plan.predicted.unmeasured_layers == 8


def test_a_fused_group_with_an_unmeasured_layer_is_not_decided():
    partly = profile(formats=("int8", "int4_g64"), measured="q_proj")
    with pytest.raises(PlanError, match="None of the formats measured"):
        plan_for(partly, engine="vllm")
    assert set(plan_for(partly).assignments) == {f"model.layers.{block}.self_attn.q_proj" for block in (0, 1)}
    more = profile(formats=("int8", "int4_g64"), measured=".0.self_attn.")
    missing = more.model_copy(update={"measurements": tuple(m for m in more.measurements if "k_proj" not in m.layer)})
    plan = plan_for(missing, engine="vllm")
    assert set(plan.assignments) == {f"{BLOCK}.self_attn.o_proj"}
    assert "fuses it with" in plan.reasons[f"{BLOCK}.self_attn.q_proj"].text


def test_a_format_whose_groups_do_not_divide_a_layer_is_struck_with_the_reason():
    plan = plan_for(profile(formats=("int8", "int4_g64", "int4_g128")), weight_bits=4.26)
    assert plan.assignments[f"{BLOCK}.self_attn.o_proj"] == "int4_g64"
    mixed = profile(formats=("int8", "int4_g64"))
    extra = tuple(m.model_copy(update={"format": "int4_g128"}) for m in mixed.measurements if m.format == "int4_g64")
    plan = plan_for(mixed.model_copy(update={"measurements": mixed.measurements + extra}))
    struck = {a.format: a.verdicts for a in plan.reasons[f"{BLOCK}.self_attn.o_proj"].alternatives}["int4_g128"]
    assert any(not v.allowed and "576 is not divisible by 128" in v.reason for v in struck)
    assert "int4_g128" not in {fmt for name, fmt in plan.assignments.items() if not name.endswith("down_proj")}


def test_a_loss_that_is_not_a_number_is_never_chosen():
    spoiled = tuple(
        m.model_copy(update={"kl": math.inf}) if m.format == "int4_g64" and m.layer.endswith("up_proj") else m
        for m in profile(formats=("int8", "int4_g64")).measurements
    )
    plan = plan_for(WHOLE.model_copy(update={"measurements": spoiled}), weight_bits=5.6)
    assert plan.assignments[f"{BLOCK}.mlp.up_proj"] != "int4_g64"
    assert math.isfinite(plan.predicted.kl)


def test_only_the_formats_asked_for_and_the_models_own_dtype_are_used():
    plan = plan_for(weight_bits=12.0, formats=("int8",))
    assert set(plan.assignments.values()) == {"int8", "bf16"}
    with pytest.raises(PlanError, match="No layer was measured in int4_g32"):
        plan_for(formats=("int4_g32",))


def test_a_profile_without_measurements_is_refused():
    with pytest.raises(PlanError, match="no measurements yet"):
        plan_for(WHOLE.model_copy(update={"measurements": ()}))


def test_deciding_leaves_the_same_layers_whatever_is_wished():
    plain = set(plan_for().assignments)
    assert plain == set(plan_for(weight_bits=16.0, locks={".*mlp.*": "bf16"}, role_floors="enforce").assignments)
    assert plain == set(plan_for(weight_bits=16.0, formats=("int8",)).assignments)


def test_locks_hold_and_are_named_as_the_reason():
    name = f"{BLOCK}.mlp.up_proj"
    for fmt in ("bf16", "int8", "int4_g64"):
        plan = plan_for(weight_bits=9.0, locks={name: fmt}, formats=("int4_g64",))
        assert plan.assignments[name] == fmt
        assert plan.reasons[name].text == f"Locked by you to {find_format(fmt).label}."


def test_a_lock_holds_the_whole_fused_group():
    plan = plan_for(profile(formats=("int8", "int4_g64")), engine="vllm", locks={f"{BLOCK}.self_attn.k_proj": "int8"})
    assert {plan.assignments[f"{BLOCK}.self_attn.{part}_proj"] for part in "qkv"} == {"int8"}
    assert "k_proj', which you locked" in plan.reasons[f"{BLOCK}.self_attn.q_proj"].text


def test_exclusions_keep_layers_as_they_are():
    plan = plan_for(profile(formats=("int8", "int4_g64")), weight_bits=12.0, excluded=("block 0",))
    assert {plan.assignments[name] for name in plan.assignments if name.startswith(BLOCK)} == {"bf16"}
    assert plan.reasons[f"{BLOCK}.mlp.up_proj"].text == "Excluded by 'block 0': kept at BF16."
    with pytest.raises(InfeasibleBudget, match="exclude nothing"):
        plan_for(profile(formats=("int8", "int4_g64")), weight_bits=4.5, excluded=("blocks 0-1",))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_plan_may_leave_out_every_layer():
    for sensitivity in (WHOLE, fisher_profile()):
        plan = plan_for(sensitivity, weight_bits=16.0, excluded=(".*",))
        assert set(plan.assignments.values()) == {"bf16"} and plan.predicted.kl == 0


def test_a_lock_to_a_format_that_was_not_measured_is_refused():
    with pytest.raises(PlanError, match="not measured"):
        plan_for(locks={f"{BLOCK}.mlp.up_proj": "int4_g32"})
    with pytest.raises(PlanError, match="not measured"):
        plan_for(profile(measured="layers.0."), locks={"model.layers.1.mlp.up_proj": "int8"})
    assert plan_for(profile(measured="layers.0."), locks={"model.layers.1.mlp.up_proj": "bf16"})


def test_enforced_floors_keep_attention_at_8_bits_and_advised_ones_only_speak():
    enforced = plan_for(profile(formats=("int8", "int4_g64")), weight_bits=6.0, role_floors="enforce")
    attention = {fmt for name, fmt in enforced.assignments.items() if "attn" in name}
    assert attention <= {"int8", "bf16"}
    advised = plan_for(profile(formats=("int8", "int4_g64")), weight_bits=4.3, role_floors="advise")
    name = next(n for n, fmt in advised.assignments.items() if "attn" in n and fmt == "int4_g64")
    assert any(v.rule == "role_floor" and v.advice for v in advised.reasons[name].verdicts)


# --------------------------------------------------------------------------------------------- prices


@given(bits=st.floats(4.3, 17.0), seed=st.integers(0, 20))
@FEW
def test_an_advised_floor_never_costs_more_than_its_price(bits, seed):
    sensitivity = profile(formats=("int8", "int4_g64"), seed=seed)
    free, advised = (plan_for(sensitivity, weight_bits=bits, role_floors=floors) for floors in ("off", "advise"))
    assert advised.predicted.kl <= free.predicted.kl + FLOOR_PRICE * len(free.assignments)


def test_an_advised_floor_decides_between_formats_that_measured_the_same():
    name = f"{BLOCK}.self_attn.o_proj"
    same = tuple(
        m.model_copy(update={"kl": 0.0}) if m.layer == name else m
        for m in profile(formats=("int8", "int4_g64")).measurements
    )
    sensitivity = WHOLE.model_copy(update={"measurements": same})
    assert plan_for(sensitivity, weight_bits=16.0, role_floors="off").assignments[name] == "int4_g64"
    plan = plan_for(sensitivity, weight_bits=16.0)
    assert plan.assignments[name] == "int8"
    assert "which a rule advises against (Attention output: the guide recommends" in plan.reasons[name].text


def test_a_price_never_stands_in_the_way_of_a_tolerance():
    free = tuple(m.model_copy(update={"kl": 0.0, "delta_nll": 0.0}) for m in WHOLE.measurements)
    plan = plan_for(WHOLE.model_copy(update={"measurements": free}), max_ppl_increase=0.0)
    assert set(plan.assignments.values()) == {"int4_g64"}


# --------------------------------------------------------------------------------- activations


def test_w8a8_is_planned_where_it_is_measured_stored_and_native():
    sensitivity = profile(formats=("int4_g64", "int8_w8a8"))
    request_fields = {"engine": "vllm", "weight_bits": 8.1}
    assert "int8_w8a8" in plan_for(sensitivity, **request_fields).assignments.values()
    refused = plan_for(sensitivity, engine="transformers", weight_bits=8.1)
    assert "int8_w8a8" not in refused.assignments.values()


def test_of_two_formats_of_a_size_the_one_that_loses_less_wins_and_the_other_is_the_runner_up():
    plan = plan_for(profile(formats=("int8", "int8_w8a8")), engine="vllm", weight_bits=8.1)
    for name in plan.assignments:
        reason = plan.reasons[name]
        if plan.assignments[name] == "int8" and reason.runner_up.format == "int8_w8a8":
            assert reason.runner_up.delta_bytes == 0
            assert "INT8 W8A8 takes the same bytes" in reason.text
            break
    else:
        raise AssertionError("some layer should have both")


# --------------------------------------------------------------------------- one quantized format


def test_an_engine_of_one_quantized_format_says_so_of_the_others_and_the_request_stays_as_it_was():
    sensitivity = profile(formats=("int8", "nf4_g64"))
    plan = plan_for(sensitivity, engine="transformers-bitsandbytes", weight_bits=6.0)
    assert set(plan.assignments.values()) == {"nf4_g64", "bf16"} and plan.request.formats == ()
    reason = plan.reasons["model.layers.0.mlp.down_proj"]
    (verdict,) = next(one.verdicts for one in reason.alternatives if one.format == "int8")
    assert verdict.rule == "one_format" and "holds one quantized format" in verdict.reason


@pytest.mark.parametrize("wish", [{"excluded": (".*",)}, {"formats": ("int4_g64",)}])
def test_where_nothing_is_left_to_quantize_an_engine_of_one_format_keeps_the_model(wish):
    sensitivity = profile(formats=("int8", "int4_g64"))
    plan = plan_for(sensitivity, engine="transformers-bitsandbytes", weight_bits=16.0, **wish)
    assert set(plan.assignments.values()) == {"bf16"}


# ------------------------------------------------------------------------------------------- document


def test_a_plan_survives_json_and_says_where_it_comes_from():
    plan = plan_for()
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert plan.model == catalogue().model and plan.request == request()
    assert plan.provenance["profile_id"] == "profile-1"
    assert plan.provenance["solver"] == "optimal"
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert plan.provenance["advisor_version"] == ADVISOR_VERSION == project["version"]


def test_the_same_request_gives_the_same_plan():
    first, second = plan_for(weight_bits=5.3), plan_for(weight_bits=5.3)
    assert first.assignments == second.assignments and first.reasons == second.reasons


def test_memory_is_planned_for_the_device_when_the_budget_is_not_memory():
    plan = plan_for(weight_bits=5.0)
    assert plan.memory.limit_bytes == usable_bytes(find_hardware(plan.request.hardware), find_engine("transformers"))
