"""What a plan should do to the model: changes add up, and so do their errors."""

import math
import statistics

import numpy as np
import pytest

from advisor import estimates
from advisor.planner.paired import paired_errors
from advisor.planner.planning import predict
from advisor.planner.prediction import predictor_of
from tests.planning_cases import BLOCK, WHOLE, fisher_profile, plan_for


def test_the_predicted_perplexity_is_the_baseline_times_the_summed_change():
    plan = plan_for()
    scores = {(m.layer, m.format): m for m in WHOLE.measurements}
    used = [scores[item] for item in plan.assignments.items() if item in scores]
    predicted = plan.predicted
    assert predicted.delta_nll == pytest.approx(sum(m.delta_nll for m in used))
    assert predicted.kl == pytest.approx(sum(m.kl for m in used))
    assert predicted.kl_stderr == pytest.approx(sum(m.kl_stderr for m in used))
    assert predicted.perplexity == pytest.approx(20 * math.exp(predicted.delta_nll))
    assert predicted.perplexity_low < predicted.perplexity < predicted.perplexity_high
    assert predicted.unmeasured_layers == 0


def test_the_error_of_a_sum_keeps_what_layers_have_in_common():
    by_sequence = (0.1, 0.3, -0.2, 0.2)
    same = tuple(
        m.model_copy(update={"delta_nll_by_sequence": by_sequence, "delta_nll_stderr": 0.01})
        for m in WHOLE.measurements
    )
    names = [f"{BLOCK}.mlp.{part}_proj" for part in ("gate", "up", "down")]
    together = predict(WHOLE.model_copy(update={"measurements": same}), dict.fromkeys(names, "int8"))
    # Three layers that move together have three times the error of one, not the square root of three times.
    assert together.delta_nll_stderr == pytest.approx(3 * statistics.stdev(by_sequence) / 2)
    without = tuple(m.model_copy(update={"delta_nll_by_sequence": ()}) for m in same)
    apart = predict(WHOLE.model_copy(update={"measurements": without}), dict.fromkeys(names, "int8"))
    assert apart.delta_nll_stderr == pytest.approx(math.sqrt(3) * 0.01)


def test_keeping_everything_predicts_no_change():
    plan = plan_for(weight_bits=16.0)
    assert set(plan.assignments.values()) == {"bf16"}
    assert plan.predicted.perplexity == plan.predicted.perplexity_low == plan.predicted.base_perplexity
    assert plan.memory.weights_bytes == plan.memory.original_weights_bytes


def test_a_negative_kl_counts_as_none():
    negative = tuple(m.model_copy(update={"kl": -1.0}) if m.format == "int4_g64" else m for m in WHOLE.measurements)
    plan = plan_for(WHOLE.model_copy(update={"measurements": negative}), weight_bits=16.0, role_floors="off")
    assert plan.predicted.kl == 0.0
    assert set(plan.assignments.values()) == {"int4_g64"}, "no loss and fewer bytes beats keeping the dtype"


@pytest.mark.parametrize(("sequences", "draws"), [(4, 2), (5, 3), (4, 4), (16, 8)])
def test_how_errors_meet_is_predicted_only_where_labels_are_enough_to_tell(sequences, draws):
    profile = fisher_profile(sequences=sequences, draws=draws)
    plan = plan_for(profile, weight_bits=5.0)
    used = [m for m in profile.measurements if plan.assignments.get(m.layer) == m.format]
    together, summed = estimates.set_kl(used, draws)[0], math.fsum(m.kl for m in used)
    few = sequences * draws < 16
    assert together != pytest.approx(summed, rel=0.01)
    assert plan.predicted.kl == pytest.approx(summed if few else together)
    if few:  # nor is it predicted what so little text would have the weights do
        assert plan.predicted.delta_nll == plan.predicted.kl and plan.optimality_gap == 0


@pytest.mark.parametrize(("sequences", "draws"), [(4, 2), (16, 8)])
def test_changes_of_one_plan_are_the_differences_of_predictions_with_the_error_of_the_comparison(sequences, draws):
    profile = fisher_profile(sequences=sequences, draws=draws)
    plan, predictor = plan_for(profile, weight_bits=5.0), predictor_of(profile)
    before = predictor.loss(plan.assignments).delta_nll
    for layer in list(plan.assignments)[::3]:
        swapped = plan.assignments | {layer: "int8" if plan.assignments[layer] != "int8" else "int4_g64"}
        rows = [predictor.rows(formats) for formats in (plan.assignments, swapped)]
        if len(rows[0]) != len(rows[1]):
            continue
        ((change, error),) = predictor.changes(np.array(rows))
        assert change == pytest.approx(predictor.loss(swapped).delta_nll - before)
        other = plan.model_copy(update={"assignments": swapped, "predicted": predict(profile, swapped)})
        assert error == pytest.approx(paired_errors(profile, plan, other)[1], rel=0.05)
