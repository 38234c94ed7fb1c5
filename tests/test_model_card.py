"""What a model card says is what the plan, the record and the evaluations say."""

import re
from collections import Counter

import pytest
import yaml

from advisor.knowledge import targets
from advisor.model_card import model_card
from advisor.types import PREDICTED_FOR, ExportRecord, Verification
from advisor.units import size
from tests.planning_cases import catalogue, plan_for
from tests.sample_results import evaluation

CATALOGUE = catalogue()
QUANTIZABLE = [layer for layer in CATALOGUE.quantizable if layer.block is not None]
FORMATS = ("int8", "int4_g64", "bf16")
PLAN = plan_for().model_copy(
    update={"assignments": {layer.name: FORMATS[i % 3] for i, layer in enumerate(QUANTIZABLE)}}
)
RECORD = ExportRecord(target="compressed-tensors", bytes=3 * 2**20, license="apache-2.0", versions={"torch": "2.9.0"})


def table_below(card: str, heading: str) -> list[list[str]]:
    lines = card.split(f"## {heading}")[1].split("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_the_table_of_formats_counts_the_layers_of_the_plan():
    head, _, *rows = table_below(model_card(PLAN, CATALOGUE, RECORD), "Formats")
    roles = Counter((layer.role.value, PLAN.assignments[layer.name]) for layer in QUANTIZABLE)
    found = {(row[0], fmt): int(cell) for row in rows for fmt, cell in zip(head[1:], row[1:], strict=True) if cell}
    assert found == roles
    for name, count in Counter(PLAN.assignments.values()).items():
        assert f"{count} layers in {name}" in model_card(PLAN, CATALOGUE, RECORD)


def test_prediction_sizes_and_versions_are_those_of_plan_and_record():
    card, memory = model_card(PLAN, CATALOGUE, RECORD), PLAN.memory
    assert f"weights of 3.00 MiB instead of {size(memory.original_weights_bytes)}" in card
    assert f"Perplexity {PLAN.predicted.perplexity:.2f}" in card
    assert ["torch", "2.9.0"] in table_below(card, "Software")


def test_the_front_matter_is_yaml_with_base_model_and_license():
    front = model_card(PLAN, CATALOGUE, RECORD).split("---")[1]
    assert yaml.safe_load(front) == {
        "base_model": PLAN.model.name,
        "base_model_relation": "quantized",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["mixed-precision", "quantized", "compressed-tensors"],
    }
    unknown = model_card(PLAN, CATALOGUE, RECORD.model_copy(update={"license": "", "base_model": "org/name"}))
    found = yaml.safe_load(unknown.split("---")[1])
    assert (found["base_model"], found["license"], found["license_name"]) == ("org/name", "other", "see-base-model")


@pytest.mark.parametrize("target", targets().values(), ids=lambda target: target.name)
def test_every_target_has_its_own_command_without_gaps(target):
    card = model_card(PLAN, CATALOGUE, RECORD.model_copy(update={"target": target.name}), "tiny.gguf")
    command = re.search(r"In this folder:\n\n    (.+)\n", card)[1]
    assert command.split()[0] == target.serve.split()[0] and "{" not in command
    assert command.endswith("tiny.gguf") == ("{file}" in target.serve)


def test_measurements_and_the_verification_are_told_once_they_exist():
    assert "None yet" in model_card(PLAN, CATALOGUE, RECORD)
    found = evaluation("plan", 0.02, 2**30)
    verified = Verification(
        layers=9, bytes=2048, largest_row_difference=0, row_tolerance=0.01, tokens=128, kl=2e-6, kl_tolerance=0.01
    )
    card = model_card(PLAN, CATALOGUE, RECORD.model_copy(update={"verified": verified}), evaluations=[found])
    [row] = table_below(card, "Measurements")[2:]
    assert row[0] == "plan" and row[1].startswith(f"{found.perplexity:.3f} ± ") and row[2] == "+2.02 %"
    assert row[-1] == "1.00 GiB"
    said = "bytes of 9 weights, norms among them, are as the plan has them in this target (2.0 KiB)"
    assert said in card and "2.0e-6" in card


def test_files_that_are_not_packed_are_not_called_smaller():
    card = model_card(PLAN, CATALOGUE, RECORD.model_copy(update={"target": "simulated"}))
    assert f"3.00 MiB that stand for {size(PLAN.memory.model_weights_bytes)} of packed weights" in card


def test_what_was_predicted_of_another_plan_is_not_told_of_this_one():
    edited = PLAN.model_copy(update={"provenance": {PREDICTED_FOR: "the plan before it was edited"}})
    card = model_card(edited, CATALOGUE, RECORD)
    assert "is of the plan before it was edited" in card and f"{PLAN.predicted.perplexity:.2f}" not in card
