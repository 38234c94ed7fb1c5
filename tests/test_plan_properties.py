"""What must hold for every plan, whatever is asked: tried on random requests."""

from __future__ import annotations

import itertools
import random
from contextlib import suppress

import pytest

from advisor import knowledge
from advisor.errors import AdvisorError, InfeasibleBudget
from advisor.formats.table import packed_bytes
from advisor.memory import kept_format, stored_bytes
from advisor.planner.groups import decision_groups
from advisor.planner.planning import make_plan
from advisor.planner.prediction import Predictor
from advisor.planner.rule_context import context_for
from advisor.planner.rules import RULES, judge
from advisor.types import Plan, PlanRequest, SensitivityProfile, relative_change
from tests.planning_cases import fisher_profile, profile, request

FORMATS = ("int8", "int8_w8a8", "int4_g64", "int4_g128", "nf4_g64", "int3_g64")
_HARD = {rule.name for rule in RULES if rule.hard}
PAIRS = [
    (engine.name, device)
    for engine in knowledge.engines().values()
    for device in ("rtx-4090", "h100-sxm-80gb", "t4", "b200-180gb", "mi300x", "m4-16gb", "this-machine")
    if knowledge.find_hardware(device).vendor in engine.vendors
]


def random_request(chance: random.Random, engine: str, device: str) -> PlanRequest:
    limit = chance.choice(["weight_bits", "weight_bytes", "max_ppl_increase"])
    value = {
        "weight_bits": chance.uniform(2, 16),
        "weight_bytes": chance.randrange(10**6, 3 * 10**7),
        "max_ppl_increase": chance.uniform(0, 0.3),
    }[limit]
    wishes = {
        "locks": chance.choice([{}, {r".*\.o_proj": "int8"}, {"block 0": "int4_g64"}]),
        "excluded": chance.choice([(), ("block 1",), (r".*down_proj",)]),
        "role_floors": chance.choice(["off", "advise", "enforce"]),
    }
    sequences = chance.choice([1, 16])
    return request(engine, device, sequences=sequences, context=512, **{limit: value}, **wishes)


@pytest.mark.parametrize(("engine", "device"), PAIRS, ids="-".join)
def test_no_assignment_ever_breaks_a_hard_rule(engine, device):
    chance, sensitivity, made = random.Random(f"{engine} {device}"), profile(formats=FORMATS), 0
    for _ in range(12):
        asked = random_request(chance, engine, device)
        try:
            plan = make_plan(sensitivity, asked)
        except AdvisorError:
            continue
        made += 1
        _check(sensitivity, asked, plan.assignments)
    assert made >= 2


def _check(sensitivity: SensitivityProfile, asked: PlanRequest, assignments: dict[str, str]) -> None:
    catalogue, context = sensitivity.catalogue, context_for(sensitivity.catalogue, asked)
    layers = catalogue.by_name()
    for name, fmt in assignments.items():
        said = judge(layers[name], knowledge.find_format(fmt), context)
        assert [verdict for verdict in said if verdict.rule in _HARD and not verdict.allowed] == []
    for group in decision_groups(catalogue, context.engine, [layer.name for layer in catalogue.layers]):
        held = {assignments.get(layer.name, catalogue.dtype) for layer in group.layers}
        assert len(held) == 1, f"{context.engine.label} fuses {group.name}"
    quantized = {fmt for fmt in assignments.values() if fmt != catalogue.dtype}
    assert len(quantized) <= 1 or not context.engine.one_quantized_format


@pytest.mark.parametrize(("engine", "device"), PAIRS, ids="-".join)
def test_an_infeasible_budget_always_says_by_how_much(engine, device):
    sensitivity = profile(formats=FORMATS)
    for limits in ({"weight_bits": 1.0}, {"weight_bytes": 1000}, {"vram_bytes": 10**6}):
        with pytest.raises(InfeasibleBudget) as refused:
            make_plan(sensitivity, request(engine, device, context=512, **limits))
        error = refused.value
        assert error.smallest_bytes > error.limit_bytes >= 0
        assert " more than " in str(error)


def test_the_weights_of_a_plan_are_the_sum_of_its_layers_as_stored():
    sensitivity = profile(formats=FORMATS)
    for engine in ("vllm", "transformers", "llama.cpp"):
        plan = make_plan(sensitivity, request(engine, weight_bits=5.5))
        stored = knowledge.find_engine(engine)
        assert plan.memory.weights_bytes == sum(
            stored_bytes(stored, knowledge.find_format(plan.assignments[layer.name]), layer)
            if layer.name in plan.assignments
            else packed_bytes(kept_format(stored, sensitivity.catalogue, layer), layer)
            for layer in sensitivity.catalogue.layers
        )


@pytest.mark.parametrize(("engine", "device"), [("mlx", "m4-16gb"), ("vllm", "rtx-4090")], ids="-".join)
@pytest.mark.parametrize("seed", range(3))
def test_a_looser_budget_never_gives_a_worse_prediction(seed, engine, device):
    sensitivity = fisher_profile(blocks=8, seed=seed)
    sizes = [4.3 + step / 8 for step in range(64)]
    predictions = [make_plan(sensitivity, request(engine, device, weight_bits=bits)).predicted for bits in sizes]
    for tighter, looser in itertools.pairwise(predictions):
        assert looser.delta_nll <= tighter.delta_nll
    assert len({predicted.delta_nll for predicted in predictions}) > 16
    assert predictions[-1].delta_nll < 0.1 * predictions[0].delta_nll


def test_where_all_memory_is_to_spare_nothing_is_changed_whatever_the_text_promises():
    sensitivity = fisher_profile(blocks=8)
    gains = [
        one.model_copy(
            update={"delta_nll": -one.kl, "delta_nll_by_sequence": (-one.kl,) * len(one.delta_nll_by_sequence)}
        )
        for one in sensitivity.measurements
    ]
    plan = make_plan(sensitivity.model_copy(update={"measurements": tuple(gains)}), request(weight_bits=16.0))
    assert set(plan.assignments.values()) == {sensitivity.catalogue.dtype}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tolerance", [0.005, 0.02, 0.03])
def test_a_tolerance_is_kept_with_a_standard_error_to_spare_and_used(seed, tolerance):
    sensitivity = fisher_profile(blocks=8, seed=seed)
    plan = make_plan(sensitivity, request(max_ppl_increase=tolerance))
    assert upper_side(sensitivity, plan) <= tolerance
    smaller = make_plan(sensitivity, request(weight_bytes=int(0.95 * plan.memory.weights_bytes)))
    assert upper_side(sensitivity, smaller) > tolerance


@pytest.mark.parametrize("seed", range(2))
def test_of_estimates_the_fastest_plan_keeps_both_limits_and_looser_ones_are_never_slower(seed):
    sensitivity = fisher_profile(blocks=6, seed=seed)
    plans = {}
    for bits, tolerance in itertools.product((8.0, 10.0, 12.0, 16.0), (0.002, 0.005, 0.01, 0.05)):
        with suppress(InfeasibleBudget):
            plans[bits, tolerance] = make_plan(sensitivity, request(weight_bits=bits, max_ppl_increase=tolerance))
    assert len({plan.latency.decode_ms_per_step for plan in plans.values()}) > 3
    for (bits, tolerance), plan in plans.items():
        assert plan.memory.decided_bits <= bits
        assert upper_side(sensitivity, plan) <= tolerance
        looser = [other for limits, other in plans.items() if limits[0] >= bits and limits[1] >= tolerance]
        slowest = max(other.latency.decode_ms_per_step for other in looser)
        assert slowest <= plan.latency.decode_ms_per_step * (1 + 1e-7)
        smallest = make_plan(sensitivity, request(max_ppl_increase=tolerance))
        assert smallest.memory.weights_bytes <= plan.memory.weights_bytes
        if smallest.memory.decided_bits <= bits:
            assert smallest.latency.decode_ms_per_step >= plan.latency.decode_ms_per_step * (1 - 1e-7)


def upper_side(sensitivity: SensitivityProfile, plan: Plan) -> float:
    """The change of perplexity that is predicted, and one standard error."""
    loss = Predictor(sensitivity).loss(plan.assignments)
    return relative_change(max(loss.delta_nll, 0.0) + loss.delta_nll_stderr)


def test_no_plan_is_predicted_to_be_better_than_the_unquantized_model():
    sensitivity = fisher_profile()
    lucky = [
        one.model_copy(update={"delta_nll": -1.0, "delta_nll_by_sequence": (-1.0,) * len(one.delta_nll_by_sequence)})
        for one in sensitivity.measurements
    ]
    predicted = make_plan(sensitivity.model_copy(update={"measurements": tuple(lucky)}), request()).predicted
    assert predicted.delta_nll == 0
    assert predicted.perplexity == predicted.base_perplexity
