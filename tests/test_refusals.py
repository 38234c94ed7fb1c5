"""What a refusal offers suffices, tried out; and where nothing of the engine's formats does, it says so."""

import random
import re

import pytest

from advisor import knowledge
from advisor.errors import InfeasibleBudget, PlanError
from advisor.planner.candidates import prepare
from advisor.planner.planning import make_plan
from advisor.types import PlanRequest, SensitivityProfile
from advisor.units import GIB, MIB
from tests.planning_cases import catalogue, profile, request

ENGINES = {"transformers": "h100-sxm-80gb", "vllm": "a100-sxm-80gb", "mlx": "m4-max-128gb"}
ENGINES |= {"llama.cpp": "rtx-4090", "transformers-bitsandbytes": "rtx-4090"}
ALL = ("fp8_e4m3", "int8", "int8_g64", "int4_g32", "int4_g64", "int4_g128", "int4_g64_asym", "int3_g64", "int2_g64")
ALL = (*ALL, "nf4_g64", "int8_w8a8", "fp8_w8a8")


def refusal(sensitivity: SensitivityProfile, asked: PlanRequest) -> str:
    with pytest.raises(InfeasibleBudget) as error:
        make_plan(sensitivity, asked)
    return str(error.value)


def fits(sensitivity: SensitivityProfile, asked: PlanRequest) -> bool:
    try:
        make_plan(sensitivity, asked)
    except InfeasibleBudget:
        return False
    return True


def misses(sensitivity: SensitivityProfile, asked: PlanRequest) -> bool:
    """Whether the budget, and nothing else in the request, is what cannot be had."""
    try:
        return not fits(sensitivity, asked)
    except PlanError:
        return False


def wishes_of(chance: random.Random) -> dict:
    return {
        "locks": chance.choice([{}, {}, {r".*\.o_proj": "int8"}, {"block 0": "bf16", r".*1\.mlp\.down_proj": "int8"}]),
        "excluded": chance.choice([(), (), ("block 1",), (r".*up_proj", r".*gate_proj")]),
        "formats": chance.choice([(), (), ("int8",)]),
        "role_floors": chance.choice(["advise", "advise", "enforce"]),
    }


def followed(words: str, sensitivity: SensitivityProfile, asked: PlanRequest) -> list[tuple]:
    """The profiles and requests that a suggestion leads to: one for each of the formats that it offers."""
    found = [(sensitivity, asked)]
    for part in words.split(" and "):
        names, ways = [name for name in re.findall(r"[a-z0-9_]+", part) if name in ALL], []
        together = len(names) > 1 and " or " not in part
        for one, wanted in found:
            for chosen in [tuple(names)] if together or not names else [(name,) for name in names]:
                ways.append(step(part, chosen, one, wanted))
        found = ways
    return found


def step(part: str, names: tuple[str, ...], sensitivity: SensitivityProfile, asked: PlanRequest) -> tuple:
    formats = (*asked.formats, *names) if asked.formats else ()
    if part.startswith("choose from"):
        return sensitivity, asked.model_copy(update={"formats": formats})
    if part.startswith("measure the"):
        return measured(sensitivity.formats), asked
    if part.startswith("measure"):
        layers = "" if len(sensitivity.measured_layers) > 5 else "0.mlp.down_proj"
        return measured((*sensitivity.formats, *names), layers), asked.model_copy(update={"formats": formats})
    lifted = {"remove": {"locks": {}}, "exclude": {"excluded": ()}, "set": {"role_floors": "advise"}}
    return sensitivity, asked.model_copy(update=lifted[part.split()[0]])


def measured(formats: tuple[str, ...], layers: str = "") -> SensitivityProfile:
    return profile(formats=formats, measured=layers)


def suggestions(sentence: str) -> list[str]:
    parts = [part.removeprefix("or ").strip(" .") for part in re.split(r", (?=or |[a-z]+ )", sentence.split("; ")[-1])]
    return [part for part in parts if re.match("choose from|measure|remove|exclude|set", part)]


@pytest.mark.parametrize("engine", ENGINES)
def test_whatever_a_refusal_offers_makes_the_plan_fit(engine):
    chance, tried = random.Random(engine), 0
    for _ in range(35):
        usable = [name for name in ALL if name in knowledge.find_engine(engine).formats]
        formats = {*chance.sample(usable, chance.choice([1, 2])), "int8"}
        sensitivity = measured(tuple(sorted(formats)), chance.choice(["", "", "0.mlp.down_proj"]))
        limit = chance.choice([{"weight_bits": chance.uniform(2, 9)}, {"weight_bytes": chance.randrange(1, 12) * MIB}])
        asked = request(engine, ENGINES[engine], **limit, **wishes_of(chance))
        if not misses(sensitivity, asked):
            continue
        sentence = refusal(sensitivity, asked)
        for words in suggestions(sentence):
            for one, wanted in followed(words, sensitivity, asked):
                assert fits(one, wanted), f"{sentence} || {words} || {wanted}"
                tried += 1
        every_way_out_fits(sensitivity, asked)
    assert tried > 5


def every_way_out_fits(sensitivity: SensitivityProfile, asked: PlanRequest) -> int:
    """How many ways out the refusal has, each said in its sentence and followed."""
    with pytest.raises(InfeasibleBudget) as error:
        make_plan(sensitivity, asked)
    for words, changes in error.value.ways_out.items():
        assert words in str(error.value) and fits(sensitivity, asked.changed(changes)), words
    return len(error.value.ways_out)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_way_out_of_too_little_memory_fits(engine):
    chance, tried = random.Random(engine), 0
    for _ in range(20):
        load = {"context": chance.randrange(200, 8000), "sequences": chance.randrange(1, 300)}
        limit = chance.choice([{"vram_bytes": chance.randrange(1, 4000) * MIB}, {"weight_bits": 3.0}])
        asked = request(engine, ENGINES[engine], **limit, **load, **wishes_of(chance))
        if misses(profile(), asked):
            tried += every_way_out_fits(profile(), asked)
    assert tried > 5


@pytest.mark.parametrize("engine", ENGINES)
def test_no_format_is_small_enough_is_said_where_all_of_them_measured_and_no_wishes_still_miss(engine):
    chance, said = random.Random(engine), {True: 0, False: 0}
    every = tuple(name for name in ALL if name in knowledge.find_engine(engine).formats)
    for _ in range(20):
        limit = chance.choice([{"weight_bits": chance.uniform(1, 7)}, {"weight_bytes": chance.randrange(1, 9) * MIB}])
        asked = request(engine, ENGINES[engine], **limit, **wishes_of(chance))
        if not misses(measured(("int8",)), asked):
            continue
        none = "small enough" in refusal(measured(("int8",)), asked)
        free = asked.model_copy(update={"locks": {}, "excluded": (), "formats": (), "role_floors": "advise"})
        assert none != fits(measured(every), free)
        said[none] += 1
    assert min(said.values()) > 2


def test_a_format_that_is_smaller_but_not_small_enough_is_not_offered():
    sentence = refusal(profile(formats=("int8", "int4_g64")), request(weight_bits=4.0))
    assert "measure int2_g64 too" in sentence and "int4_g128" not in sentence
    sentence = refusal(profile(formats=("int8", "int4_g64")), request(weight_bits=2.0))
    assert (
        "no format that Transformers with optimum-quanto stores is small enough; allow at least 4.25 bits." in sentence
    )


def test_the_bits_that_would_be_small_enough_are_told():
    sensitivity = profile(formats=("int8", "int4_g64"))
    asked = request("vllm", weight_bytes=3 * MIB)
    sentence = refusal(sensitivity, asked)
    case = prepare(sensitivity, asked)
    room = 8 * (3 * MIB - case.fixed_bytes) / sum(layer.parameters for layer in case.decided)
    told = float(re.search(r"would have to average ([\d.]+) bits", sentence)[1])
    assert room - 0.01 <= told <= room and "vLLM" in sentence


def test_where_even_weights_of_no_size_miss_it_no_format_is_blamed():
    sentence = refusal(profile(), request(vram_bytes=GIB // 2, context=16))
    assert "no format would be small enough, as all that the plan does not decide takes" in sentence
    assert "measure" not in sentence and "shorten" not in sentence


def test_changes_that_suffice_only_together_are_offered_together():
    sensitivity = profile(formats=("int8", "int4_g64"))
    asked = request(weight_bits=4.5, formats=("int8",), locks={"block 0": "int8"}, excluded=("block 1",))
    sentence = refusal(sensitivity, asked)
    assert "choose from int4_g64 too and remove the lock and exclude nothing" in sentence
    assert fits(*followed("choose from int4_g64 too and remove the lock and exclude nothing", sensitivity, asked)[0])
    for part in ("choose from int4_g64 too and remove the lock", "remove the lock and exclude nothing"):
        assert not fits(*followed(part, sensitivity, asked)[0])


def test_an_engine_of_one_quantized_format_is_never_offered_two_of_them_mixed():
    engine = {"engine": "transformers-bitsandbytes", "hardware": "rtx-4090"}
    sensitivity = profile(formats=("int8", "nf4_g64"))
    locks = {r".*\.mlp\..*": "int8"}
    # NF4 for attention beside the locked INT8 would be smaller than INT8 alone: it cannot be had.
    sentence = refusal(sensitivity, request(**engine, weight_bits=7.0, locks=locks))
    assert "averages 8.0" in sentence and "remove the lock" in sentence
    assert fits(sensitivity, request(**engine, weight_bits=7.0))
    sentence = refusal(sensitivity, request(**engine, weight_bits=4.4, locks=locks))
    assert "no format that Transformers with bitsandbytes stores is small enough" in sentence
    assert "remove" not in sentence


@pytest.mark.parametrize(
    ("engine", "hardware", "load", "ways_out"),
    [
        ("vllm", "m4-max-128gb", {}, {"plan for Transformers with optimum-quanto": {"engine": "transformers"}}),
        ("mlx", "h100-sxm-80gb", {"gpus": 3}, {"plan for vLLM (compressed-tensors)": {"engine": "vllm"}}),
        ("vllm", "m4-max-128gb", {"gpus": 3}, {}),
        ("vllm", "h100-sxm-80gb", {"gpus": 7}, {"plan for 3 GPUs": {"gpus": 3}}),
        ("mlx", "m4-max-128gb", {"gpus": 2}, {"plan for one GPU": {"gpus": 1}}),
        ("vllm", "h100-sxm-80gb", {"context": 9000}, {"shorten the context to 8,192 tokens": {"context": 8192}}),
    ],
)
def test_an_engine_or_a_load_that_cannot_be_has_a_way_out_where_there_is_one(engine, hardware, load, ways_out):
    asked = request(engine, hardware, weight_bits=8.0, **load)
    with pytest.raises(PlanError) as error:
        make_plan(profile(), asked)
    assert error.value.ways_out == ways_out
    for changes in ways_out.values():
        assert fits(profile(), asked.changed(changes))


def test_only_a_lighter_load_that_suffices_is_offered():
    heavy = request(vram_bytes=2 * GIB, context=8192, sequences=400)
    sentence = refusal(profile(), heavy)
    offered = re.search(r"shorten the context to ([\d,]+) tokens, or serve (\d+) sequences", sentence)
    assert "the KV cache takes" in sentence and "8 bits" not in sentence  # half of that cache is still too large
    for field, words in zip(("context", "sequences"), offered.groups(), strict=True):
        most = int(words.replace(",", ""))
        assert fits(profile(), heavy.changed({field: most}))
        assert not fits(profile(), heavy.changed({field: most + most // 8 + 1}))
    with pytest.raises(InfeasibleBudget) as error:
        make_plan(profile(), request(vram_bytes=MIB, context=8192, sequences=3))
    light = {"vram_bytes": int((error.value.smallest_bytes - 10 * MIB) / 0.95), "context": 8192, "sequences": 3}
    assert not fits(profile(), request(**light)) and fits(profile(), request(**light, kv_bits=8))
    assert "store the KV cache in 8 bits" in refusal(profile(), request(**light))


def test_a_layer_that_was_left_out_is_offered_where_it_suffices():
    names = len(catalogue().quantizable)
    part = profile(formats=("int8",), measured="0.mlp.down_proj")
    whole = sum(layer.parameters for layer in catalogue().layers)
    sentence = refusal(part, request("mlx", "m4-max-128gb", weight_bytes=int(1.2 * whole)))
    assert f"measure the {names - 1} layers that were left out" in sentence
    assert "left out" not in refusal(part, request("mlx", "m4-max-128gb", weight_bytes=whole // 2))
