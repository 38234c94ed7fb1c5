"""Plans from a hand-written sensitivity profile: budgets hold, refusals say how to go on, every layer has a reason."""

import itertools
import math
import statistics
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.errors import InfeasibleBudget, PlanError
from advisor.formats.table import packed_bytes
from advisor.knowledge import find_engine, find_format, find_hardware
from advisor.memory import estimate_memory, usable_bytes
from advisor.planning import ADVISOR_VERSION, make_plan, predict
from advisor.rules import FLOOR_PRICE
from advisor.simple_plans import simple_plans
from advisor.types import Plan, SensitivityProfile
from tests.planning_cases import FORMATS, catalogue, fisher_profile, profile, request

BLOCK = "model.layers.0"
SMALL = profile(blocks=1, formats=("int8", "int4_g64"))
WHOLE = profile(blocks=2)
MIB, GIB = 2**20, 2**30

few = settings(max_examples=25, deadline=None)


def plan_for(sensitivity: SensitivityProfile = WHOLE, **fields) -> Plan:
    return make_plan(sensitivity, request(**fields))


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
@few
def test_average_bits_never_exceed_the_budget(bits, engine):
    sensitivity = profile(formats=("int8", "int4_g64"))
    assert plan_for(sensitivity, weight_bits=bits, engine=engine).memory.decided_bits <= bits


@given(share=st.floats(0.0, 1.0), engine=st.sampled_from(["transformers", "vllm", "llama.cpp"]))
@few
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
@few
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
@few
def test_a_tighter_budget_never_adds_bytes_and_never_lowers_the_loss(limits):
    sensitivity = profile(formats=("int8", "int4_g64"))
    tight, loose = (plan_for(sensitivity, weight_bits=bits) for bits in sorted(limits))
    assert tight.memory.decided_bits <= loose.memory.decided_bits
    assert tight.predicted.kl >= loose.predicted.kl * (1 - 1e-9)


@given(tolerance=st.floats(0.0, 0.2), seed=st.integers(0, 5))
@few
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
                sensitivity.catalogue, assignments, engine, _device(plan), plan.request.budget
            ).weights_bytes
            best = min(best, memory)
    assert plan.memory.weights_bytes == best
    assert set(layers) > set(plan.assignments)


def _device(plan):
    return find_hardware(plan.request.hardware)


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
    with pytest.raises(InfeasibleBudget, match=r"plan for a device with at least .* GiB, or shorten the context"):
        plan_for(vram_bytes=79 * GIB, context=8192, sequences=100_000)


def test_a_large_kv_cache_is_named_as_the_thing_to_shrink():
    with pytest.raises(InfeasibleBudget, match=r"shorten the context or serve fewer sequences \(the KV cache takes"):
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
    with pytest.raises(InfeasibleBudget, match="remove a lock"):
        plan_for(weight_bits=4.5, locks={".*proj": "bf16"})
    with pytest.raises(InfeasibleBudget) as refusal:
        plan_for(profile(formats=("int8", "int4_g64")), weight_bits=4.0)
    assert "floors" not in str(refusal.value) and "lock" not in str(refusal.value)


def test_locked_formats_beyond_the_tolerance_are_refused():
    with pytest.raises(
        InfeasibleBudget, match=r"locked formats alone raise perplexity by about .* %, more than the 0.01 %"
    ):
        plan_for(max_ppl_increase=0.0001, locks={r".*\.o_proj": "int4_g64"})


# ------------------------------------------------------------------------------- what a plan decides


def test_layers_that_the_engine_cannot_quantize_are_left_out_but_have_a_reason():
    plan = plan_for(engine="transformers")
    assert "model.embed_tokens" not in plan.assignments
    assert plan.reasons["model.embed_tokens"].text == (
        "Kept at BF16: Transformers with optimum-quanto does not quantize embeddings."
    )
    decided_elsewhere = plan_for(engine="mlx", hardware="m4-max-128gb")
    assert "model.embed_tokens" in decided_elsewhere.assignments


def test_every_layer_has_a_reason_in_one_sentence():
    for engine in ("transformers", "vllm"):
        plan = plan_for(profile(formats=("int8", "int4_g64")), engine=engine)
        assert list(plan.reasons) == [layer.name for layer in WHOLE.catalogue.layers]
        for reason in plan.reasons.values():
            assert reason.text.endswith(".") and ". " not in reason.text
        assert plan.reasons[f"{BLOCK}.input_layernorm"].text == "Kept at BF16: norms are never quantized."


def test_layers_that_were_not_measured_keep_their_dtype_and_say_so():
    plan = plan_for(profile(measured="layers.0."))
    assert all(name.startswith(BLOCK) for name in plan.assignments)
    assert "was not measured" in plan.reasons["model.layers.1.mlp.up_proj"].text
    assert "profile it" in plan.reasons["model.layers.1.mlp.up_proj"].text
    assert plan.predicted.unmeasured_layers == 8


def test_a_fused_group_with_an_unmeasured_layer_is_not_decided():
    partly = profile(formats=("int8", "int4_g64"), measured="q_proj")
    with pytest.raises(PlanError, match="None of the formats measured"):
        plan_for(partly, engine="vllm")
    assert set(plan_for(partly).assignments) == {f"model.layers.{block}.self_attn.q_proj" for block in (0, 1)}
    more = profile(formats=("int8", "int4_g64"), measured=".0.self_attn.")
    missing = more.model_copy(update={"measurements": tuple(m for m in more.measurements if "k_proj" not in m.layer)})
    plan = plan_for(missing, engine="vllm")
    assert set(plan.assignments) == {f"{BLOCK}.self_attn.o_proj"}
    assert "fuses it with" in plan.reasons[f"{BLOCK}.self_attn.q_proj"].text


def test_a_format_whose_groups_do_not_divide_a_layer_is_struck_with_the_reason():
    plan = plan_for(profile(formats=("int8", "int4_g64", "int4_g128")), weight_bits=4.26)
    assert plan.assignments[f"{BLOCK}.self_attn.o_proj"] == "int4_g64"
    mixed = profile(formats=("int8", "int4_g64"))
    extra = tuple(m.model_copy(update={"format": "int4_g128"}) for m in mixed.measurements if m.format == "int4_g64")
    plan = plan_for(mixed.model_copy(update={"measurements": mixed.measurements + extra}))
    struck = {a.format: a.verdicts for a in plan.reasons[f"{BLOCK}.self_attn.o_proj"].alternatives}["int4_g128"]
    assert any(not v.allowed and "576 is not divisible by 128" in v.reason for v in struck)
    assert "int4_g128" not in {fmt for name, fmt in plan.assignments.items() if not name.endswith("down_proj")}


def test_a_loss_that_is_not_a_number_is_never_chosen():
    spoiled = tuple(
        m.model_copy(update={"kl": math.inf}) if m.format == "int4_g64" and m.layer.endswith("up_proj") else m
        for m in profile(formats=("int8", "int4_g64")).measurements
    )
    plan = plan_for(WHOLE.model_copy(update={"measurements": spoiled}), weight_bits=5.6)
    assert plan.assignments[f"{BLOCK}.mlp.up_proj"] != "int4_g64"
    assert math.isfinite(plan.predicted.kl)


def test_only_the_formats_asked_for_and_the_models_own_dtype_are_used():
    plan = plan_for(weight_bits=12.0, formats=("int8",))
    assert set(plan.assignments.values()) == {"int8", "bf16"}
    with pytest.raises(PlanError, match="No layer was measured in int4_g32"):
        plan_for(formats=("int4_g32",))


def test_a_profile_without_measurements_is_refused():
    with pytest.raises(PlanError, match="no measurements yet"):
        plan_for(WHOLE.model_copy(update={"measurements": ()}))


def test_deciding_leaves_the_same_layers_whatever_is_wished():
    plain = set(plan_for().assignments)
    assert plain == set(plan_for(weight_bits=16.0, locks={".*mlp.*": "bf16"}, role_floors="enforce").assignments)
    assert plain == set(plan_for(weight_bits=16.0, formats=("int8",)).assignments)


def test_locks_hold_and_are_named_as_the_reason():
    name = f"{BLOCK}.mlp.up_proj"
    for fmt in ("bf16", "int8", "int4_g64"):
        plan = plan_for(weight_bits=9.0, locks={name: fmt}, formats=("int4_g64",))
        assert plan.assignments[name] == fmt
        assert plan.reasons[name].text == f"Locked by you to {find_format(fmt).label}."


def test_a_lock_holds_the_whole_fused_group():
    plan = plan_for(profile(formats=("int8", "int4_g64")), engine="vllm", locks={f"{BLOCK}.self_attn.k_proj": "int8"})
    assert {plan.assignments[f"{BLOCK}.self_attn.{part}_proj"] for part in "qkv"} == {"int8"}
    assert "k_proj', which you locked" in plan.reasons[f"{BLOCK}.self_attn.q_proj"].text


def test_exclusions_keep_layers_as_they_are():
    plan = plan_for(profile(formats=("int8", "int4_g64")), weight_bits=12.0, excluded=("block 0",))
    assert {plan.assignments[name] for name in plan.assignments if name.startswith(BLOCK)} == {"bf16"}
    assert plan.reasons[f"{BLOCK}.mlp.up_proj"].text == "Excluded by 'block 0': kept at BF16."
    with pytest.raises(InfeasibleBudget, match="exclude less"):
        plan_for(profile(formats=("int8", "int4_g64")), weight_bits=4.5, excluded=("blocks 0-1",))


def test_a_lock_to_a_format_that_was_not_measured_is_refused():
    with pytest.raises(PlanError, match="not measured"):
        plan_for(locks={f"{BLOCK}.mlp.up_proj": "int4_g32"})
    with pytest.raises(PlanError, match="not measured"):
        plan_for(profile(measured="layers.0."), locks={"model.layers.1.mlp.up_proj": "int8"})
    assert plan_for(profile(measured="layers.0."), locks={"model.layers.1.mlp.up_proj": "bf16"})


def test_enforced_floors_keep_attention_at_8_bits_and_advised_ones_only_speak():
    enforced = plan_for(profile(formats=("int8", "int4_g64")), weight_bits=6.0, role_floors="enforce")
    attention = {fmt for name, fmt in enforced.assignments.items() if "attn" in name}
    assert attention <= {"int8", "bf16"}
    advised = plan_for(profile(formats=("int8", "int4_g64")), weight_bits=4.3, role_floors="advise")
    name = next(n for n, fmt in advised.assignments.items() if "attn" in n and fmt == "int4_g64")
    assert any(v.rule == "role_floor" and v.advice for v in advised.reasons[name].verdicts)


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


def test_a_reason_that_compares_with_other_layers_is_true_of_them():
    compared = 0
    for bits in (4.6, 5.2, 6.5):
        plan = plan_for(profile(formats=("int8", "int4_g64")), weight_bits=bits)
        win, charge = rates_of(plan)
        for reason in plan.reasons.values():
            if "more than other layers charge for the same bytes" in reason.text:
                assert reason.runner_up.delta_loss / -reason.runner_up.delta_bytes > win
                compared += 1
            if "less than other layers win with the same bytes" in reason.text:
                assert -reason.runner_up.delta_loss / reason.runner_up.delta_bytes < charge
                compared += 1
    assert compared > 10


def test_the_runner_up_is_the_allowed_alternative_of_least_regret_and_is_named():
    for bits in (4.6, 5.2, 6.5):
        plan = plan_for(profile(formats=("int8", "int4_g64")), weight_bits=bits)
        win, charge = rates_of(plan)
        rate = math.sqrt(win * charge) if charge < math.inf else win
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


# --------------------------------------------------------------------------------------------- prices


@given(bits=st.floats(4.3, 17.0), seed=st.integers(0, 20))
@few
def test_an_advised_floor_never_costs_more_than_its_price(bits, seed):
    sensitivity = profile(formats=("int8", "int4_g64"), seed=seed)
    free, advised = (plan_for(sensitivity, weight_bits=bits, role_floors=floors) for floors in ("off", "advise"))
    assert advised.predicted.kl <= free.predicted.kl + FLOOR_PRICE * len(free.assignments)


def test_an_advised_floor_decides_between_formats_that_measured_the_same():
    name = f"{BLOCK}.self_attn.o_proj"
    same = tuple(
        m.model_copy(update={"kl": 0.0}) if m.layer == name else m
        for m in profile(formats=("int8", "int4_g64")).measurements
    )
    sensitivity = WHOLE.model_copy(update={"measurements": same})
    assert plan_for(sensitivity, weight_bits=16.0, role_floors="off").assignments[name] == "int4_g64"
    plan = plan_for(sensitivity, weight_bits=16.0)
    assert plan.assignments[name] == "int8"
    assert "which a rule advises against (Attention output: the guide recommends" in plan.reasons[name].text


def test_a_price_never_stands_in_the_way_of_a_tolerance():
    free = tuple(m.model_copy(update={"kl": 0.0, "delta_nll": 0.0}) for m in WHOLE.measurements)
    plan = plan_for(WHOLE.model_copy(update={"measurements": free}), max_ppl_increase=0.0)
    assert set(plan.assignments.values()) == {"int4_g64"}


# --------------------------------------------------------------------------------------- uncertainty


def test_a_format_is_within_noise_when_the_difference_is_smaller_than_its_error():
    marks = {}
    for scale in (1e-3, 1e6):
        noisy = tuple(m.model_copy(update={"kl_stderr": scale * m.kl_stderr}) for m in WHOLE.measurements)
        plan = plan_for(WHOLE.model_copy(update={"measurements": noisy}), weight_bits=5.2)
        marks[scale] = [plan.reasons[name].within_noise for name in plan.assignments]
        for name in plan.assignments:
            reason = plan.reasons[name]
            assert reason.text.endswith("but the scores cannot tell the two apart.") == reason.within_noise
    assert sum(marks[1e-3]) <= 1 and all(marks[1e6])


def test_noise_is_judged_at_the_plans_exchange_rate():
    plan = plan_for(fisher_profile(), weight_bits=4.8)
    win, charge = rates_of(plan)
    for name in plan.assignments:
        reason = plan.reasons[name]
        regret = reason.runner_up.delta_loss + math.sqrt(win * charge) * reason.runner_up.delta_bytes
        assert reason.within_noise == (abs(regret) < 1.96 * reason.runner_up.delta_loss_stderr)
    assert 0 < sum(plan.reasons[name].within_noise for name in plan.assignments) < len(plan.assignments)


# --------------------------------------------------------------------------------- activations


def test_w8a8_is_planned_where_it_is_measured_stored_and_native():
    sensitivity = profile(formats=("int4_g64", "int8_w8a8"))
    request_fields = {"engine": "vllm", "weight_bits": 8.1}
    assert "int8_w8a8" in plan_for(sensitivity, **request_fields).assignments.values()
    refused = plan_for(sensitivity, engine="transformers", weight_bits=8.1)
    assert "int8_w8a8" not in refused.assignments.values()


def test_of_two_formats_of_a_size_the_one_that_loses_less_wins_and_the_other_is_the_runner_up():
    plan = plan_for(profile(formats=("int8", "int8_w8a8")), engine="vllm", weight_bits=8.1)
    for name in plan.assignments:
        reason = plan.reasons[name]
        if plan.assignments[name] == "int8" and reason.runner_up.format == "int8_w8a8":
            assert reason.runner_up.delta_bytes == 0
            assert "INT8 W8A8 takes the same bytes" in reason.text
            break
    else:
        raise AssertionError("some layer should have both")


# ----------------------------------------------------------------------------------------- prediction


def test_an_engine_of_one_quantized_format_says_so_of_the_others_and_the_request_stays_as_it_was():
    sensitivity = profile(formats=("int8", "nf4_g64"))
    plan = plan_for(sensitivity, engine="transformers-bitsandbytes", weight_bits=6.0)
    assert set(plan.assignments.values()) == {"nf4_g64", "bf16"} and plan.request.formats == ()
    reason = plan.reasons["model.layers.0.mlp.down_proj"]
    (verdict,) = next(one.verdicts for one in reason.alternatives if one.format == "int8")
    assert verdict.rule == "one_format" and "holds one quantized format" in verdict.reason


@pytest.mark.parametrize("wish", [{"excluded": (".*",)}, {"formats": ("int4_g64",)}])
def test_where_nothing_is_left_to_quantize_an_engine_of_one_format_keeps_the_model(wish):
    sensitivity = profile(formats=("int8", "int4_g64"))
    plan = plan_for(sensitivity, engine="transformers-bitsandbytes", weight_bits=16.0, **wish)
    assert set(plan.assignments.values()) == {"bf16"}


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


# --------------------------------------------------------------------------------------- comparisons


def test_a_uniform_plan_gives_every_layer_the_format_and_ignores_the_budget():
    asked = request(weight_bits=1.0, locks={f"{BLOCK}.mlp.up_proj": "int8"})
    plan = simple_plans(WHOLE, asked)["uniform int4_g64"]
    assert set(plan.assignments.values()) == {"int4_g64"}
    assert set(plan.assignments) == set(plan_for().assignments)
    assert plan.memory.decided_bits == pytest.approx(4.25)


def test_a_uniform_plan_takes_the_next_larger_format_where_its_own_does_not_fit():
    sensitivity = profile(formats=("int8", "int4_g64", "int4_g128", "int3_g64"))
    plan = simple_plans(sensitivity, request())["uniform int4_g128"]
    assert plan.assignments[f"{BLOCK}.mlp.down_proj"] == "int4_g128"
    assert plan.assignments[f"{BLOCK}.self_attn.q_proj"] == "int4_g64"
    assert "576 is not divisible by 128" in plan.reasons[f"{BLOCK}.self_attn.q_proj"].text
    assert "uniform int3_g64" not in simple_plans(sensitivity, request(engine="vllm"))


def test_the_role_rule_gives_attention_8_bits_and_mlps_4():
    plan = simple_plans(WHOLE, request(weight_bits=1.0))["role rule"]
    for name, fmt in plan.assignments.items():
        assert fmt == ("int4_g64" if ".mlp." in name else "int8")
    assert set(simple_plans(profile(formats=("int8",)), request())) == {"uniform int8"}


@pytest.mark.parametrize(("damage", "raised"), [(1.0, False), (30.0, True)])
def test_the_guides_strategy_raises_embeddings_and_attention_outputs_where_4_bits_cost_too_much(damage, raised):
    sensitivity = profile(formats=("int8", "int4_g64"))
    worse = [m.model_copy(update={"delta_nll": damage * m.delta_nll}) for m in sensitivity.measurements]
    sensitivity = sensitivity.model_copy(update={"measurements": tuple(worse)})
    plans = simple_plans(sensitivity, request(engine="llama.cpp"))
    assert (plans["uniform int4_g64"].predicted.delta_ppl_pct > 10) == raised
    for name, fmt in plans["guide's strategy"].assignments.items():
        assert fmt == ("int8" if raised and ("o_proj" in name or "embed" in name) else "int4_g64")


def test_the_plan_loses_no_more_than_uniform_and_role_rule_plans_of_its_size():
    for engine in ("transformers", "vllm"):
        sensitivity = profile(blocks=3, formats=("int8", "int4_g64"))
        for simple in simple_plans(sensitivity, request(engine)).values():
            plan = plan_for(sensitivity, engine=engine, weight_bytes=simple.memory.weights_bytes)
            assert plan.predicted.kl <= simple.predicted.kl * (1 + 1e-9)


# ------------------------------------------------------------------------------------------- document


def test_a_plan_survives_json_and_says_where_it_comes_from():
    plan = plan_for()
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert plan.model == catalogue().model and plan.request == request()
    assert plan.provenance["profile_id"] == "profile-1"
    assert plan.provenance["solver"] == "optimal"
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert plan.provenance["advisor_version"] == ADVISOR_VERSION == project["version"]


def test_the_same_request_gives_the_same_plan():
    first, second = plan_for(weight_bits=5.3), plan_for(weight_bits=5.3)
    assert first.assignments == second.assignments and first.reasons == second.reasons


def test_memory_is_planned_for_the_device_when_the_budget_is_not_memory():
    plan = plan_for(weight_bits=5.0)
    assert plan.memory.limit_bytes == usable_bytes(_device(plan), find_engine("transformers"))
