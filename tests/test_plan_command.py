"""`python -m advisor plan`: deployments fill in what is not given, and a load that cannot be is one line."""

import json

import pytest

from advisor import knowledge, units
from advisor.cli import commands, output, plan_output
from advisor.planner import planning
from advisor.ui import plan_presets
from tests import planning_cases

DEVICE = ("--hardware", "l4", "--engine", "vllm")


@pytest.fixture
def advisor(tmp_path, run):
    """A command on the hand-written profile; returns the exit status and what was said."""
    profile = tmp_path / "profile.json"
    profile.write_text(planning_cases.profile(2).model_dump_json())

    def command(name, *arguments):
        status, out, err = run(name, profile, *arguments)
        return status, out + err

    return command


@pytest.fixture
def plan(advisor, tmp_path):
    """Plans for the hand-written profile; returns the exit status, the plan (or None) and what was said."""
    out = tmp_path / "plan.json"

    def command(*arguments):
        status, said = advisor("plan", "--out", out, *arguments)
        return status, json.loads(out.read_text()) if out.exists() else None, said

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


def test_a_scenario_gives_the_rise_of_perplexity_that_it_accepts_as_the_page_does(plan):
    status, made, said = plan("--scenario", "consumer")
    assert status == 0, said
    wanted = plan_presets.request_of(knowledge.find_scenario("consumer"), planning_cases.profile(2))
    assert made["request"] == json.loads(wanted.model_dump_json())
    assert made["request"]["budget"]["max_ppl_increase"] == knowledge.find_scenario("consumer").max_ppl_increase
    assert ": most speed within 22.35 GiB of memory and a perplexity no more than 7 % higher\n" in said


@pytest.mark.parametrize(
    ("own", "limits"),
    [
        (("--max-ppl-increase", "2%"), {"max_ppl_increase": 0.02}),
        (("--weights", "6bits"), {"weight_bits": 6.0}),
        (("--vram", "20GiB"), {"vram_bytes": 20 * 2**30}),
    ],
)
def test_a_limit_of_ones_own_replaces_those_of_the_scenario(plan, own, limits):
    status, made, said = plan("--scenario", "consumer", *own)
    assert status == 0, said
    budget = made["request"]["budget"]
    given = ("vram_bytes", "weight_bits", "weight_bytes", "max_ppl_increase")
    assert {name: budget[name] for name in given if budget[name] is not None} == limits
    assert "least memory within" in said if "max_ppl_increase" in limits else "least loss within" in said


def test_a_front_looks_for_the_least_loss_whatever_rise_a_scenario_accepts(advisor, tmp_path):
    status, said = advisor("front", "--scenario", "consumer", "--out", tmp_path / "front.json")
    assert status == 0, said
    budget = json.loads((tmp_path / "front.json").read_text())["request"]["budget"]
    assert budget["max_ppl_increase"] is None and budget["vram_bytes"] == 24 * 10**9


def test_the_help_says_that_a_scenario_brings_its_rise_of_perplexity(advisor):
    status, said = advisor("plan", "--help")
    words = " ".join(said.replace("│", " ").split())
    assert status == 0 and "`plan` takes the rise of perplexity that it accepts too" in words


def test_without_a_scenario_the_load_is_the_products_own(plan):
    status, made, said = plan(*DEVICE, "--weights", "6bits")
    assert status == 0, said
    assert load(made) == {"context": 4096, "sequences": 1, "kv_bits": 16, "gpus": 1}


def test_a_floor_that_forbids_nothing_is_told_in_one_line(plan):
    asked = (*DEVICE, "--weights", "6bits", "--floor", "mlp_down=8")
    for floors, said in (("advise", "only advises"), ("off", "is not looked at")):
        status, _, printed = plan(*asked, "--role-floors", floors)
        assert status == 0 and printed.count("note: --floor") == 1
        assert f"--floor {said} with --role-floors {floors}: give --role-floors enforce" in printed
    assert "note: --floor" not in plan(*asked, "--role-floors", "enforce")[2]
    assert "note: --floor" not in plan(*DEVICE, "--weights", "6bits")[2]


def test_a_deployment_with_room_for_everything_says_what_a_tolerance_would_save(plan):
    _, _, said = plan("--scenario", "production")
    assert "note            The limit has room for the unquantized model" in said and "within a rise of 5 %" in said
    assert "has room" not in plan(*DEVICE, "--weights", "6bits")[2]


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
        ((*DEVICE, "--gpus", "2"), "it can be over 1, 3"),
        (
            (*DEVICE, "--kv-bits", "2"),
            "value for '--kv-bits': '2' is not one of '4', '8', '16'. See --help",
        ),
        (
            (*DEVICE, "--sequences", "9" * 30),
            "Input should be less than or equal to 16777216. See --help",
        ),
        ((*DEVICE, "--kv-bits", "4"), "has no KV cache of 4 bits: choose 16 or 8"),
        ((*DEVICE, "--context", "9000"), "9,000 tokens is more than the 8,192 that tiny-llama was made for"),
        ((*DEVICE, "--vram", "25GiB"), "25.00 GiB are more than the 24 GB of NVIDIA L4 24 GB"),
        (("--hardware", "l4", "--engine", "transformers", "--gpus", "3"), "does not split layers over several GPUs"),
        ((*DEVICE, "--formats", ","), "names no format"),
        ((*DEVICE, "--vram", "9" * 400 + "GiB"), "is no size"),
        ((*DEVICE, "--weights", "9" * 400 + "bits"), "is no size"),
        ((*DEVICE, "--max-ppl-increase", "9" * 400 + "%"), "is no percentage"),
        ((*DEVICE, "--lock", "lm_head="), "--lock 'lm_head=' names no format: write it like lm_head=bf16"),
        ((*DEVICE, "--lock", "=int8"), "is not LAYERS=FORMAT"),
        ((*DEVICE, "--lock", "block 0=int8", "--lock", "block 0=bf16"), "gives 'block 0' two formats, int8 and bf16"),
        ((*DEVICE, "--lock", "blocks 1-5=int8"), "'blocks 1-5' goes beyond tiny-llama, which has the blocks 0 to 1"),
        ((*DEVICE, "--exclude", "block 2"), "exclusion 'block 2' goes beyond tiny-llama, which has the blocks 0 to 1"),
        ((*DEVICE, "--lock", "blocks 1-0=int8"), "'blocks 1-0' runs backwards"),
        ((*DEVICE, "--exclude", "blocks 1-0"), "write the smaller number first, as in 'blocks 0-1'"),
        ((*DEVICE, "--exclude", " "), "--exclude '' names no layers"),
    ],
)
def test_a_load_that_cannot_be_is_one_line_and_no_plan(plan, arguments, said):
    status, made, printed = plan(*arguments)
    assert status == 2 and made is None
    assert said in printed and printed.count("\n") == 1 and printed.startswith("error: ")


@pytest.mark.parametrize("command", ["plan", "front", "profile", "apply"])
def test_a_folder_that_does_not_exist_is_refused_by_name_before_any_work_and_is_not_made(
    advisor, tmp_path, monkeypatch, command
):
    monkeypatch.setattr(commands, "pipeline", None)  # no work can begin
    monkeypatch.setattr(commands.documents, "check_plan_document", lambda text: text)
    out = tmp_path / "new" / "folder" / "out.json"
    wanted = DEVICE if command in ("plan", "front") else ()
    status, said = advisor(command, *wanted, "--out", out)
    assert status == 2 and said.count("\n") == 1
    assert f"{out} lies in {out.parent}, a folder that does not exist: create it" in said
    assert not (tmp_path / "new").exists()


def test_one_of_a_thing_is_called_one(tmp_path):
    counts = [units.plural(count, "layer") for count in (0, 1, 2, 1000)]
    assert counts == ["0 layers", "1 layer", "2 layers", "1,000 layers"]
    profile = planning_cases.profile(formats=("int8",), measured="0.mlp.down_proj")
    made = planning.make_plan(profile, planning_cases.request(weight_bits=9))
    assert "over 1 layer\n" in plan_output.plan_text(made, made, profile.catalogue, tmp_path, {}, ())
    assert "1 layer x int8;" in output.profile_text(profile, tmp_path)


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("hardware", {"this-machine", "mi355x", "native", "software)", "none"}),
        ("scenarios", {"consumer", "production", "cost-optimal", "research", "SmoothQuant"}),
    ],
)
def test_tables_show_the_guides_word_beside_what_is_so(run, which, words):
    assert words <= {word.strip("(,.") for word in run("tables", which)[1].split()}


@pytest.mark.parametrize("command", ["plan", "front"])
def test_what_is_read_is_never_written_over(advisor, tmp_path, command):
    profile = tmp_path / "profile.json"
    before = profile.read_bytes()
    status, said = advisor(command, *DEVICE, "--out", profile)
    assert (status, profile.read_bytes()) == (2, before)
    assert "choose another place" in said
    status, said = advisor(command, *DEVICE, "--out", tmp_path)
    assert status == 2 and "is a folder: name a file" in said
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]
