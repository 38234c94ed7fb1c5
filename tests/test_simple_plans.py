"""Uniform plans, the role rule and the guide's strategy, which every plan is held against."""

import pytest

from advisor.planner.simple_plans import simple_plans
from tests.planning_cases import BLOCK, WHOLE, fisher_profile, plan_for, profile, request


def test_a_uniform_plan_gives_every_layer_the_format_and_ignores_the_budget():
    asked = request(weight_bits=1.0, locks={f"{BLOCK}.mlp.up_proj": "int8"})
    plan = simple_plans(WHOLE, asked)["uniform int4_g64"]
    assert set(plan.assignments.values()) == {"int4_g64"}
    assert set(plan.assignments) == set(plan_for().assignments)
    assert plan.memory.decided_bits == pytest.approx(4.25)


def test_a_uniform_plan_takes_the_next_larger_format_where_its_own_does_not_fit():
    sensitivity = profile(formats=("int8", "int4_g64", "int4_g128", "int3_g64"))
    plan = simple_plans(sensitivity, request())["uniform int4_g128"]
    assert plan.assignments[f"{BLOCK}.mlp.down_proj"] == "int4_g128"
    assert plan.assignments[f"{BLOCK}.self_attn.q_proj"] == "int4_g64"
    assert "576 is not divisible by 128" in plan.reasons[f"{BLOCK}.self_attn.q_proj"].text
    assert "uniform int3_g64" not in simple_plans(sensitivity, request(engine="vllm"))


def test_the_role_rule_gives_attention_8_bits_and_mlps_4():
    plan = simple_plans(WHOLE, request(weight_bits=1.0))["role rule"]
    for name, fmt in plan.assignments.items():
        assert fmt == ("int4_g64" if ".mlp." in name else "int8")
    assert set(simple_plans(profile(formats=("int8",)), request())) == {"uniform int8"}


@pytest.mark.parametrize(("damage", "raised"), [(1.0, False), (30.0, True)])
def test_the_guides_strategy_raises_embeddings_and_attention_outputs_where_4_bits_cost_too_much(damage, raised):
    sensitivity = profile(formats=("int8", "int4_g64"))
    worse = [m.model_copy(update={"delta_nll": damage * m.delta_nll}) for m in sensitivity.measurements]
    sensitivity = sensitivity.model_copy(update={"measurements": tuple(worse)})
    plans = simple_plans(sensitivity, request(engine="llama.cpp"))
    assert (plans["uniform int4_g64"].predicted.delta_ppl_pct > 10) == raised
    for name, fmt in plans["guide's strategy"].assignments.items():
        assert fmt == ("int8" if raised and ("o_proj" in name or "embed" in name) else "int4_g64")


def test_the_plan_loses_no_more_than_uniform_and_role_rule_plans_of_its_size():
    for engine in ("transformers", "vllm"):
        sensitivity = profile(blocks=3, formats=("int8", "int4_g64"))
        for simple in simple_plans(sensitivity, request(engine)).values():
            plan = plan_for(sensitivity, engine=engine, weight_bytes=simple.memory.weights_bytes)
            assert plan.predicted.kl <= simple.predicted.kl * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_no_plan_of_estimates_is_predicted_worse_than_a_uniform_one_of_its_size(seed):
    estimated = fisher_profile(2, ("int8", "int4_g64"), seed=seed)
    for name, simple in simple_plans(estimated, request()).items():
        if name.startswith("uniform"):
            plan = plan_for(estimated, weight_bits=simple.memory.decided_bits + 1e-6)
            assert plan.predicted.delta_nll <= simple.predicted.delta_nll + 1e-12
