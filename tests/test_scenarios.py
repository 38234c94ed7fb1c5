"""The guide's deployments as presets, and scenarios of one's own."""

import re

import pytest

from advisor import knowledge
from advisor.errors import KnowledgeError

OWN_SCENARIO = """
[mine]
label = "Mine"
description = "x"
guide = "x"
hardware = "l4"
engine = "vllm"
gpus = 2
context = 2048
sequences = 4
formats = ["int8"]
source = "us"
checked_on = "2026-11"
"""


def test_the_guides_four_deployments_are_there_with_what_it_expects():
    found = knowledge.scenarios()
    assert list(found) == ["consumer", "production", "cost-optimal", "research"]
    assert all("guide" in row.source and re.fullmatch(r"20\d\d-\d\d", row.checked_on) for row in found.values())
    assert (found["production"].hardware, found["production"].sequences) == ("a100-sxm-80gb", 20)
    assert knowledge.find_hardware(found["consumer"].hardware).memory_gb.value == 24
    assert found["cost-optimal"].gpus > 1
    assert found["consumer"].max_ppl_increase == 0.07


def test_a_scenario_of_ones_own_is_added(own_tables):
    own_tables("scenarios.toml", OWN_SCENARIO)
    assert knowledge.find_scenario("mine").gpus == 2
    assert "consumer" in knowledge.scenarios()


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"l4"', '"l5"', "Unknown device 'l5'"),
        ('"vllm"', '"vlm"', "Unknown engine 'vlm'; did you mean 'vllm'"),
        ('"vllm"', '"mlx"', "puts MLX .* on NVIDIA L4 24 GB, which it does not run on; correct it"),
        ('"vllm"', '"llama.cpp"', "has 2 GPUs, over which llama.cpp .* splits no layers"),
        ('["int8"]', '["int9"]', "Unknown format 'int9'"),
        ('["int8"]', '["nf4_g64"]', "asks for nf4_g64, which vLLM .* does not store"),
        ("sequences = 4", "sequences = 4\nkv_bits = 4", "asks for a KV cache of 4 bits, which vLLM"),
        ("sequences = 4", "sequences = 0", r"\[mine\] sequences: .*greater than 0"),
        ('label = "Mine"\n', "", r"\[mine\] label: Field required"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused_in_a_sentence(own_tables, old, new, complaint):
    own_tables("scenarios.toml", OWN_SCENARIO.replace(old, new))
    with pytest.raises(KnowledgeError, match=complaint):
        knowledge.scenarios()


def test_a_misspelt_scenario_is_answered_with_the_likely_one():
    with pytest.raises(KnowledgeError, match="did you mean 'production'.*tables scenarios"):
        knowledge.find_scenario("prod")
