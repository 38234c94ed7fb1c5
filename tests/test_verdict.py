"""What the measurements say of a plan: good by the guide's marks, beaten at its size, or within chance."""

from __future__ import annotations

import math

import pytest

from advisor import pipeline
from advisor.planner.comparison import compare_all
from advisor.planner.planning import make_plan
from advisor.types import Budget, PlanRequest, latest_evaluations
from advisor.ui import plan_table, verdict, wording
from tests import sample_results

REQUEST = PlanRequest(hardware="rtx-4090", engine="transformers", budget=Budget(weight_bits=5.0))


@pytest.fixture(scope="module")
def profile():
    return sample_results.profile()


@pytest.fixture(scope="module")
def plan(profile):
    return make_plan(profile, REQUEST)


def evaluations(**deltas: float | None):
    """variant (`uniform_` for `uniform `) -> evaluation of 100 MB, the plan's of 90 MB."""
    named = {name.replace("uniform_", "uniform "): delta for name, delta in deltas.items()}
    return latest_evaluations(
        sample_results.evaluation(name, delta, 90_000_000 if name == "plan" else 100_000_000)
        for name, delta in named.items()
    )


@pytest.mark.parametrize(
    "delta, words, tone",
    [
        (0.01, "well within", "good"),
        (math.log(1.08), "within what is usually accepted", "good"),
        (math.log(1.15), "not yet poor", "fair"),
        (math.log(1.30), "poor by the usual mark", "poor"),
    ],
)
def test_the_verdict_follows_the_guides_marks(delta, words, tone):
    said = verdict.sentence(evaluations(original=None, plan=delta))
    assert words in said.text and said.tone == tone


def test_the_verdict_says_how_much_slower_or_faster_the_plan_decodes_where_both_were_timed():
    found = evaluations(original=None, plan=0.01)

    def said(ms, **changes):
        plan = found["plan"].model_copy(update={"ms_per_token": ms} | changes)
        return verdict.sentence(found | {"plan": plan}).text

    machine, own = "On the machine that measured it (cpu), decoding", found["original"].ms_per_token
    assert f"{machine} takes 3.0 times as long as the original's." in said(3 * own)
    assert f"{machine} is 1.5 times as fast as the original's." in said(own / 1.5)
    assert f"{machine} is as fast as the original's." in said(1.02 * own)
    for untold in (said(None), said(3 * own, device="cuda:0"), verdict.sentence({"plan": found["plan"]}).text):
        assert "decoding" not in untold


def test_little_text_does_not_pass_for_a_judgement():
    one = sample_results.evaluation("plan", math.log(1.08), 90_000_000)
    said = verdict.sentence({"plan": one.model_copy(update={"delta_nll_stderr": 0.05})})
    assert "+8.0 % (−2.1 % to +19.1 %): within what is usually accepted" in said.text
    assert "though its interval reaches more than that" in said.text


def test_a_simple_plan_that_is_as_good_at_no_greater_size_is_named(profile, plan):
    def said_of(one, **others):
        return verdict.against_simple(compare_all(one, others, profile))

    simple = pipeline.simple_plans(profile, plan.request, profile.formats)
    assert {"uniform int8", "uniform int4_g64", "role rule", "guide's strategy"} == simple.keys()
    uniform, worse = simple["uniform int8"], simple["uniform int4_g64"]
    assert said_of(plan, larger=uniform) is None
    said = said_of(plan, larger=uniform, worse=worse)
    assert f"worse +{wording.number(worse.predicted.kl - plan.predicted.kl)}." in said.text and said.tone == "good"
    assert "larger" not in said.text
    said = said_of(uniform, itself=uniform)
    assert "as good or better at no greater size: itself" in said.text and said.tone == "poor"


def predicted(plan, kl, delta_nll, kl_stderr=0.0):
    """The plan as if other losses were predicted of it."""
    loss = {"kl": kl, "delta_nll": delta_nll, "kl_stderr": kl_stderr, "delta_nll_stderr": kl_stderr}
    assignments = dict(list(plan.assignments.items())[1:])
    return plan.model_copy(update={"assignments": assignments, "predicted": plan.predicted.model_copy(update=loss)})


def test_what_chance_may_have_predicted_of_a_simple_plan_is_no_verdict(profile, plan):
    kl, loss, surely = plan.predicted.kl, plan.predicted.delta_nll, {"kl_stderr": 0.0, "delta_nll_stderr": 0.0}
    plan = plan.model_copy(update={"predicted": plan.predicted.model_copy(update=surely)})

    def said_of(other):
        return verdict.against_simple(compare_all(plan, {"other": other}, profile))

    for sign in (-1, 1):
        said = said_of(predicted(plan, kl + 0.1 * sign, loss, kl_stderr=0.1))
        assert said.tone == "fair" and "cannot tell this plan from simple ones" in said.text
        assert f"other {'+' if sign > 0 else '−'}0.10 ± 0.10." in said.text
    said = said_of(predicted(plan, kl - 0.3, loss, kl_stderr=0.1))
    assert said.tone == "poor" and "gains nothing over that" in said.text
    said = said_of(predicted(plan, kl + 0.3, loss - 0.1))
    assert said.tone == "fair" and "By perplexity alone, other" in said.text


def test_the_sizes_of_the_table_add_up_to_the_weights_of_the_plan(profile, plan, monkeypatch):
    monkeypatch.setattr(wording, "size", lambda count: str(count))
    for engine in ("transformers", "llama.cpp"):
        planned = make_plan(profile, plan.request.model_copy(update={"engine": engine}))
        undecided = [layer for layer in profile.catalogue.layers if layer.name not in planned.assignments]
        vector_bytes = 4 if engine == "llama.cpp" else 2
        kept = sum((2 if len(layer.shape) > 1 else vector_bytes) * layer.parameters for layer in undecided)
        assert plan_table.plan_frame(profile, planned)["Size"].astype(int).sum() + kept == planned.memory.weights_bytes


def test_a_ruined_variant_is_still_a_number():
    ruined = sample_results.evaluation("uniform int2_g64", 9.0, 1).model_copy(update={"delta_nll": 900.0})
    (row,) = verdict.change_rows(plan=None, evaluations={"uniform int2_g64": ruined}, uniform={})
    assert math.isfinite(row.change_pct)


def test_the_verdict_says_when_the_plan_is_beaten_at_its_own_size():
    said = verdict.sentence(
        latest_evaluations(
            [
                sample_results.evaluation("original", None, 10**9),
                sample_results.evaluation("plan", 0.04, 10**8),
                sample_results.evaluation("uniform int8", 0.001, 10**8),
            ]
        )
    )
    assert "is worse than uniform INT8 per channel" in said.text and "at the same size" in said.text
    assert said.tone == "poor"


def test_a_difference_inside_the_error_is_not_called_a_win():
    said = verdict.sentence(evaluations(original=None, plan=0.010, uniform_int8=0.013))
    assert "cannot tell" in said.text and "beats" not in said.text


def test_no_verdict_before_the_plan_is_measured():
    assert verdict.sentence(evaluations(original=None, uniform_int8=0.01)) is None


def test_only_evaluations_of_the_newest_text_are_compared():
    old = sample_results.evaluation("uniform int8", 0.5, 10**8)
    old = old.model_copy(update={"text": old.text.model_copy(update={"tokens": 512})})
    new = [sample_results.evaluation("original", None, 10**8), sample_results.evaluation("plan", 0.1, 10**8)]
    assert list(latest_evaluations([old, *new])) == ["original", "plan"]
