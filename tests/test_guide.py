"""The guide's statements and rows: sourced, free of numbers of their own, and never at odds with what rules say."""

from __future__ import annotations

import re
import tomllib

import pytest

from advisor import guide, knowledge
from advisor.cli import output
from advisor.errors import KnowledgeError
from advisor.planner import rule_context, rules
from advisor.table_files import folders
from advisor.types import Budget, PlanRequest, Role
from tests import sample_results

TOPICS = ("decision", "formats", "methods", "hardware", "roles", "calibration", "evaluation")


def statements():
    """(topic, statement) as the file has them, before their numbers are filled in."""
    for topic in knowledge.guide().values():
        for section in topic.sections:
            for statement in section.statements:
                yield topic, statement


def said_by(topic: str) -> str:
    sections = guide.topics()[topic].sections
    return "\n".join(f"{one.title} {one.says}" for section in sections for one in section.statements)


def test_the_promised_topics_are_there():
    assert tuple(knowledge.guide()) == TOPICS


def test_every_statement_and_every_number_says_where_it_was_read_and_when():
    for topic, statement in statements():
        assert statement.source.strip() and statement.says.strip(), topic.name
        for number in topic.numbers.values():
            assert number.source.strip() and re.fullmatch(r"20\d\d-\d\d", number.checked_on), topic.name
    for row in knowledge.expected_losses().values():
        assert row.source and re.fullmatch(r"20\d\d-\d\d", row.checked_on), row.family


def test_no_statement_holds_a_number_of_its_own():
    """Digits stand in names only (INT4, W8A8, Q4_K_M, H100); counts, shares and marks come from the tables."""
    for topic, statement in statements():
        bare = re.sub(r"\{[^}]*\}", "", f"{statement.title} {statement.says}")
        assert re.findall(r"(?<![A-Za-z0-9_-])\d", bare) == [], (topic.name, statement.says)


def test_every_number_of_a_topic_is_said_somewhere():
    figures = {"features", "billions"}  # drawn, not said
    for topic in knowledge.guide().values():
        text = " ".join(f"{one.title} {one.says}" for of, one in statements() if of.name == topic.name)
        for name in topic.numbers.keys() - figures:
            assert f"numbers[{name}]" in text, name


def test_statements_lead_to_topics_that_exist():
    for _, statement in statements():
        assert statement.topic in ("", *TOPICS)


def test_other_tables_make_another_guide(own_tables):
    marks = folders()[0] / "marks.toml"
    own_tables(
        "marks.toml", marks.read_text().replace("value = 20,", "value = 33,").replace("value = 16,", "value = 27,")
    )
    own_tables("losses.toml", '[int8]\nlabel = "some"\nmost_pct = 3\nsource = "ours"\nchecked_on = "2026-11"\n')
    assert "more than 33 % means poor" in said_by("evaluation")
    assert "From 27 on arithmetic binds" in said_by("decision") and "less than 3 % of quality" in said_by("decision")
    assert guide.expected_loss("int8") == "some (below 3 %)"


def test_a_floor_of_ones_own_changes_roles_and_rules_alike(own_tables):
    roles = tomllib.loads((folders()[0] / "roles.toml").read_text())["mlp_gate_up"]
    row = {**roles, "minimum_bits": 5}
    own_tables("roles.toml", "[mlp_gate_up]\n" + "\n".join(f"{key} = {value!r}" for key, value in row.items()))
    assert "MLP may go to 5 bits" in said_by("roles") and "MLPs at 5 won" in said_by("roles")
    catalogue = sample_results.catalogue()
    request = PlanRequest(hardware="rtx-4090", engine="llama.cpp", budget=Budget(weight_bits=5.0))
    layer = next(layer for layer in catalogue.layers if layer.role is Role.MLP_GATE_UP)
    context = rule_context.context_for(catalogue, request)
    said = [v.reason for v in rules.judge(layer, knowledge.find_format("int4_g64"), context) if v.rule == "role_floor"]
    assert len(said) == 1 and "at least 5 bits" in said[0]


@pytest.mark.parametrize("wrong", ["{formats[int5].bits}", "{perplexity.worst}", "{hardware[t4].peak_tflops[bf16]}"])
def test_a_number_that_no_table_has_is_refused_by_name(own_tables, wrong):
    says = f'says = "It has {wrong} bits."\nsource = "ours"\nchecked_on = "2026-11"\n'
    head = '[own]\nlabel = "Own"\nquestion = "What?"\npage = "plan"\n[[own.sections]]\ntitle = "One"\n'
    own_tables("guide.toml", f"{head}[[own.sections.statements]]\n{says}")
    with pytest.raises(KnowledgeError, match="topic 'own'.*no table has"):
        guide.topics()


def test_bits_of_a_weight_are_those_that_plans_count():
    sizes = {row.fmt.name: row for row in guide.format_sizes()}
    assert sizes["int4_g64"].bits == pytest.approx(4.25) and sizes["nf4_g64"].scales == pytest.approx(0.5)
    assert sizes["int2_g64"].bits == pytest.approx(2.28125) and sizes["bf16"].bits == 16
    assert not any(row.fmt.quantizes_activations for row in sizes.values())
    mlx = {row.fmt.name: row.bits for row in guide.format_sizes(knowledge.find_engine("mlx"))}
    assert mlx["int4_g128"] == pytest.approx(4.25) and "fp8_e4m3" not in mlx


def test_devices_stand_together_only_when_they_compute_alike():
    kinds = guide.device_kinds()
    assert sorted(d.name for kind in kinds for d in kind.devices) == sorted(knowledge.hardware())
    for kind in kinds:
        assert all((d.support, d.guide) == (kind.support, kind.guide) for d in kind.devices), kind.label
    labels = [kind.label for kind in kinds]
    assert labels[0] == "This machine" and "NVIDIA H100 SXM, H100 PCIe, H100 NVL, H200 SXM" in labels
    assert not any("GB" in label for label in labels)


def test_kernels_say_what_the_rule_of_the_engine_says():
    """A format is struck out by rules exactly where the guide says that there is nothing to compute it with."""
    catalogue = sample_results.catalogue()
    layer = next(layer for layer in catalogue.quantizable if layer.role is Role.MLP_DOWN)
    for device, engine in (("t4", "vllm"), ("a100-sxm-80gb", "vllm"), ("b200-180gb", "vllm"), ("m1-16gb", "mlx")):
        request = PlanRequest(hardware=device, engine=engine, budget=Budget(weight_bits=5.0))
        context = rule_context.context_for(catalogue, request)
        for row in guide.kernels(knowledge.find_hardware(device)):
            judged = rules.judge(layer, row.fmt, context, hard_only=True)
            struck = {v.rule for v in judged if not v.allowed} & {"engine_support", "quantized_activations"}
            word = row.engines[knowledge.find_engine(engine).label]
            assert bool(struck) == (word in ("–", "no kernel here", "no units here")), (device, row.fmt.name, word)


def test_the_command_line_prints_every_statement_with_its_source():
    text = " ".join(output.table_text("guide", list(guide.topics().values())).split())
    for topic in guide.topics().values():
        for section in topic.sections:
            for statement in section.statements:
                assert f"{statement.says} [{statement.source}]" in text
