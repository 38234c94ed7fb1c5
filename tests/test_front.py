"""The feasible range and the Pareto front: monotone, each point what its size as a limit gives, and true to plans."""

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from advisor.cli import commands
from advisor.errors import InfeasibleBudget, PlanError
from advisor.formats.table import packed_bytes
from advisor.knowledge import find_engine, find_format, find_hardware
from advisor.latency import Roofline
from advisor.planner import rule_context
from advisor.planner.candidates import prepare
from advisor.planner.front import feasible_range, pareto_front
from advisor.planner.planning import make_plan
from advisor.planner.pool import solver_candidates
from advisor.planner.prediction import Predictor, predict
from advisor.planner.simple_plans import simple_plans
from advisor.planner.solver import supported_solutions
from advisor.types import Budget, Front, Role
from tests.planning_cases import fisher_profile, profile, request

FORMATS = ("int8", "int4_g64", "int4_g32")
few = settings(max_examples=15, deadline=None)
limits = st.sampled_from([{"weight_bits": 5.0}, {"weight_bytes": 2**22}, {"vram_bytes": 2**31}])
engines = st.sampled_from(["transformers", "vllm"])
seeds = st.integers(0, 100)
# Both engines leave the embedding as it is.
DECIDED = [one for one in profile(blocks=2).catalogue.quantizable if one.role is not Role.EMBEDDING]


def case(seed, **fields):
    return profile(blocks=2, formats=FORMATS, seed=seed), request(**fields)


def with_limit(asked, size):
    """The request with its limit, whatever its measure, set to just the size of a point of the front."""
    budget = asked.budget
    if budget.weight_bits:
        limit = {"weight_bits": size * 8 / sum(one.parameters for one in DECIDED)}
    elif budget.weight_bytes:
        limit = {"weight_bytes": size}
    else:
        limit = {"vram_bytes": math.ceil(size / find_engine(asked.engine).utilisation.value) + 1}
    return asked.model_copy(update={"budget": budget.model_copy(update=limit)})


@given(seeds, limits, engines)
@few
def test_a_larger_size_never_loses_more(seed, limit, engine):
    sensitivity, asked = case(seed, engine=engine, **limit)
    front = pareto_front(sensitivity, asked, points=5)
    for smaller, larger in itertools.pairwise(front.points):
        assert smaller.bytes < larger.bytes and smaller.loss > larger.loss
    assert all(point.gap == 0.0 for point in front.points)


@given(seeds, limits, engines)
@few
def test_every_point_is_the_plan_of_its_size(seed, limit, engine):
    sensitivity, asked = case(seed, engine=engine, **limit)
    for point in pareto_front(sensitivity, asked, points=5).points[::4]:
        plan = make_plan(sensitivity, with_limit(asked, point.bytes))
        assert plan.predicted.kl == pytest.approx(point.loss, rel=1e-9, abs=1e-15)
        assert plan.memory.weights_bytes == point.weights_bytes
        assert plan.memory.decided_bits == pytest.approx(point.decided_bits)
        assert plan.predicted.perplexity == pytest.approx(point.predicted.perplexity)
        assert plan.latency.tokens_per_s == pytest.approx(point.tokens_per_s)
        if limit.get("vram_bytes"):
            assert plan.memory.total_bytes == point.bytes


@pytest.mark.parametrize("seed", range(3))
def test_of_estimates_every_point_is_the_plan_of_its_size_too(seed):
    sensitivity = fisher_profile(blocks=4, seed=seed)
    asked = request("llama.cpp", "m4-16gb", weight_bytes=2**24)
    points = pareto_front(sensitivity, asked).points
    for smaller, larger in itertools.pairwise(points):
        assert (smaller.predicted.delta_nll, smaller.predicted.kl) > (larger.predicted.delta_nll, larger.predicted.kl)
    for point in points[::5]:
        plan = make_plan(sensitivity, with_limit(asked, point.bytes))
        assert plan.memory.weights_bytes == point.weights_bytes
        assert plan.predicted.model_dump() == pytest.approx(point.predicted.model_dump())


@given(seeds, limits)
@few
def test_the_front_spans_the_feasible_range_and_the_range_is_what_refusals_say(seed, limit):
    sensitivity, asked = case(seed, **limit)
    front, possible = pareto_front(sensitivity, asked, points=3), feasible_range(sensitivity, asked)
    assert (front.points[0], front.points[-1]) == (possible.smallest, possible.largest)
    below = with_limit(asked, possible.smallest.bytes - 2**20)
    with pytest.raises(InfeasibleBudget) as refusal:
        make_plan(sensitivity, below)
    assert refusal.value.smallest_bytes == possible.smallest.bytes
    missing = feasible_range(sensitivity, below).missing_bytes
    assert missing == refusal.value.smallest_bytes - refusal.value.limit_bytes > 0
    assert feasible_range(sensitivity, with_limit(asked, possible.smallest.bytes)).missing_bytes == 0


@given(seeds, engines)
@few
def test_every_plan_that_is_best_at_some_price_is_on_the_front_and_more_sizes_add_to_it(seed, engine):
    sensitivity, asked = case(seed, engine=engine)
    best = {solution.cost for solution in supported_solutions(solver_candidates(prepare(sensitivity, asked)))}
    some, many = ({point.bytes for point in pareto_front(sensitivity, asked, points=n).points} for n in (1, 20))
    assert best <= some and best < many


def test_simple_plans_on_the_front_are_the_plans_of_their_own():
    sensitivity, asked = case(1, locks={r".*\.o_proj": "int8"})
    simple = pareto_front(sensitivity, asked, points=1).simple
    plans = simple_plans(sensitivity, asked)
    assert set(simple) == set(plans)
    for name, plan in plans.items():
        assert simple[name].predicted == plan.predicted
        assert simple[name].weights_bytes == plan.memory.weights_bytes
        assert simple[name].tokens_per_s == pytest.approx(plan.latency.tokens_per_s)


def test_simple_plans_that_a_wish_forbids_are_marked_so():
    sensitivity, asked = case(1, locks={r".*\.o_proj": "int8"})
    front = pareto_front(sensitivity, asked, points=1)
    assert "uniform int8" not in front.against_wishes and "uniform int4_g64" in front.against_wishes
    assert "uniform int4_g64 (against your wishes)" in front.marked_simple
    assert not pareto_front(*case(1), points=1).against_wishes


@pytest.mark.parametrize("limit", [{"weight_bits": 6.0}, {"vram_bytes": 2**31}])
def test_where_an_engine_holds_one_quantized_format_the_front_mixes_no_two_either(limit):
    sensitivity = profile(blocks=2, formats=("int8", "nf4_g64"), seed=3)
    asked = request(engine="transformers-bitsandbytes", **limit)
    front = pareto_front(sensitivity, asked, points=5)
    for point in front.points:
        plan = make_plan(sensitivity, with_limit(asked, point.bytes))
        assert plan.memory.model_weights_bytes <= point.weights_bytes
        assert predict(sensitivity, plan.assignments).kl <= point.loss * (1 + 1e-9)
        assert point.loss == pytest.approx(point.predicted.kl)
    found = feasible_range(sensitivity, asked)
    assert (found.smallest, found.largest) == (front.points[0], front.points[-1])
    assert set(front.simple) == {"uniform int8", "uniform nf4_g64"}


def test_locks_hold_along_the_whole_front():
    sensitivity, asked = case(2, locks={r".*\.o_proj": "int8"})
    free = pareto_front(sensitivity, case(2)[1], points=3).points[0]
    assert pareto_front(sensitivity, asked, points=3).points[0].bytes > free.bytes


def test_a_front_survives_json():
    front = pareto_front(*case(0), points=3)
    assert Front.model_validate_json(front.model_dump_json()) == front


def test_one_predictor_for_many_assignments_says_what_predict_says():
    sensitivity = profile(blocks=2, formats=FORMATS)
    predictor = Predictor(sensitivity)
    for fmt in FORMATS:
        assignments = {one.name: fmt for one in sensitivity.catalogue.quantizable}
        assert predictor(assignments) == predict(sensitivity, assignments)
    with pytest.raises(PlanError, match="was not measured in int3_g64"):
        predictor(dict.fromkeys(list(assignments)[:1], "int3_g64"))


def test_the_command_prints_the_front_and_writes_it(tmp_path):
    sensitivity, out = tmp_path / "profile.json", tmp_path / "front.json"
    sensitivity.write_text(profile(formats=FORMATS).model_dump_json())
    command = ["front", str(sensitivity), "--hardware", "rtx-4090", "--engine", "transformers", "--points", "4"]
    ran = CliRunner().invoke(commands.app, [*command, "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    written = Front.model_validate_json(out.read_text())
    assert "uniform int4_g64" in ran.output and "role rule" in ran.output
    assert f"{written.points[0].decided_bits:.3f}" in ran.output
    printed = json.loads(CliRunner().invoke(commands.app, [*command, "--json"]).stdout)
    assert len(printed["points"]) == len(written.points)


# ------------------------------------------------------------------------------------ most speed


def fastest(sensitivity, **fields):
    return make_plan(sensitivity, request(**fields))


@given(seeds, st.floats(4.5, 10.0), st.floats(0.001, 0.1), st.sampled_from([1, 64]))
@few
def test_no_assignment_within_both_limits_is_faster(seed, bits, tolerance, sequences):
    sensitivity = profile(blocks=1, formats=("int8", "int4_g64"), seed=seed)
    layers = sensitivity.catalogue.by_name()
    limit = math.log1p(tolerance)
    scores = {(m.layer, m.format): m for m in sensitivity.measurements}
    try:
        plan = fastest(sensitivity, weight_bits=bits, max_ppl_increase=tolerance, sequences=sequences)
    except InfeasibleBudget:
        plan = None
    names = [one.name for one in DECIDED if one.block == 0]
    total = sum(layers[name].parameters for name in names)
    milliseconds = step_milliseconds(sensitivity.catalogue, sequences)
    least = math.inf
    for formats in itertools.product(("bf16", "int8", "int4_g64"), repeat=len(names)):
        items = list(zip(names, formats, strict=True))
        used = [scores[item] for item in items if item in scores]
        size = 8 * sum(packed_bytes(find_format(fmt), layers[name]) for name, fmt in items)
        if size <= bits * total and max(sum(m.kl for m in used), sum(m.delta_nll for m in used)) <= limit:
            least = min(least, milliseconds(dict(items)))
    assert (plan is None) == (least == math.inf)
    if plan is not None:
        assert plan.latency.decode_ms_per_step == pytest.approx(least, rel=1e-6)
        assert plan.memory.decided_bits <= bits
        assert plan.predicted.perplexity / plan.predicted.base_perplexity - 1 <= tolerance + 1e-12
        assert plan.optimality_gap == 0.0


def step_milliseconds(catalogue, sequences):
    """Assignments -> milliseconds of a decoding step; every layer and format is looked at once."""
    budget = Budget(weight_bits=4, sequences=sequences)
    line = Roofline(catalogue, find_engine("transformers"), find_hardware("h100-sxm-80gb"), budget)
    known = {
        (one.name, fmt): line.layer(one, find_format(fmt), "decode").seconds
        for one in catalogue.layers
        for fmt in ("bf16", "int8", "int4_g64")
    }
    rest = line.attention("decode").seconds

    def total(assignments):
        return 1000 * (rest + sum(known[one.name, assignments.get(one.name, "bf16")] for one in catalogue.layers))

    return total


@given(seeds, st.tuples(st.floats(4.5, 12.0), st.floats(4.5, 12.0)), st.tuples(st.floats(0, 0.2), st.floats(0, 0.2)))
@few
def test_looser_limits_are_never_slower(seed, bits, tolerances):
    sensitivity = profile(blocks=2, formats=("int8", "int4_g64"), seed=seed)
    try:
        tight = fastest(sensitivity, weight_bits=min(bits), max_ppl_increase=min(tolerances))
    except InfeasibleBudget:
        return
    loose = fastest(sensitivity, weight_bits=max(bits), max_ppl_increase=max(tolerances))
    assert loose.latency.decode_ms_per_step <= tight.latency.decode_ms_per_step * (1 + 1e-7)


def test_where_arithmetic_binds_smaller_formats_are_no_faster_and_the_precise_one_is_kept():
    sensitivity = profile(blocks=1, formats=("int8", "int4_g64"))
    plan = fastest(sensitivity, weight_bits=16.0, max_ppl_increase=0.2, sequences=2000, context=16)
    quantized = {name for name, fmt in plan.assignments.items() if fmt != "bf16"}
    small_batch = fastest(sensitivity, weight_bits=16.0, max_ppl_increase=0.2)
    assert len(quantized) < sum(fmt != "bf16" for fmt in small_batch.assignments.values())


@pytest.mark.parametrize("bits", [4.3, 1.0])  # 1.0 is below what is possible without a tolerance too
def test_a_tolerance_whose_smallest_plan_is_over_the_limit_is_refused_by_how_much(bits):
    sensitivity = profile(formats=("int8", "int4_g64"))
    with pytest.raises(
        InfeasibleBudget, match=r"no more than 0\.1 % averages .* bits allow; allow at least"
    ) as refusal:
        fastest(sensitivity, weight_bits=bits, max_ppl_increase=0.001)
    smallest = make_plan(sensitivity, request(max_ppl_increase=0.001))
    words = str(refusal.value).split("allow at least ")[1].split(" bits")[0]
    assert float(words) == pytest.approx(smallest.memory.decided_bits, abs=0.011)
    plan = fastest(sensitivity, weight_bits=float(words), max_ppl_increase=0.001)
    assert plan.memory.decided_bits <= float(words)


def test_reasons_of_the_fastest_plan_speak_of_time():
    said = [one.text for one in fastest(profile(), weight_bits=6.0, max_ppl_increase=0.05).reasons.values()]
    compared = [text for text in said if "would save" in text or "would cost" in text]
    assert compared and all("s a step and " in text and "bytes" not in text for text in compared)


def test_speed_is_refused_where_nothing_can_be_told_of_it(monkeypatch):
    mute = find_hardware("h100-sxm-80gb").model_copy(update={"bandwidth_gb_s": None})
    monkeypatch.setattr(rule_context, "find_hardware", lambda name: mute)
    with pytest.raises(
        PlanError, match="the memory bandwidth of NVIDIA H100 SXM 80 GB is not stated; give one of the two"
    ):
        fastest(profile(), weight_bits=5.0, max_ppl_increase=0.05)
    assert make_plan(profile(), request(weight_bits=5.0)).latency.tokens_per_s is None


def test_a_budget_takes_one_limit_of_memory_and_a_tolerance_or_both():
    for fields in ({}, {"weight_bits": 4, "vram_bytes": 1}, {"weight_bits": 4, "weight_bytes": 1}):
        with pytest.raises(ValueError, match=r"give (at most )?one of"):
            Budget(**fields)
    assert Budget(vram_bytes=1, max_ppl_increase=0.1).fastest
    assert not Budget(max_ppl_increase=0.1).fastest and not Budget(vram_bytes=1).fastest
