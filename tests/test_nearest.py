"""The nearest plan that a target can hold: what changes, what it is predicted to do, and that it is then written."""

import json

import pytest

from advisor import pipeline
from advisor.errors import UnfitPlan
from advisor.export_checks import refuse_for
from advisor.knowledge import find_target, targets
from advisor.planner.nearest import PREDICTED_FOR, changed, nearest_plan
from advisor.planner.prediction import predict
from advisor.types import ProfileRequest
from tests.planning_cases import plan_for, profile
from tests.test_apply import a_plan
from tests.tiny_models import tiny_folder

PROFILE = profile()
PLAN = plan_for(PROFILE)
Q, K, V = (f"model.layers.0.self_attn.{name}_proj" for name in "qkv")


def with_formats(plan, **formats):
    return plan.model_copy(update={"assignments": plan.assignments | formats})


@pytest.mark.parametrize("target", targets().values(), ids=lambda target: target.name)
def test_the_nearest_plan_can_be_written_and_needs_no_other_one(target):
    plan = with_formats(PLAN, **{Q: "int8_w8a8", K: "int4_g64_asym", V: "int4_g64"})
    found = nearest_plan(plan, target, PROFILE.catalogue, PROFILE)
    refuse_for(PROFILE.catalogue, found.assignments, target)
    assert nearest_plan(found, target, PROFILE.catalogue, PROFILE) is found
    with pytest.raises(UnfitPlan):
        refuse_for(PROFILE.catalogue, plan.assignments, target)


def test_what_changes_has_a_reason_a_size_and_a_prediction_of_its_own():
    plan, target = with_formats(PLAN, **{Q: "int8", K: "int4_g64", V: "int4_g64"}), find_target("compressed-tensors")
    found = nearest_plan(plan, target, PROFILE.catalogue, PROFILE)
    assert set(changed(plan, found.assignments)) >= {K, V} and found.assignments[K] == found.assignments[V] == "int8"
    instead = "INT8 per channel instead of INT4 group 64"
    assert found.reasons[K].text == f"{instead}: the nearest that {target.label} can hold."
    assert found.request.engine == "vllm" and found.memory.model_weights_bytes > 0
    assert found.predicted == predict(PROFILE, found.assignments) and PREDICTED_FOR not in found.provenance


def test_without_its_profile_the_plan_says_whose_prediction_it_has():
    plan = with_formats(PLAN, **{Q: "int8", K: "int4_g64", V: "int4_g64"})
    found = nearest_plan(plan, find_target("compressed-tensors"), PROFILE.catalogue)
    assert found.predicted == plan.predicted and PREDICTED_FOR in found.provenance


def test_apply_writes_the_nearest_plan_and_says_what_changed(tmp_path, run):
    model = str(tiny_folder(tmp_path / "model"))
    store = pipeline.open_store()
    request = ProfileRequest(model=model, samples=1, seq_len=32, formats=("int8", "int4_g64"), layers=r".*self_attn.*")
    measured = pipeline.profile_model(request, store)
    plan = a_plan(measured.catalogue, {Q: "int8", K: "int4_g64", V: "int4_g64"})
    plan = plan.model_copy(update={"provenance": {"profile_id": measured.id}})
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    out = tmp_path / "out"
    command = ["apply", str(tmp_path / "plan.json"), "--to", "vllm", "--out", str(out)]
    status, _, err = run(*command)
    assert status == 2 and "they share one kernel (qkv)" in err and not out.exists()
    assert err.endswith("`apply --nearest` takes it.\n")
    status, said, err = run(*command, "--nearest", "--json")
    assert status == 0, err
    result = json.loads(said)
    assert result["changed"] == {K: ["int4_g64", "int8"], V: ["int4_g64", "int8"]}
    assert result["predicted"]["kl"] >= 0 and result["to"] == "compressed-tensors"
    assert json.loads((out / "plan.json").read_text())["assignments"] == dict.fromkeys((Q, K, V), "int8")
