"""`apply` on the command line: measured in the same breath, edited by hand before, and stopped."""

import json
import math

import pytest

from advisor.cli import evaluation
from tests import sample_results
from tests.planning_cases import plan_for
from tests.test_road import TARGET, model, profile  # noqa: F401 - fixtures

GOES_ON = ", and the same command goes on from what is stored"


def test_one_command_applies_and_measures_beside_the_original_and_says_so_in_the_card(profile, run, tmp_path):  # noqa: F811
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    assert run("plan", profile, *TARGET, "--weights", "6bits", "--out", plan)[0] == 0
    command = ("apply", plan, "--to", "quanto", "--out", out, "--evaluate", "python-docs")
    status, said, err = run(*command)
    assert status == 0, err
    rows = [line.split()[0] for line in said.splitlines() if " ± " in line]
    assert rows == ["original", "plan", "uniform"] and "perplexity changes by" in said
    assert f"predicted {100 * math.expm1(json.loads(plan.read_text())['predicted']['delta_nll']):+.2f} % (" in said
    card = (out / "README.md").read_text()
    assert "| original |" in card and "| uniform int8 |" in card and "None yet" not in card
    status, again, _ = run(*command, "--json")  # the folder stays, and what was measured is measured again
    assert status == 0 and [one["variant"] for one in json.loads(again)["evaluations"]][:2] == ["original", "plan"]
    status, _, err = run(*command[:-1], tmp_path / "no.txt")
    assert status == 2 and "no.txt" in err


def test_a_plan_edited_by_hand_is_applied_without_the_prediction_of_what_it_was(profile, run, tmp_path):  # noqa: F811
    plan = tmp_path / "plan.json"
    assert run("plan", profile, *TARGET, "--weights", "6bits", "--out", plan)[0] == 0
    made = json.loads(plan.read_text())
    plan.write_text(json.dumps(made | {"assignments": dict.fromkeys(made["assignments"], "int4_g32")}))
    status, said, err = run("apply", plan, "--to", "quanto", "--out", tmp_path / "out", "--evaluate", "python-docs")
    assert status == 0, err
    assert "predicted" not in said
    assert "is of the plan before it was edited" in (tmp_path / "out" / "README.md").read_text()


def test_files_that_take_more_than_was_planned_say_why_and_which_limit_they_exceed(profile, run, tmp_path):  # noqa: F811
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    assert run("plan", profile, *TARGET, "--weights", "6bits", "--out", plan)[0] == 0
    status, said, err = run("apply", plan, "--to", "torchao", "--out", out)
    assert status == 0, err
    [note] = [line.removeprefix("size").strip() for line in said.splitlines() if line.startswith("size ")]
    [warning] = [line.removeprefix("warning").strip() for line in said.splitlines() if line.startswith("warning ")]
    assert note.endswith("KiB more than planned: torchao (any device) keeps codes of 4 bits in a byte each")
    assert warning.endswith("was limited to 6: plan for Transformers with torchao on CPUs to keep the limit")
    record = json.loads((out / "export.json").read_text())
    assert record["decided_bits"] > 8 and (record["size_note"], record["over_limit"]) == (note, warning)
    card = (out / "README.md").read_text()
    assert f"\n{note}.\n" in card and f"which stores these layers in {record['decided_bits']:.2f}: " in card
    status, said, err = run("apply", plan, "--to", "quanto", "--out", tmp_path / "own", "--json")
    assert status == 0 and not {"size_note", "over_limit"} & json.loads(said).keys(), err


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("command", "stopped_in", "said"),
    [
        (["tables", "methods"], "advisor.knowledge.methods", "; the same command begins again"),
        (["apply", "PLAN", "--out", "OUT"], "advisor.pipeline.apply_plan", "; the same command begins again"),
        (["evaluate", "smollm2"], "advisor.pipeline.evaluate_source", "; the same command begins again"),
        (["apply", "PLAN", "--out", "OUT", "--evaluate", "mix"], "advisor.pipeline.apply_and_evaluate", GOES_ON),
        (["answers", "PLAN"], "advisor.pipeline.answer_prompts", GOES_ON),
        (["profile", "smollm2", "--out", "OUT"], "advisor.pipeline.profile_model", GOES_ON),
    ],
)
def test_ctrl_c_says_what_stays(command, stopped_in, said, run, monkeypatch, tmp_path):  # noqa: F811
    (tmp_path / "plan.json").write_text(plan_for().model_dump_json())
    monkeypatch.setattr(stopped_in, interrupted)
    places = {"PLAN": tmp_path / "plan.json", "OUT": tmp_path / "out"}
    status, _, err = run(*(places.get(word, word) for word in command))
    assert (status, err) == (130, f"stopped: nothing is left half-written{said}\n")


def test_a_note_that_is_printed_already_is_not_told_again_beside_the_measurements():
    notes = ("scales and norms recovered by distillation (8 steps)", "weights are simulated")
    measured = {"plan": sample_results.evaluation("plan", 0.02, 10**8).model_copy(update={"notes": notes})}
    below = evaluation.applied_text(measured, None, f"recovery  {notes[0]}")
    assert notes[0] not in below and notes[1] in below
    assert all(note in evaluation.applied_text(measured, None) for note in notes)
