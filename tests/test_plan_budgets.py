"""Budgets of plans: nothing better fits, none is exceeded, and what cannot fit is refused with the way on."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.errors import InfeasibleBudget
from advisor.formats.table import packed_bytes
from advisor.knowledge import find_engine, find_format, find_hardware
from advisor.memory import estimate_memory
from advisor.planner.planning import predict
from tests.planning_cases import FEW, WHOLE, plan_for, profile

SMALL = profile(blocks=1, formats=("int8", "int4_g64"))
MIB, GIB = 2**20, 2**30


def kl_of(sensitivity, assignments):
    scores = {(m.layer, m.format): m.kl for m in sensitivity.measurements}
    return math.fsum(scores.get(item, 0.0) for item in assignments.items())


def decided_bytes(sensitivity, assignments):
    layers = sensitivity.catalogue.by_name()
    return sum(packed_bytes(find_format(fmt), layers[name]) for name, fmt in assignments.items())


# -------------------------------------------------------------------------------------------- optimum


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
@pytest.mark.parametrize("bits", [4.3, 4.8, 6.0, 9.0])
def test_no_other_assignment_within_the_budget_loses_less(engine, bits):
    plan = plan_for(SMALL, engine=engine, weight_bits=bits)
    names = list(plan.assignments)
    keys = [SMALL.catalogue.by_name()[name].fused_with or name for name in names]
    budget = bits * sum(SMALL.catalogue.by_name()[name].parameters for name in names) / 8
    best = math.inf
    for formats in itertools.product(("bf16", "int8", "int4_g64"), repeat=len(names)):
        if engine == "vllm" and len(set(zip(keys, formats, strict=True))) > len(set(keys)):
            continue
        assignments = dict(zip(names, formats, strict=True))
        if decided_bytes(SMALL, assignments) <= budget:
            best = min(best, kl_of(SMALL, assignments))
    assert plan.predicted.kl == pytest.approx(best, rel=1e-9)
    assert plan.optimality_gap == 0.0


def test_fused_layers_share_a_format_on_engines_that_fuse_them():
    differing = 0
    for bits in (4.5, 5.0, 5.5, 6.0, 7.0):
        for engine in ("vllm", "transformers"):
            plan = plan_for(profile(formats=("int8", "int4_g64")), engine=engine, weight_bits=bits)
            shared = {}
            for layer in WHOLE.catalogue.quantizable:
                if layer.fused_with:
                    shared.setdefault(layer.fused_with, set()).add(plan.assignments[layer.name])
            if engine == "vllm":
                assert all(len(formats) == 1 for formats in shared.values())
            else:
                differing += sum(len(formats) > 1 for formats in shared.values())
    assert differing, "without fusion some partners should differ, or this test shows nothing"


# ------------------------------------------------------------------------------------------- budgets


@given(bits=st.floats(4.3, 17.0), engine=st.sampled_from(["transformers", "vllm", "llama.cpp"]))
@FEW
def test_average_bits_never_exceed_the_budget(bits, engine):
    sensitivity = profile(formats=("int8", "int4_g64"))
    assert plan_for(sensitivity, weight_bits=bits, engine=engine).memory.decided_bits <= bits


@given(share=st.floats(0.0, 1.0), engine=st.sampled_from(["transformers", "vllm", "llama.cpp"]))
@FEW
def test_weight_bytes_never_exceed_the_budget_as_the_engine_stores_them(share, engine):
    sensitivity = profile(formats=("int8", "int4_g64"))
    with pytest.raises(InfeasibleBudget) as refusal:
        plan_for(sensitivity, weight_bytes=1, engine=engine)
    smallest = refusal.value.smallest_bytes
    original = plan_for(sensitivity, weight_bits=20.0, engine=engine).memory.weights_bytes
    limit = smallest + int(share * (original - smallest))
    assert plan_for(sensitivity, weight_bytes=limit, engine=engine).memory.weights_bytes <= limit
    assert plan_for(sensitivity, weight_bytes=smallest, engine=engine).memory.weights_bytes == smallest


@given(spare=st.integers(0, 8 * MIB), context=st.sampled_from([128, 4096, 8192]), sequences=st.integers(1, 4))
@FEW
def test_everything_in_memory_fits_the_usable_part_of_the_device(spare, context, sequences):
    load = {"context": context, "sequences": sequences}
    with pytest.raises(InfeasibleBudget) as refusal:
        plan_for(vram_bytes=MIB, **load)
    vram = math.ceil((refusal.value.smallest_bytes + spare) / 0.95) + 1
    plan = plan_for(vram_bytes=vram, **load)
    assert plan.memory.fits and plan.memory.limit_bytes <= vram
    assert plan.memory.kv_cache_bytes > 0


def test_a_longer_context_leaves_fewer_bytes_for_weights():
    with pytest.raises(InfeasibleBudget) as refusal:
        plan_for(vram_bytes=MIB, context=4096)
    vram = int(refusal.value.smallest_bytes / 0.95) + 2 * MIB
    short, long = (plan_for(vram_bytes=vram, context=context).memory for context in (128, 4096))
    assert long.weights_bytes < short.weights_bytes


@given(limits=st.tuples(st.floats(4.3, 17.0), st.floats(4.3, 17.0)))
@FEW
def test_a_tighter_budget_never_adds_bytes_and_never_lowers_the_loss(limits):
    sensitivity = profile(formats=("int8", "int4_g64"))
    tight, loose = (plan_for(sensitivity, weight_bits=bits) for bits in sorted(limits))
    assert tight.memory.decided_bits <= loose.memory.decided_bits
    assert tight.predicted.kl >= loose.predicted.kl * (1 - 1e-9)


@given(tolerance=st.floats(0.0, 0.2), seed=st.integers(0, 5))
@FEW
def test_a_tolerance_bounds_both_kl_and_the_predicted_perplexity(tolerance, seed):
    plan = plan_for(profile(seed=seed), max_ppl_increase=tolerance)
    allowed = tolerance + 1e-12
    assert math.expm1(plan.predicted.kl) <= allowed
    assert plan.predicted.perplexity / plan.predicted.base_perplexity - 1 <= allowed


def test_a_larger_tolerance_never_adds_bytes_and_none_keeps_the_model():
    sizes = [plan_for(max_ppl_increase=tolerance).memory.weights_bytes for tolerance in (0.0, 0.001, 0.01, 0.05, 0.5)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == plan_for(max_ppl_increase=0.0).memory.original_weights_bytes
    assert sizes[-1] < sizes[0] / 2


def test_a_tolerance_gives_the_fewest_bytes_there_are():
    sensitivity = profile(blocks=1, formats=("int8", "int4_g64"))
    plan = plan_for(sensitivity, max_ppl_increase=0.004)
    engine, layers = find_engine("transformers"), sensitivity.catalogue.by_name()
    best = math.inf
    for formats in itertools.product(("bf16", "int8", "int4_g64"), repeat=len(plan.assignments)):
        assignments = dict(zip(plan.assignments, formats, strict=True))
        predicted = predict(sensitivity, assignments)
        if max(predicted.kl, predicted.delta_nll) <= math.log1p(0.004):
            memory = estimate_memory(
                sensitivity.catalogue, assignments, engine, find_hardware(plan.request.hardware), plan.request.budget
            ).weights_bytes
            best = min(best, memory)
    assert plan.memory.weights_bytes == best
    assert set(layers) > set(plan.assignments)


# ----------------------------------------------------------------------------------------- infeasible


def test_an_impossible_average_says_the_smallest_one_and_by_how_much_it_misses():
    with pytest.raises(InfeasibleBudget) as refusal:
        plan_for(profile(formats=("int8", "int4_g64")), weight_bits=4.0)
    sentence = str(refusal.value)
    assert "averages 4.25 bits" in sentence and "4 bits allow" in sentence and "allow at least 4.25 bits" in sentence
    assert refusal.value.smallest_bytes - refusal.value.limit_bytes > 0
    assert sentence.count(". ") == 0 and sentence.endswith(".")


@pytest.mark.parametrize("engine", ["transformers", "vllm", "llama.cpp"])
def test_the_suggested_budget_is_enough_and_a_little_less_is_not(engine):
    sensitivity = profile(formats=("int8", "int4_g64"))
    for limit, unit in ({"weight_bits": 3.0}, "bits"), ({"weight_bytes": MIB}, "MiB"), ({"vram_bytes": MIB}, "GiB"):
        with pytest.raises(InfeasibleBudget) as refusal:
            plan_for(sensitivity, engine=engine, **limit)
        words = str(refusal.value).split("allow at least ")[1].replace(",", " ").replace(";", " ").rstrip(".").split()
        assert words[1] == unit
        factor = {"bits": 1, "MiB": MIB, "GiB": GIB}[unit]
        kind = type(next(iter(limit.values())))
        enough = {name: kind(float(words[0]) * factor) for name in limit}
        plan_for(sensitivity, engine=engine, **enough)
        with pytest.raises(InfeasibleBudget):
            plan_for(sensitivity, engine=engine, **{name: kind((float(words[0]) - 0.02) * factor) for name in limit})


def test_more_memory_than_the_device_has_is_never_suggested():
    with pytest.raises(InfeasibleBudget, match=r"plan for a device with at least .* GiB, shorten the context to"):
        plan_for(vram_bytes=79 * GIB, context=8192, sequences=100_000)


def test_a_large_kv_cache_is_named_as_the_thing_to_shrink():
    with pytest.raises(InfeasibleBudget, match=r"\(the KV cache takes .*shorten the context to .*serve \d+"):
        plan_for(vram_bytes=2 * GIB, context=8192, sequences=400)
    with pytest.raises(InfeasibleBudget) as refusal:
        plan_for(vram_bytes=MIB, context=16)
    assert "KV cache" not in str(refusal.value)


def test_lower_formats_that_nobody_measured_are_named():
    with pytest.raises(InfeasibleBudget, match=r"measure .*int2_g64"):
        plan_for(profile(formats=("int8", "int4_g64")), weight_bits=4.0)
    with pytest.raises(InfeasibleBudget, match="choose from int4_g64 too"):
        plan_for(profile(formats=("int8", "int4_g64")), weight_bits=5.0, formats=("int8",))
    with pytest.raises(InfeasibleBudget) as refusal:
        plan_for(profile(formats=("int8", "int4_g64")), weight_bits=4.0, engine="vllm")
    assert "int2_g64" not in str(refusal.value)


def test_floors_and_locks_that_stand_in_the_way_are_named():
    with pytest.raises(InfeasibleBudget, match="role floors to advise"):
        plan_for(weight_bits=4.5, role_floors="enforce", engine="mlx", hardware="m4-max-128gb")
    with pytest.raises(InfeasibleBudget, match="remove the lock"):
        plan_for(weight_bits=4.5, locks={".*proj": "bf16"})
    with pytest.raises(InfeasibleBudget) as refusal:
        plan_for(profile(formats=("int8", "int4_g64")), weight_bits=4.0)
    assert "floors" not in str(refusal.value) and "lock" not in str(refusal.value)


def test_locked_formats_beyond_the_tolerance_are_refused():
    with pytest.raises(
        InfeasibleBudget, match=r"locked formats alone raise perplexity by about .* %, more than the 0.01 %"
    ):
        plan_for(max_ppl_increase=0.0001, locks={r".*\.o_proj": "int4_g64"})
