"""`python -m advisor plan`: deployments fill in what is not given, and a load that cannot be is one line."""

import json
import sys

import pytest

from advisor import cli, knowledge
from tests import planning_cases

DEVICE = ("--hardware", "l4", "--engine", "vllm")


@pytest.fixture
def plan(tmp_path, monkeypatch, capsys):
    """Plans for the hand-written profile; returns the exit status, the plan (or None) and what was said."""
    profile, out = tmp_path / "profile.json", tmp_path / "plan.json"
    profile.write_text(planning_cases.profile(2).model_dump_json())

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["advisor", "plan", str(profile), "--out", str(out), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        made = json.loads(out.read_text()) if out.exists() else None
        return ended.value.code or 0, made, said.out + said.err

    return command


def load(made: dict) -> dict:
    names = ("context", "sequences", "kv_bits", "gpus")
    return {name: made["request"]["budget"][name] for name in names}


def test_a_scenario_gives_device_engine_load_and_formats(plan):
    status, made, said = plan("--scenario", "production")
    assert status == 0, said
    preset = knowledge.find_scenario("production")
    assert (made["request"]["hardware"], made["request"]["engine"]) == (preset.hardware, preset.engine)
    assert load(made) == {name: getattr(preset, name) for name in load(made)}
    assert set(made["request"]["formats"]) == {"int8", "int4_g64"}
    assert made["request"]["budget"]["vram_bytes"] == knowledge.find_hardware(preset.hardware).memory_bytes


def test_what_is_given_wins_over_the_scenario(plan):
    own = ("--hardware", "h100-sxm-80gb", "--sequences", 3, "--kv-bits", 8, "--context", 1000, "--formats", "int8")
    status, made, said = plan("--scenario", "production", *own)
    assert status == 0, said
    assert made["request"]["hardware"] == "h100-sxm-80gb" and made["request"]["engine"] == "vllm"
    assert load(made) == {"context": 1000, "sequences": 3, "kv_bits": 8, "gpus": 1}
    assert made["request"]["formats"] == ["int8"]


def test_without_a_scenario_the_load_is_the_products_own(plan):
    status, made, said = plan(*DEVICE, "--weights", "6bits")
    assert status == 0, said
    assert load(made) == {"context": 4096, "sequences": 1, "kv_bits": 16, "gpus": 1}


def test_memory_is_told_of_one_of_several_gpus(plan):
    status, made, said = plan(*DEVICE, "--gpus", 3, "--vram", "12GiB")
    assert status == 0, said
    memory = made["memory"]
    assert memory["gpus"] == 3 and memory["weights_bytes"] < memory["model_weights_bytes"]
    assert "on 3 x l4 with vllm" in said and "on each of 3 GPUs, weights" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--hardware and --engine are needed"),
        (("--scenario", "produktion"), "did you mean 'production'"),
        (("--scenario", "cost-optimal"), "cannot be split over 4 GPUs, which do not divide its 9 attention heads"),
        ((*DEVICE, "--gpus", "2"), "choose one of 1, 3"),
        ((*DEVICE, "--kv-bits", "4"), "has no KV cache of 4 bits: choose 16 or 8"),
        ((*DEVICE, "--context", "9000"), "9,000 tokens is more than the 8,192 that tiny-llama was made for"),
        ((*DEVICE, "--vram", "25GiB"), "25.00 GiB are more than the 24 GB of NVIDIA L4 24 GB"),
        (("--hardware", "l4", "--engine", "transformers", "--gpus", "3"), "does not split layers over several GPUs"),
        ((*DEVICE, "--formats", ","), "names no format"),
        ((*DEVICE, "--vram", "9" * 400 + "GiB"), "is no size"),
        ((*DEVICE, "--weights", "9" * 400 + "bits"), "is no size"),
        ((*DEVICE, "--max-ppl-increase", "9" * 400 + "%"), "is no percentage"),
    ],
)
def test_a_load_that_cannot_be_is_one_line_and_no_plan(plan, arguments, said):
    status, made, printed = plan(*arguments)
    assert status == 2 and made is None
    assert said in printed and printed.count("\n") == 1 and printed.startswith("error: ")


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("hardware", {"this-machine", "mi355x", "native", "software)", "none"}),
        ("scenarios", {"consumer", "production", "cost-optimal", "research", "SmoothQuant"}),
    ],
)
def test_tables_show_the_guides_word_beside_what_is_so(monkeypatch, capsys, which, words):
    monkeypatch.setattr(sys, "argv", ["advisor", "tables", which])
    with pytest.raises(SystemExit):
        cli.main()
    assert words <= {word.strip("(,.") for word in capsys.readouterr().out.split()}
