"""What is said beside a plan: the standard error that a tolerance keeps, and what memory to spare is used for."""

from __future__ import annotations

import math

import pytest

from advisor import pipeline
from advisor.errors import InfeasibleBudget
from advisor.types import Plan, SensitivityProfile
from advisor.units import size
from tests import planning_cases, sample_results
from tests.page_driver import REQUEST

ESTIMATED = planning_cases.fisher_profile(2, ("int8", "int4_g64"))


def remarks(plan: Plan, profile=ESTIMATED) -> tuple[str, ...]:
    return pipeline.remarks_on(plan, profile)


def test_a_tolerance_over_estimates_tells_the_standard_error_that_it_keeps():
    plan = planning_cases.plan_for(ESTIMATED, max_ppl_increase=0.05)
    (said,) = remarks(plan)
    assert f"rise by {plan.predicted.delta_ppl_pct:.2g} %, and by " in said
    assert "the one standard error that the tolerance of 5 % keeps to spare" in said
    upper = float(said.split("and by ")[1].split(" %")[0])
    assert plan.predicted.delta_ppl_pct < upper <= 5.0


def test_a_tolerance_over_exact_scores_or_a_measured_plan_keeps_nothing_to_spare():
    exact = planning_cases.WHOLE
    assert remarks(planning_cases.plan_for(exact, max_ppl_increase=0.05), exact) == ()
    plan = planning_cases.plan_for(ESTIMATED, max_ppl_increase=0.05)
    measured = plan.model_copy(update={"predicted": plan.predicted.model_copy(update={"measured": True})})
    assert remarks(measured) == ()


@pytest.mark.parametrize("limit", [{"vram_bytes": 80 * 10**9}, {"weight_bits": 16.0}, {"weight_bytes": 2**40}])
def test_a_limit_with_room_for_the_unquantized_model_says_what_a_tolerance_would_save(limit):
    plan = planning_cases.plan_for(ESTIMATED, **limit)
    smaller = planning_cases.plan_for(ESTIMATED, max_ppl_increase=0.05)
    (said,) = remarks(plan)
    assert "has room for the unquantized model" in said and "least memory within a rise of 5 %" in said
    sizes = [f"{one.memory.model_weights_bytes / 2**20:.2f} MiB" for one in (smaller, plan)]
    assert f"{sizes[0]} of weights instead of {sizes[1]}" in said


@pytest.mark.parametrize("limit", [{"weight_bits": 5.5}, {"weight_bytes": 6 * 2**20}])
def test_a_plan_by_estimates_says_what_it_leaves_of_its_limit(limit):
    plan = planning_cases.plan_for(ESTIMATED, **limit)
    (said,) = remarks(plan)
    used = f"{plan.memory.decided_bits:.2f}" if "weight_bits" in limit else size(plan.memory.model_weights_bytes)
    assert said.startswith(f"{used} of the ") and "Refining runs the model" in said
    measured = plan.model_copy(update={"predicted": plan.predicted.model_copy(update={"measured": True})})
    assert remarks(measured) == ()


def lucky() -> SensitivityProfile:
    """Scores whose text gains by every change."""
    profile, gains = planning_cases.fisher_profile(12, ("int8", "int4_g64")), []
    for one in profile.measurements:
        by_sequence = (-50 * one.kl,) * len(one.delta_nll_by_sequence)
        gains.append(one.model_copy(update={"delta_nll": -50 * one.kl, "delta_nll_by_sequence": by_sequence}))
    return profile.model_copy(update={"measurements": tuple(gains)})


def test_a_plan_or_front_that_changes_much_more_than_it_should_lose_says_what_chance_may_hide():
    profile = lucky()
    plan = planning_cases.plan_for(profile, weight_bits=5.0)
    assert plan.predicted.delta_nll <= 0
    said = next(
        one
        for one in remarks(plan, profile)
        if one.startswith("The plan is predicted to lose much less than it changes")
    )
    assert f"On the {profile.baseline.tokens:,} tokens" in said
    diverges = float(said.split("diverge (KL), by ")[1].split(" %")[0])
    assert diverges == pytest.approx(100 * math.expm1(plan.predicted.kl), rel=0.05)
    front = pipeline.pareto_front(profile, plan.request)
    (said,) = pipeline.remarks_on_front(front, profile)
    far = [point for point in front.points if point.predicted.kl > 0.01]
    assert said.startswith(f"{len(far)} plans are predicted" if len(far) > 1 else "1 plan is predicted")


def test_a_loss_of_a_tenth_of_the_divergence_is_doubted_and_one_of_half_is_not():
    profile = lucky()
    plan = planning_cases.plan_for(profile, weight_bits=5.0)
    kl = plan.predicted.kl
    for share, doubted in ((0.1, True), (0.5, False)):
        predicted = plan.predicted.model_copy(update={"delta_nll": share * kl})
        said = remarks(plan.model_copy(update={"predicted": predicted}), profile)
        assert any(one.startswith("The plan is predicted to lose much less") for one in said) == doubted


def test_where_hardly_anything_changes_no_chance_is_spoken_of():
    front = pipeline.pareto_front(ESTIMATED, planning_cases.request(weight_bits=5.0))
    lossless = [point.predicted for point in front.points if point.predicted.delta_nll <= 0]
    assert lossless and all(predicted.kl < 0.01 for predicted in lossless)
    assert pipeline.remarks_on_front(front, ESTIMATED) == ()


def test_a_plan_that_takes_nearly_all_of_its_limit_or_whose_layers_were_measured_alone_leaves_nothing_to_say():
    used = planning_cases.plan_for(ESTIMATED, weight_bits=5.5).memory.decided_bits
    assert remarks(planning_cases.plan_for(ESTIMATED, weight_bits=used + 0.01)) == ()
    exact = planning_cases.WHOLE
    assert remarks(planning_cases.plan_for(exact, weight_bits=5.5), exact) == ()


@pytest.mark.parametrize("limit", [{"weight_bits": 5.0}, {"weight_bits": 5.0, "max_ppl_increase": 0.5}])
def test_a_limit_that_asks_for_smaller_weights_needs_no_such_remark(limit):
    assert not any("has room" in said for said in remarks(planning_cases.plan_for(ESTIMATED, **limit)))


def test_locks_that_no_tolerance_allows_leave_the_remark_out():
    rough = planning_cases.fisher_profile(2, ("int2_g64",))
    locked = {"locks": {r".*(mlp|self_attn).*": "int2_g64"}}
    with pytest.raises(InfeasibleBudget):
        planning_cases.plan_for(rough, max_ppl_increase=0.05, **locked)
    assert remarks(planning_cases.plan_for(rough, weight_bits=16.0, **locked), rough) == ()


def test_what_is_wrong_with_the_text_of_the_scores_is_said_beside_the_plan_too():
    profile = sample_results.estimated_profile(warnings=("128 tokens are few.",))
    plan = pipeline.make_plan(profile, REQUEST)
    assert "128 tokens are few." in pipeline.remarks_on(plan, profile)
