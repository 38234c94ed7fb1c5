"""What must hold for every plan, whatever is asked: tried on random requests."""

from __future__ import annotations

import random

import pytest

from advisor import knowledge
from advisor.errors import AdvisorError, InfeasibleBudget
from advisor.formats.table import packed_bytes
from advisor.groups import decision_groups
from advisor.memory import stored_bytes
from advisor.planning import make_plan
from advisor.rules import RULES, context_for, judge
from advisor.types import PlanRequest, SensitivityProfile
from tests.planning_cases import profile, request

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
        kept = knowledge.find_format(sensitivity.catalogue.dtype)
        assert plan.memory.weights_bytes == sum(
            stored_bytes(stored, knowledge.find_format(plan.assignments[layer.name]), layer)
            if layer.name in plan.assignments
            else packed_bytes(kept, layer)
            for layer in sensitivity.catalogue.layers
        )
