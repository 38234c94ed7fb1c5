"""Two plans of one model beside each other: what differs, and whether it is more than chance."""

from __future__ import annotations

import numpy as np
import pytest

from advisor.errors import PlanError
from advisor.planner import comparison
from advisor.planner.planning import make_plan
from advisor.planner.simple_plans import simple_plans
from advisor.types import Plan
from tests import planning_cases


@pytest.fixture(scope="module")
def profile():
    return planning_cases.profile()


def plan(profile, bits: float = 5.0, **fields) -> Plan:
    return make_plan(profile, planning_cases.request(weight_bits=bits, **fields))


def test_layers_that_differ_carry_both_formats_and_explain_the_difference_of_size(profile):
    one, other = plan(profile, 5.0), plan(profile, 4.5)
    found = comparison.compare(one, other, profile)
    assert [d.layer for d in found.layers] == [n for n, fmt in one.assignments.items() if other.assignments[n] != fmt]
    assert all((d.one, d.other) == (one.assignments[d.layer], other.assignments[d.layer]) for d in found.layers)
    sizes = [p.memory.model_weights_bytes for p in (one, other)]
    assert sum(d.other_bytes - d.one_bytes for d in found.layers) == sizes[1] - sizes[0] < 0


def test_a_layer_that_one_plan_does_not_decide_counts_as_it_came(profile):
    one = plan(profile)
    left_out = "model.layers.0.mlp.down_proj"
    rest = {name: fmt for name, fmt in one.assignments.items() if name != left_out}
    (found,) = comparison.compare(one, one.model_copy(update={"assignments": rest}), profile).layers
    layer = profile.catalogue.by_name()[left_out]
    assert (found.layer, found.other, found.other_bytes) == (left_out, "bf16", 2 * layer.parameters)


def test_a_plan_differs_from_itself_in_nothing(profile):
    one = plan(profile)
    found = comparison.compare(one, one, profile)
    assert found.same_formats and found.same_basis and found.same_text and found.same_deployment
    assert found.kl.value == 0 and found.kl.within_error and found.delta_nll.within_error


def test_losses_apart_by_more_than_their_errors_are_told_apart(profile):
    one, eight = plan(profile), simple_plans(profile, planning_cases.request())["uniform int8"]
    found = comparison.compare(one, eight, profile)
    assert found.kl.value == pytest.approx(eight.predicted.kl - one.predicted.kl) and found.kl.value < 0
    assert not found.kl.within_error
    unsure = one.predicted.model_copy(update={"kl_stderr": one.predicted.kl})
    hazy = comparison.compare(one.model_copy(update={"predicted": unsure}), eight, profile)
    assert hazy.kl.within_error and hazy.kl.stderr > found.kl.stderr


def test_a_measured_loss_is_no_match_for_a_predicted_one(profile):
    one = plan(profile)
    measured = one.model_copy(update={"predicted": one.predicted.model_copy(update={"measured": True})})
    assert not comparison.compare(one, measured, profile).same_basis


def test_another_device_load_or_text_is_told(profile):
    one = plan(profile)
    assert not comparison.compare(one, plan(profile, hardware="rtx-4090"), profile).same_deployment
    assert not comparison.compare(one, plan(profile, context=512), profile).same_deployment
    elsewhere = profile.model_copy(update={"baseline": profile.baseline.model_copy(update={"nll": 4.0})})
    found = comparison.compare(one, plan(elsewhere), profile)
    assert found.same_deployment and not found.same_text


def test_plans_for_different_models_are_refused_in_one_sentence(profile):
    one = plan(profile)
    stranger = one.model_copy(update={"model": one.model.model_copy(update={"fingerprint": "77" * 32, "name": "b"})})
    with pytest.raises(PlanError, match=r"different models, tiny-llama and b .*: compare plans of the same weights\.$"):
        comparison.compare(one, stranger, profile)


def test_a_plan_edited_by_hand_is_restated_as_what_it_is(profile):
    one = plan(profile, 4.5)
    edited = one.model_copy(update={"assignments": dict.fromkeys(one.assignments, "int8")})
    found = comparison.restated(edited, profile)
    eight = simple_plans(profile, planning_cases.request())["uniform int8"]
    assert (found.memory, found.latency, found.predicted) == (eight.memory, eight.latency, eight.predicted)
    assert edited.memory == one.memory


def test_a_layer_whose_format_was_changed_by_hand_loses_the_reason_of_another(profile):
    one = plan(profile, 4.5)
    assert not comparison.edited(one)
    layer, fmt = next((name, fmt) for name, fmt in one.assignments.items() if fmt != "int8")
    changed = one.model_copy(update={"assignments": one.assignments | {layer: "int8"}})
    assert comparison.edited(changed)
    rest = {name: fmt for name, fmt in one.assignments.items() if name != layer}
    assert comparison.edited(one.model_copy(update={"assignments": rest}))
    found = comparison.restated(changed, profile)
    assert found.reasons[layer].text == "INT8 per channel: given by hand after the plan was made."
    assert {name: said for name, said in found.reasons.items() if name != layer} == {
        name: said for name, said in one.reasons.items() if name != layer
    }


def test_a_measured_loss_stays_while_its_plan_has_the_bytes_it_states(profile):
    one = plan(profile)
    truth = one.predicted.model_copy(update={"measured": True, "kl": 0.5})
    measured = one.model_copy(update={"predicted": truth})
    assert comparison.restated(measured, profile).predicted == truth
    edited = measured.model_copy(update={"assignments": dict.fromkeys(one.assignments, "int8")})
    assert not comparison.restated(edited, profile).predicted.measured


def test_a_file_with_a_format_that_was_not_measured_cannot_be_restated(profile):
    one = plan(profile)
    unknown = one.model_copy(update={"assignments": one.assignments | {"model.layers.0.mlp.down_proj": "int2_g64"}})
    with pytest.raises(PlanError, match="was not measured in int2_g64"):
        comparison.restated(unknown, profile)


def test_one_profiles_plans_are_compared_sequence_by_sequence(profile):
    one = plan(profile, 5.0)
    layer = "model.layers.0.mlp.down_proj"
    fmt = "int4_g64" if one.assignments[layer] == "int8" else "int8"
    other = comparison.restated(one.model_copy(update={"assignments": one.assignments | {layer: fmt}}), profile)
    found = comparison.compare(one, other, profile)
    scores = [m for m in profile.measurements if (m.layer, m.format) in {(layer, fmt), (layer, one.assignments[layer])}]
    assert found.kl.paired and found.kl.stderr == pytest.approx(sum(m.kl_stderr for m in scores))
    before, after = sorted(scores, key=lambda m: m.format == fmt)
    change = np.subtract(after.delta_nll_by_sequence, before.delta_nll_by_sequence)
    assert found.delta_nll.stderr == pytest.approx(change.std(ddof=1) / 2)
    assert found.delta_nll.stderr < np.hypot(one.predicted.delta_nll_stderr, other.predicted.delta_nll_stderr)


def test_the_paired_error_of_estimates_is_that_of_fresh_draws():
    """Over many texts, the difference of two plans that share most layers scatters as its paired error says."""
    values, errors, apart = [], [], []
    for seed in range(24):
        profile = planning_cases.fisher_profile(1, ("int8", "int4_g64"), seed=5, texts=seed)
        names = [layer.name for layer in profile.catalogue.quantizable]
        four = dict.fromkeys(names, "int4_g64")
        one, other = (
            comparison.restated(plan(profile).model_copy(update={"assignments": formats}), profile)
            for formats in (four, four | {names[1]: "int8"})
        )
        found = comparison.compare(one, other, profile)
        assert found.kl.paired
        values.append(found.kl.value)
        errors.append(found.kl.stderr)
        apart.append(np.hypot(one.predicted.kl_stderr, other.predicted.kl_stderr))
    assert np.std(values, ddof=1) < 1.5 * np.mean(errors)
    assert np.mean(errors) < 0.5 * np.mean(apart)


def test_predictions_of_another_profile_or_of_a_run_are_taken_as_independent(profile):
    one, other = plan(profile), plan(profile, 4.5)
    stranger = planning_cases.profile(seed=3)
    assert not comparison.compare(one, other, stranger).kl.paired
    measured = other.model_copy(update={"predicted": other.predicted.model_copy(update={"measured": True})})
    found = comparison.compare(one, measured, profile).kl
    assert not found.paired and found.stderr == np.hypot(one.predicted.kl_stderr, other.predicted.kl_stderr)
