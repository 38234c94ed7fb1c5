"""The price of every step that a layer could take, and its picture."""

import math

import pytest

from advisor.planner import prices
from advisor.planner.regret import Rates
from advisor.ui import price_chart, wording
from tests.planning_cases import BLOCK, WHOLE, plan_for, profile

PLAN = plan_for(profile(formats=("int8", "int4_g64")), weight_bits=5.2)
STEPS = prices.steps_of(PLAN, WHOLE.catalogue)


def test_a_step_costs_the_change_of_loss_by_the_change_of_bytes():
    assert {step.layer for step in STEPS} == set(PLAN.assignments)
    for step in STEPS:
        other = next(one for one in PLAN.reasons[step.layer].alternatives if one.format == step.other)
        assert step.price == pytest.approx(-other.delta_loss / other.delta_bytes)
        assert step.larger == (other.delta_bytes > 0) and step.chosen == PLAN.assignments[step.layer]


def test_layers_of_one_kernel_take_a_step_together():
    plan = plan_for(profile(formats=("int8", "int4_g64")), engine="vllm", weight_bits=5.2)
    own = [f"{BLOCK}.self_attn.{part}_proj" for part in "qkv"]
    for step in (one for one in prices.steps_of(plan, WHOLE.catalogue) if one.layer in own):
        together = [next(a for a in plan.reasons[name].alternatives if a.format == step.other) for name in own]
        expected = -sum(one.delta_loss for one in together) / sum(one.delta_bytes for one in together)
        assert step.price == pytest.approx(expected)


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_what_bytes_are_worth_is_what_the_reasons_say(engine):
    plan = plan_for(profile(formats=("int8", "int4_g64")), engine=engine, weight_bits=5.2)
    steps = prices.steps_of(plan, WHOLE.catalogue)
    win = max(step.price for step in steps if step.larger)
    charge = min(step.price for step in steps if not step.larger)
    assert plan.exchange_rate == pytest.approx(math.sqrt(win * charge))
    worth = wording.number(plan.exchange_rate * wording.MIB, 2)
    assert all(f"one MiB is worth about {worth} nats" in plan.reasons[name].text for name in plan.assignments)


def test_bytes_to_spare_decide_nothing():
    plan = plan_for(profile(formats=("int8", "int4_g64")), vram_bytes=24 * 2**30)
    assert plan.exchange_rate == 0 and not any("is worth about" in reason.text for reason in plan.reasons.values())


def test_a_saving_that_costs_nothing_does_not_make_bytes_worth_nothing():
    assert Rates(win=0.5, charge=0.0).exchange == 0.5
    assert Rates(win=0.5, charge=2.0).exchange == 1.0
    assert Rates(win=0.5, charge=2.0, spare=True).exchange == 0.0


def test_steps_that_rules_forbid_or_nobody_measured_have_no_price():
    plan = plan_for(profile(formats=("int8", "int4_g64")), engine="vllm", formats=("int8",), weight_bits=9.0)
    assert {step.other for step in prices.steps_of(plan, WHOLE.catalogue)} == {"bf16", "int8"}
    assert prices.steps_of(plan.model_copy(update={"reasons": {}}), WHOLE.catalogue) == []


def test_the_picture_has_a_row_for_each_other_format_and_all_layers_between_the_same_two():
    worth = PLAN.exchange_rate * wording.MIB
    for layer, chosen in PLAN.assignments.items():
        frame = price_chart.price_frame(layer, STEPS)
        own, others = frame[frame["own"]], frame[~frame["own"]]
        assert set(own["layer"]) == {layer} and len(set(own["row"])) == len(own) == 2
        expected = {
            (step.layer, step.other)
            for step in STEPS
            for mine in own["other"]
            if step.layer != layer
            and {wording.format_label(f) for f in (step.chosen, step.other)} == {mine, wording.format_label(chosen)}
        }
        assert {(row.layer, row.other) for row in others.itertuples()} == {
            (name, wording.format_label(other)) for name, other in expected
        }
        # Most of them: of 14 layers, some have bytes too few to be spent elsewhere, and some too many for what is left.
        sides = [(row.shape == "triangle-down") == (row.price > worth) for row in frame.itertuples()]
        assert sides.count(False) <= 3 < len(sides)
        price_chart.prices_of(layer, STEPS, PLAN.exchange_rate).to_dict(validate=True)
