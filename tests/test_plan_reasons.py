"""Why a layer has its format: alternatives in true numbers, runners-up of least regret, honest noise."""

import math
import re

import pytest

from advisor import units
from advisor.formats.table import packed_bytes
from advisor.knowledge import find_engine, find_format
from advisor.planner.paired import paired_errors
from advisor.planner.prediction import predict, predictor_of
from tests import sample_results
from tests.planning_cases import BLOCK, FORMATS, WHOLE, fisher_profile, plan_for, profile

# -------------------------------------------------------------------------------- reasons in numbers


def test_alternatives_list_every_other_measured_format_with_true_differences():
    plan = plan_for()
    scores = {(m.layer, m.format): m.kl for m in WHOLE.measurements}
    layers = WHOLE.catalogue.by_name()
    for name, fmt in plan.assignments.items():
        alternatives = {a.format: a for a in plan.reasons[name].alternatives if a.delta_loss is not None}
        assert set(alternatives) == {"bf16", *FORMATS} - {fmt}
        for other, alternative in alternatives.items():
            difference = scores.get((name, other), 0.0) - scores.get((name, fmt), 0.0)
            assert alternative.delta_loss == pytest.approx(difference, abs=1e-15)
            sizes = [packed_bytes(find_format(f), layers[name]) for f in (other, fmt)]
            assert alternative.delta_bytes == sizes[0] - sizes[1]


def rates_of(plan) -> tuple[float, float]:
    """What one more byte would win in any layer, and what one byte less would cost in any layer, in nats."""
    alternatives = [a for name in plan.assignments for a in plan.reasons[name].alternatives]
    steps = [a for a in alternatives if all(v.allowed for v in a.verdicts)]
    win = max((-a.delta_loss / a.delta_bytes for a in steps if a.delta_bytes > 0), default=0.0)
    charge = min((a.delta_loss / -a.delta_bytes for a in steps if a.delta_bytes < 0), default=math.inf)
    return max(win, 0.0), charge


def worth_of(plan) -> float:
    """What a byte is worth in the plan: the mean of both rates, in powers; of one, where the other is none."""
    win, charge = rates_of(plan)
    return math.sqrt(win * charge) if 0 < charge < math.inf else win


def test_what_a_reason_calls_too_much_or_too_little_is_so_at_the_one_price_that_it_names():
    compared = 0
    for bits in (4.6, 5.2, 6.5):
        plan = plan_for(profile(formats=("int8", "int4_g64")), weight_bits=bits)
        worth = worth_of(plan)
        for reason in plan.reasons.values():
            prices = {
                find_format(a.format).label: -a.delta_loss / a.delta_bytes
                for a in reason.alternatives
                if a.delta_loss is not None and a.delta_bytes
            }
            for label, price, word in re.findall(
                r"([\w ]+?) would (?:cost|save) [^,]+, (\S+) per MiB: too (much|little)", reason.text
            ):
                here = prices[label.strip().removeprefix("going to ").removeprefix("Going to ")]
                assert units.number(here * units.MIB, 2) == price
                assert (here > worth) == (word == "much")
                assert f"n this plan one MiB is worth about {units.number(worth * units.MIB, 2)} nats" in reason.text
                compared += 1
    assert compared > 20


def texts(plan) -> str:
    return "\n".join(plan.reasons[name].text for name in plan.assignments)


def test_a_reason_names_every_format_that_the_layer_could_have_up_to_four():
    for bits in (4.6, 5.2, 9.0):
        plan = plan_for(profile(formats=("int8", "int4_g64", "int4_g32")), engine="vllm", weight_bits=bits)
        for name in plan.assignments:
            reason = plan.reasons[name]
            possible = [a for a in reason.alternatives if all(v.allowed for v in a.verdicts)]
            assert len(possible) == 3 and all(find_format(a.format).label in reason.text for a in possible)
    many = profile(formats=("int8", "int4_g64", "int4_g32", "int4_g128", "int4_g64_asym", "int3_g64", "int2_g64"))
    plan = plan_for(many, engine="llama.cpp-k-quants", weight_bits=9.0)
    assert re.search(r"Also possible, and passed over by the same measure: [^;]* and \d more", texts(plan))


def test_a_layer_in_the_smallest_format_it_may_have_says_why_nothing_is_smaller():
    measured = profile(formats=("int8", "int4_g64"))
    assert ". Nothing smaller was measured" in texts(plan_for(profile(formats=("int8",)), weight_bits=9.0))
    chosen = texts(plan_for(measured, formats=("int8",), weight_bits=9.0))
    assert ". Nothing smaller, since INT4 group 64 is not among the formats to choose from" in chosen
    name = f"{BLOCK}.mlp.up_proj"
    without = tuple(m for m in measured.measurements if (m.layer, m.format) != (name, "int4_g64"))
    plan = plan_for(measured.model_copy(update={"measurements": without}), weight_bits=5.0)
    assert f". Nothing smaller, since {name} was not measured in INT4 group 64." in plan.reasons[name].text


def test_the_runner_up_is_the_allowed_alternative_of_least_regret_and_is_named():
    for bits in (4.6, 5.2, 6.5):
        plan = plan_for(profile(formats=("int8", "int4_g64")), weight_bits=bits)
        rate = worth_of(plan)
        for name in plan.assignments:
            reason = plan.reasons[name]
            allowed = [a for a in reason.alternatives if all(v.allowed for v in a.verdicts)]
            least = min(allowed, key=lambda a: a.delta_loss + rate * a.delta_bytes)
            next_best = reason.runner_up
            assert (next_best.format, next_best.delta_bytes) == (least.format, least.delta_bytes)
            assert next_best.delta_loss == pytest.approx(least.delta_loss)
            assert find_format(next_best.format).label in reason.text


def test_a_fused_group_has_one_runner_up_for_all_its_layers():
    plan = plan_for(profile(formats=("int8", "int4_g64")), engine="vllm", weight_bits=5.2)
    reasons = [plan.reasons[f"{BLOCK}.self_attn.{part}_proj"] for part in "qkv"]
    assert len({reason.runner_up.model_dump_json() for reason in reasons}) == 1
    single = [next(a for a in r.alternatives if a.format == r.runner_up.format) for r in reasons]
    assert reasons[0].runner_up.delta_bytes == sum(a.delta_bytes for a in single)
    assert reasons[0].runner_up.delta_loss == pytest.approx(sum(a.delta_loss for a in single))


def test_a_layer_without_a_choice_has_no_runner_up():
    name = f"{BLOCK}.mlp.up_proj"
    plan = plan_for(locks={name: "int8"})
    assert plan.reasons[name].runner_up is None and not plan.reasons[name].within_noise
    assert plan.reasons["model.embed_tokens"].runner_up is None


def test_every_format_measured_or_offered_says_why_it_was_not_taken():
    sensitivity = profile(formats=("int8", "int4_g64", "int3_g64"))
    plan = plan_for(sensitivity, engine="vllm", formats=("int8",), weight_bits=9.0)
    offered = {name for name in find_engine("vllm").formats if find_format(name).quantized}
    for name, fmt in plan.assignments.items():
        answers = {a.format: a for a in plan.reasons[name].alternatives}
        assert set(answers) == {"bf16", "int8", "int4_g64", "int3_g64", *offered} - {fmt}
        assert [v.rule for v in answers["int4_g64"].verdicts] == ["chosen_formats"]
        assert {v.rule for v in answers["int3_g64"].verdicts} == {"engine_support", "chosen_formats"}
        assert "measurement" in {v.rule for v in answers["int8_g64"].verdicts}
        assert answers["int8_g64"].delta_loss is None
        for answer in answers.values():
            assert answer.delta_bytes == packed_bytes(find_format(answer.format), layer_named(name)) - packed_bytes(
                find_format(fmt), layer_named(name)
            )


def layer_named(name):
    return WHOLE.catalogue.by_name()[name]


def test_a_format_struck_by_a_fused_partner_names_the_partner():
    measured = profile(formats=("int8", "int4_g64"))
    without = tuple(m for m in measured.measurements if not ("k_proj" in m.layer and m.format == "int4_g64"))
    plan = plan_for(measured.model_copy(update={"measurements": without}), engine="vllm", weight_bits=9.0)
    answers = {a.format: a for a in plan.reasons[f"{BLOCK}.self_attn.q_proj"].alternatives}
    assert "fuses it with model.layers.0.self_attn.k_proj" in answers["int4_g64"].verdicts[-1].reason
    assert answers["int4_g64"].delta_loss is not None


# --------------------------------------------------------------------------------------- uncertainty


def test_a_format_is_within_noise_when_the_difference_is_smaller_than_its_error():
    marks = {}
    for scale in (1e-3, 1e6):
        noisy = tuple(m.model_copy(update={"kl_stderr": scale * m.kl_stderr}) for m in WHOLE.measurements)
        plan = plan_for(WHOLE.model_copy(update={"measurements": noisy}), weight_bits=5.2)
        marks[scale] = [plan.reasons[name].within_noise for name in plan.assignments]
        for name in plan.assignments:
            reason = plan.reasons[name]
            assert ("a close call, within the error of the scores" in reason.text) == reason.within_noise
    assert sum(marks[1e-3]) <= 1 and all(marks[1e6])


def test_noise_is_judged_at_the_plans_exchange_rate():
    plan = plan_for(fisher_profile(), weight_bits=4.8)
    for name in plan.assignments:
        reason = plan.reasons[name]
        regret = reason.runner_up.delta_loss + worth_of(plan) * reason.runner_up.delta_bytes
        assert reason.within_noise == (abs(regret) < 1.96 * reason.runner_up.delta_loss_stderr)
    assert 0 < sum(plan.reasons[name].within_noise for name in plan.assignments) < len(plan.assignments)


def test_what_a_layer_alone_would_win_is_held_against_all_layers_together():
    estimated, seen = sample_results.estimated_profile(), set()
    for bits in (4.5, 5.0, 6.0):
        plan = plan_for(estimated, weight_bits=bits)
        loss = predictor_of(estimated).loss
        before = max(loss(plan.assignments).delta_nll, 0.0)
        for name, reason in plan.reasons.items():
            clauses = r"([\w ]+) would cost [^,]+, which the limit has left, and by its own score (.*?)\.(?: |$)"
            for label, rest in re.findall(clauses, reason.text):
                other = next(
                    one.format for one in reason.alternatives if find_format(one.format).label == label.strip()
                )
                more = max(loss(plan.assignments | {name: other}).delta_nll, 0.0) - before
                error = error_of(estimated, plan, name, other)
                word = (
                    "tell" if 0 < abs(more) < 1.96 * error else "more" if more > 0 else "less" if more < 0 else "none"
                )
                seen.add(word)
                assert ("the scores cannot tell" in rest) == (word == "tell"), reason.text
                assert ("but all layers together" in rest) == (word in ("more", "none")), reason.text
                assert ("not every single change is tried" in rest) == (word == "less"), reason.text
    assert len(seen) > 1


def error_of(profile, plan, layer, fmt) -> float:
    """Of what all layers together lose more with this format, by the comparison of whole plans."""
    swapped = plan.assignments | {layer: fmt}
    other = plan.model_copy(update={"assignments": swapped, "predicted": predict(profile, swapped)})
    return paired_errors(profile, plan, other)[1]
