"""Plans improved where they stand, on a tiny real model: gradients around a plan, steps, contenders, and the record."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from advisor import jobs, pipeline
from advisor.errors import JobCancelled, PlanError, TextError
from advisor.estimates import Change, Losses, together
from advisor.knowledge import find_engine
from advisor.paths import data_dir
from advisor.planner import rule_context
from advisor.planner.candidates import prepare
from advisor.planner.planning import make_plan
from advisor.planner.refine import BY_SCORES, REFINED, Tried, choice_of, limits_of, rounds_from
from advisor.planner.simple_plans import ROLE_RULE, STRATEGY, simple_plans
from advisor.profiler.probe import split_windows
from advisor.types import Budget, PlanRequest, ProfileRequest, RefineRequest
from tests.tiny_models import CONTEXT, trained_folder

FORMATS = ("int8", "int4_g32", "int2_g64")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return str(trained_folder(tmp_path_factory.mktemp("refined") / "model"))


@pytest.fixture
def store():
    return pipeline.open_store()


@pytest.fixture
def profile(source, store):
    request = ProfileRequest(model=source, samples=4, seq_len=64, formats=FORMATS, draws=4)
    return pipeline.profile_model(request, store)


@pytest.fixture
def probe(profile):
    return pipeline.plan_probe(profile)


def asked(bits: float = 5.0, **fields) -> PlanRequest:
    return PlanRequest(
        hardware="m4-max-128gb", engine="mlx", budget=Budget(weight_bits=bits, context=CONTEXT), **fields
    )


def weights(probe) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in probe.model.named_parameters()}


def test_changes_around_a_plan_are_what_happens_when_a_layer_changes(profile, probe):
    plan = {layer.name: "int4_g32" for layer in profile.catalogue.quantizable}
    before = weights(probe)
    now = probe.losses(plan, "gradients")
    others = [(name, fmt) for name in plan for fmt in ("int8", "bf16")]
    changes = probe.changes(plan, others)
    expected, true = [], []
    for (name, fmt), change in changes.items():
        expected.append(change.kl.mean() + np.square(change.projections).mean())
        true.append((probe.losses({**plan, name: fmt}, "gradients").kl - now.kl).mean())
    assert spearmanr(expected, true).statistic > 0.8
    assert all(torch.equal(value, before[name]) for name, value in probe.model.named_parameters())


def test_the_first_order_of_the_text_is_its_own_change_of_likelihood(profile, probe):
    plan = {layer.name: "int4_g32" for layer in profile.catalogue.quantizable}
    now = probe.losses(plan, "gradients")
    changes = probe.changes(plan, [(name, "int8") for name in plan])
    expected = [change.text.mean() + np.square(change.projections).mean() for change in changes.values()]
    true = [(probe.losses({**plan, name: fmt}, "gradients").delta_nll - now.delta_nll).mean() for name, fmt in changes]
    assert spearmanr(expected, true).statistic > 0.9


def test_the_parts_of_the_text_share_no_window_and_the_first_begins_with_the_profiles_own(profile, probe):
    parts = {name: {tuple(row.tolist()) for row in windows} for name, windows in probe.windows.items()}
    assert [len(rows) for rows in parts.values()] == [8, 8, 8]
    assert len(set.union(*parts.values())) == 24
    held_out = pipeline.texts.token_windows(
        "python-docs", pipeline.models.load_tokenizer(probe.model.name_or_path), "evaluation", 24, 64
    )
    assert not set.union(*parts.values()) & {tuple(row.tolist()) for row in held_out}


def test_a_text_that_changed_since_it_was_profiled_is_refused(profile, source):
    tokenizer = pipeline.models.load_tokenizer(source)
    other = profile.calibration.model_copy(update={"text_sha256": "0" * 16})
    with pytest.raises(TextError, match="profile the model again"):
        split_windows(other, tokenizer)
    with pytest.raises(TextError, match="Refining takes 600000 sequences"):
        split_windows(profile.calibration.model_copy(update={"samples": 100_000}), tokenizer)


@pytest.mark.parametrize("bits", [2.8, 4.6, 6.0])
def test_no_contender_of_the_budget_is_better_than_what_comes_out(profile, probe, bits):
    plan = pipeline.refine_plan(profile, asked(bits), 2, probe=probe)
    record = plan.refinement
    names = {one.name for one in record.contenders}
    fitting = {name for name, one in simple_plans(profile, asked(bits)).items() if one.memory.decided_bits <= bits}
    assert BY_SCORES in names
    assert {name for name in names - {REFINED} if not name.startswith(BY_SCORES)} == fitting
    winner = next(one for one in record.contenders if one.name == record.winner)
    assert winner.expected_loss == min(one.expected_loss for one in record.contenders)
    assert plan.memory.decided_bits <= bits
    losses = probe.losses(plan.assignments, "choice")
    assert winner.kl == pytest.approx(losses.kl.mean())
    assert plan.predicted.measured
    assert plan.predicted.kl == pytest.approx(probe.losses(plan.assignments, "prediction").kl.mean())
    unquantized = probe.model(probe.windows["prediction"][:, :-1]).logits.double().log_softmax(-1)
    targets = probe.windows["prediction"][:, 1:, None]
    own = -unquantized.gather(-1, targets).mean().item()
    assert plan.predicted.base_perplexity == pytest.approx(math.exp(own), rel=1e-4)


def test_each_round_that_takes_a_step_lowers_both_losses_on_text_that_no_gradient_saw(profile, probe):
    case = prepare(profile, asked(5.0))
    start = choice_of(case, simple_plans(profile, asked(5.0))["uniform int2_g64"].assignments)
    now = Tried(start, probe.losses(case.assignments(start), "choice"))
    limits = limits_of(case, start)
    taken = [found.taken for found in itertools.islice(rounds_from(case, now, limits, probe), 3) if found.taken]
    assert taken, "5 bits have room to win from INT2"
    for one in taken:
        assert limits.keep(one.choice)
        assert one.losses.kl.mean() < now.losses.kl.mean()
        assert one.losses.expected < now.losses.expected
        now = one


def test_the_record_follows_the_rounds(profile, probe):
    record = pipeline.refine_plan(profile, asked(2.8), 3, probe=probe).refinement
    start = min((c for c in record.contenders if c.name != REFINED), key=lambda c: c.expected_loss)
    kl, loss = start.kl, start.expected_loss
    assert record.rounds
    for one in record.rounds:
        if one.changed:
            assert one.kl < kl and one.expected_loss < loss
        else:
            assert (one.kl, one.expected_loss) == (kl, loss)
        kl, loss = one.kl, one.expected_loss


def test_what_was_asked_to_be_fast_is_no_slower_refined(profile, probe):
    budget = Budget(weight_bits=5.0, max_ppl_increase=0.5, context=CONTEXT)
    request = asked().model_copy(update={"budget": budget})
    by_scores, refined = make_plan(profile, request), pipeline.refine_plan(profile, request, 2, probe=probe)
    assert refined.latency.decode_ms_per_step <= by_scores.latency.decode_ms_per_step * (1 + 1e-6)
    assert refined.memory.weights_bytes <= by_scores.memory.weights_bytes
    assert refined.optimality_gap is None


def test_refining_respects_locks_exclusions_and_chosen_formats(profile, probe):
    request = asked(
        9.0,
        locks={r".*1\..*\.o_proj": "int4_g32"},
        excluded=("block 0",),
        formats=("int8", "int4_g32"),
        role_floors="off",
    )
    case = prepare(profile, request)
    assert choice_of(case, dict.fromkeys(make_plan(profile, asked()).assignments, "int2_g64")) is None
    plan = pipeline.refine_plan(profile, request, 2, probe=probe)
    for name, fmt in plan.assignments.items():
        if ".0." in name:
            assert fmt == profile.catalogue.dtype
        elif name.endswith("o_proj"):
            assert fmt == "int4_g32"
        assert fmt != "int2_g64"


def test_refining_mixes_no_two_quantized_formats_where_the_engine_holds_one(profile, probe, monkeypatch):
    mlx = find_engine("mlx").model_copy(update={"one_quantized_format": True})
    monkeypatch.setattr(rule_context, "find_engine", lambda name: mlx)
    plan = pipeline.refine_plan(profile, asked(6.0), 2, probe=probe)
    assert len(set(plan.assignments.values()) - {profile.catalogue.dtype}) == 1
    assert not {ROLE_RULE, STRATEGY} & {one.name for one in plan.refinement.contenders}


def test_no_change_of_loss_is_told_of_formats_that_cannot_be_had(profile, probe):
    plan = pipeline.refine_plan(profile, asked(5.0, formats=("int8", "int4_g32")), 1, probe=probe)
    others = [one for reason in plan.reasons.values() for one in reason.alternatives]
    assert {one.delta_loss for one in others if one.format == "int2_g64"} == {None}
    assert all(one.delta_loss is not None for one in others if one.format in ("int8", "int4_g32"))
    bans = {verdict.rule for one in others if one.format == "int2_g64" for verdict in one.verdicts}
    assert "measurement" not in bans


def test_a_tolerance_keeps_the_size_of_its_plan(profile, probe):
    request = PlanRequest(hardware="m4-max-128gb", engine="mlx", budget=Budget(max_ppl_increase=0.001, context=CONTEXT))
    by_scores = make_plan(profile, request)
    plan = pipeline.refine_plan(profile, request, 1, probe=probe)
    assert plan.memory.weights_bytes <= by_scores.memory.weights_bytes


def test_every_layer_of_a_refined_plan_says_why(profile, probe):
    plan = pipeline.refine_plan(profile, asked(4.0), 1, probe=probe)
    for name in plan.assignments:
        reason = plan.reasons[name]
        assert "ith the rest of the plan in place, " in reason.text and reason.text.endswith(".")
        assert reason.runner_up is not None and math.isfinite(reason.runner_up.delta_loss_stderr)


def test_a_job_refines_and_stores_the_plan(profile, store):
    request = RefineRequest(profile_id=profile.id, plan=asked(2.8), rounds=1)
    seen = []
    result = jobs.HANDLERS["refine"](request.model_dump(mode="json"), store, seen.append, lambda: False)
    plan = store.plan(result["plan_id"])
    assert plan.refinement is not None and len(plan.refinement.rounds) == 1
    assert any(progress.stage == "rounds" for progress in seen)
    with pytest.raises(JobCancelled):
        jobs.HANDLERS["refine"](request.model_dump(mode="json"), store, seen.append, lambda: True)
    with pytest.raises(PlanError, match="profile the model again"):
        jobs.HANDLERS["refine"](
            RefineRequest(profile_id="none", plan=asked()).model_dump(), store, seen.append, lambda: False
        )


def test_a_stopped_refinement_goes_on_where_it_was(profile, probe, monkeypatch):
    whole = pipeline.refine_plan(profile, asked(2.8), 2, probe=pipeline.plan_probe(profile))
    asked_of = []
    with monkeypatch.context() as stopping:
        for name in ("losses", "changes"):
            stopping.setattr(probe, name, counting(getattr(probe, name), asked_of, stop_at=5))
        with pytest.raises(JobCancelled):
            pipeline.refine_plan(profile, asked(2.8), 2, probe=probe)
    before = len(asked_of)
    with monkeypatch.context() as going_on:
        for name in ("losses", "changes"):
            going_on.setattr(probe, name, counting(getattr(probe, name), asked_of))
        again = pipeline.refine_plan(profile, asked(2.8), 2, probe=probe)
    first, then = asked_of[: before - 1], asked_of[before:]  # the last one was stopped
    assert first and not [one for one in then if one in first]
    assert again.assignments == whole.assignments
    assert again.predicted == whole.predicted
    assert not any((data_dir() / "refining").iterdir()), "what is finished is not kept"


def counting(ask, seen: list, stop_at: int | None = None):
    def answer(*question):
        seen.append((ask.__name__, question))
        if len(seen) == stop_at:
            raise JobCancelled("stopped")
        return ask(*question)

    return answer


def test_other_weights_in_the_same_place_are_refused(profile):
    other = profile.catalogue.model.model_copy(update={"fingerprint": "ab" * 32})
    changed = profile.model_copy(update={"catalogue": profile.catalogue.model_copy(update={"model": other})})
    with pytest.raises(PlanError, match="profile it again"):
        pipeline.refine_plan(changed, asked(), 1)


def test_a_step_is_an_improvement_only_beyond_its_own_error():
    chance = np.random.default_rng(0)
    now = Losses(kl=0.5 + chance.normal(0, 0.1, 16), delta_nll=0.5 + chance.normal(0, 0.1, 16))
    clear = Losses(now.kl - 0.05, now.delta_nll - 0.05)
    by_chance = Losses(now.kl - chance.normal(0.001, 0.1, 16), now.delta_nll - 0.001)
    assert clear.improves(now)
    assert not by_chance.improves(now)
    assert not now.improves(now)
    assert not Losses(now.kl + 0.01, now.delta_nll - 0.5).improves(now), "KL must fall too"


def test_more_damping_makes_a_change_dearer_and_interactions_count():
    chance = np.random.default_rng(1)
    change = Change(kl=chance.normal(-0.1, 0.01, 8), text=np.full(8, -0.1), projections=chance.normal(0, 0.3, (8, 4)))
    assert change.loss(0.0) < change.loss(1.0) < change.loss(3.0)
    undone = Change(kl=-change.kl, text=-change.text, projections=-change.projections)
    assert together([change, undone]).loss(1.0) == pytest.approx(0.0)


def test_a_reference_that_is_not_kept_gives_the_same_answers(profile, probe, monkeypatch):
    plan = {layer.name: "int4_g32" for layer in profile.catalogue.quantizable}
    others = [(name, "int8") for name in plan]
    kept = probe.losses(plan, "choice"), probe.changes(plan, others)
    monkeypatch.setattr("advisor.profiler.probe.REFERENCE_CACHE_BYTES", 0)
    bare = pipeline.plan_probe(profile)
    losses, changes = bare.losses(plan, "choice"), bare.changes(plan, others)
    assert sum(reference.cached_bytes for reference in bare._references.values()) == 0
    np.testing.assert_allclose(losses.kl, kept[0].kl, rtol=1e-3)
    for key, change in changes.items():
        np.testing.assert_allclose(change.kl, kept[1][key].kl, rtol=0.02, atol=2e-4)  # in bf16
