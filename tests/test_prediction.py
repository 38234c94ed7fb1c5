"""What a plan should do to the model: changes add up, and so do their errors."""

import math
import statistics

import pytest

from advisor.planner.planning import predict
from tests.planning_cases import BLOCK, WHOLE, plan_for


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
