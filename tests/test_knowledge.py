"""The tables of `profiles/`: complete, sourced, refused when wrong, and open to tables of one's own."""

import re

import pytest

from advisor import knowledge
from advisor.errors import KnowledgeError
from advisor.types import Role, Sourced

FORMATS = (
    "fp32 bf16 fp16 fp8_e4m3 int8 int8_g64 int4_g32 int4_g64 int4_g128 int4_g64_asym int3_g64 int2_g64 nf4_g64 "
    "int8_w8a8 fp8_w8a8"
).split()

OWN_DEVICE = """
[my-box]
like = "rtx-4090"
label = "My box"
memory_gb = { value = 48, source = "nvidia-smi", checked_on = "2026-11" }
"""


def sourced_values(noun):
    """Every number with a source in a noun, those in its tables included."""
    for _, value in noun:
        if isinstance(value, Sourced):
            yield value
        elif isinstance(value, dict):
            yield from (inner for inner in value.values() if isinstance(inner, Sourced))


def test_the_formats_that_the_command_line_promises_are_there():
    assert list(knowledge.formats()) == FORMATS


def test_a_format_has_zero_points_exactly_when_it_is_asymmetric():
    for fmt in knowledge.formats().values():
        assert (fmt.zero_point_bits > 0) == (not fmt.symmetric), fmt.name
        assert (fmt.scale_bits > 0) == fmt.quantized, fmt.name


def test_int_formats_group_as_their_names_say():
    for fmt in knowledge.formats().values():
        grouped = re.search(r"_g(\d+)", fmt.name)
        assert fmt.group_size == (int(grouped[1]) if grouped else None), fmt.name


@pytest.mark.parametrize(
    "name",
    "a100-sxm-40gb a100-sxm-80gb h100-sxm-80gb h100-pcie-80gb h200-sxm-141gb b200-180gb mi300x mi325x mi355x l40s l4 "
    "a10g t4 rtx-3090 rtx-4090 rtx-5090 m1-16gb m1-max-64gb m2-ultra-192gb m3-ultra-512gb m4-max-128gb m4-pro-48gb "
    "m5-32gb m5-pro-64gb m5-max-128gb this-machine".split(),
)
def test_a_promised_device_is_known(name):
    assert knowledge.find_hardware(name).name == name


def test_every_number_says_where_it_was_read_and_when():
    nouns = [*knowledge.hardware().values(), *knowledge.engines().values()]
    for noun in nouns:
        for sourced in sourced_values(noun):
            assert sourced.source.strip(), noun.name
            assert re.fullmatch(r"20\d\d-\d\d", sourced.checked_on), noun.name


def test_shares_are_shares_and_interconnects_are_slower_than_memory():
    for device in knowledge.hardware().values():
        assert all(0 < share.value < 1 for share in device.matrix_efficiency.values()), device.name
        assert device.matrix_efficiency.keys() <= device.peak_tflops.keys(), device.name
        if device.interconnect_gb_s:
            assert device.interconnect_gb_s.value < device.bandwidth_gb_s.value, device.name


def test_nvidia_devices_state_the_capability_that_their_fp8_units_need():
    for device in knowledge.hardware().values():
        assert (device.compute_capability is not None) == (device.vendor == "nvidia"), device.name
        if device.compute_capability:
            assert (device.compute_capability.value >= 8.9) == (device.support["fp8"] == "native"), device.name


@pytest.mark.parametrize(
    ("fmt", "devices"),
    [
        ("fp8_w8a8", ["l4", "h100-sxm-80gb", "b200-180gb"]),
        ("int8_w8a8", ["t4", "a100-sxm-80gb", "l4", "h100-sxm-80gb"]),
        ("fp8_e4m3", ["t4", "a100-sxm-80gb", "l4", "h100-sxm-80gb", "b200-180gb"]),
    ],
)
def test_vllm_has_kernels_for_8_bits_by_compute_capability(fmt, devices):
    own = knowledge.find_engine("vllm").formats[fmt]
    assert devices == [
        name
        for name in ("t4", "a100-sxm-80gb", "l4", "h100-sxm-80gb", "b200-180gb")
        if (own.least_capability or 0)
        <= knowledge.find_hardware(name).compute_capability.value
        < (own.below_capability or 99)
    ]


def test_only_an_engine_with_a_kernel_on_a_device_with_units_multiplies_rounded_activations():
    vllm, int8 = knowledge.find_engine("vllm"), knowledge.find_format("int8_w8a8")
    devices = ["t4", "h100-sxm-80gb", "b200-180gb", "mi300x"]
    told = [knowledge.multiplies_rounded(vllm, int8, knowledge.find_hardware(name)) for name in devices]
    assert told == [True, True, False, True]
    h100 = knowledge.find_hardware("h100-sxm-80gb")
    assert not knowledge.multiplies_rounded(vllm, knowledge.find_format("int8"), h100)
    assert not knowledge.multiplies_rounded(knowledge.find_engine("transformers"), int8, h100)


def test_the_l4_states_its_peaks_without_sparsity():
    peaks = {family: peak.value for family, peak in knowledge.find_hardware("l4").peak_tflops.items()}
    assert peaks == {"bf16": 121, "fp16": 121, "fp8": 242, "int8": 242}


def test_drivers_names_belong_to_one_device_or_to_memory_sizes_of_one_chip():
    owners = {}
    for name, device in knowledge.hardware().items():
        for said in device.detected_as:
            owners.setdefault(said, []).append(name)
    for said, names in owners.items():
        assert len(names) == 1 or len({name.rpartition("-")[0] for name in names}) == 1, said
    assert {name for names in owners.values() for name in names} == knowledge.hardware().keys() - {"this-machine"}


def test_the_guide_speaks_of_the_devices_that_it_names():
    families = {"int8", "int4", "fp8"}
    for device in knowledge.hardware().values():
        named = device.vendor == "apple" or device.name.startswith(("a100", "h100", "h200", "mi300x"))
        assert set(device.guide) == (families if named else set()), device.name


def test_no_device_runs_int4_natively_although_the_guide_says_so_of_some():
    # Hopper and CDNA 3 lack INT4 matrix units, Apple de-quantizes, and kernels for the rest are weight-only.
    assert {d.support["int4"] for d in knowledge.hardware().values()} == {"weight_only"}
    assert knowledge.find_hardware("h100-sxm-80gb").guide["int4"] == "native"


@pytest.mark.parametrize(
    ("device", "fp8"), [("a100-sxm-80gb", "weight_only"), ("h100-sxm-80gb", "native"), ("m4-max-128gb", "none")]
)
def test_fp8_runs_where_the_matrix_units_have_it(device, fp8):
    assert knowledge.find_hardware(device).support["fp8"] == fp8


def test_a_peak_that_a_device_lacks_natively_is_not_claimed_for_fp8():
    for device in knowledge.hardware().values():
        if device.support["fp8"] != "native":
            assert "fp8" not in device.peak_tflops, device.name


def test_apple_devices_state_the_part_of_memory_that_the_gpu_may_use():
    for device in knowledge.hardware().values():
        assert (device.usable_fraction is not None) == (device.vendor == "apple"), device.name


def test_every_role_has_advice_and_norms_and_routers_are_never_quantized():
    roles = knowledge.roles()
    assert set(roles) == set(Role)
    assert roles[Role.NORM].minimum_bits == roles[Role.ROUTER].minimum_bits == 16
    assert roles[Role.MLP_GATE_UP].minimum_bits < roles[Role.ATTENTION_OUTPUT].minimum_bits


def test_the_guides_marks_are_sourced_and_in_order():
    marks = knowledge.perplexity_marks()
    values = list(sourced_values(marks))
    assert [value.value for value in values] == [5, 10, 20]
    assert all("guide" in value.source and value.checked_on for value in values)


OWN_MARKS = """
[perplexity]
acceptable = { value = 1, source = "our users", checked_on = "2026-11" }
limit = { value = 2, source = "our users", checked_on = "2026-11" }
poor = { value = 3, source = "our users", checked_on = "2026-11" }
"""


def test_marks_of_ones_own_replace_the_guides(own_tables):
    own_tables("marks.toml", OWN_MARKS)
    assert knowledge.perplexity_marks().poor.value == 3


def test_marks_that_lack_one_are_refused(own_tables):
    own_tables("marks.toml", OWN_MARKS.replace("limit", "limits"))
    with pytest.raises(KnowledgeError, match=r"marks.toml: \[perplexity\] limit: Field required"):
        knowledge.perplexity_marks()


def test_every_engine_can_keep_a_layer_in_any_plain_dtype():
    for engine in knowledge.engines().values():
        assert {"fp32", "bf16", "fp16"} <= engine.formats.keys(), engine.name


def test_bitsandbytes_has_two_levels_and_the_others_mix():
    two_levels = {name for name, engine in knowledge.engines().items() if engine.one_quantized_format}
    assert two_levels == {"transformers-bitsandbytes"}
    quantized = [
        f for f in knowledge.find_engine("transformers-bitsandbytes").formats if knowledge.find_format(f).quantized
    ]
    assert quantized == ["int8", "nf4_g64"]


def test_this_machine_has_engines_that_run_on_it():
    vendor = knowledge.find_hardware("this-machine").vendor
    runs = {name for name, engine in knowledge.engines().items() if vendor in engine.vendors}
    assert {"transformers", "llama.cpp"} <= runs


def test_vllm_fuses_and_stores_no_2_or_3_bits():
    vllm = knowledge.find_engine("vllm")
    assert set(vllm.fuses) == {"qkv", "gate_up", "experts"}
    assert not {"int2_g64", "int3_g64", "nf4_g64", "int4_g64_asym"} & vllm.formats.keys()


def test_gguf_stores_channel_int8_with_a_scale_per_32_weights():
    stored = knowledge.stored_format(knowledge.find_engine("llama.cpp"), knowledge.find_format("int8"))
    assert (stored.bits, stored.group_size, stored.scale_bits) == (8, 32, 16)


def test_an_engine_refuses_a_format_that_it_does_not_store():
    with pytest.raises(KnowledgeError, match="does not store nf4_g64; choose one of .*int8"):
        knowledge.stored_format(knowledge.find_engine("vllm"), knowledge.find_format("nf4_g64"))


@pytest.mark.parametrize(
    ("find", "wrong", "meant", "table"),
    [
        (knowledge.find_hardware, "A100-SXM-80", "a100-sxm-80gb", "hardware"),
        (knowledge.find_engine, "llamacpp", "llama.cpp", "engines"),
        (knowledge.find_format, "int4-g64", "int4_g64", "formats"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_likely_one_and_the_table(find, wrong, meant, table):
    with pytest.raises(KnowledgeError) as refusal:
        find(wrong)
    assert f"did you mean '{meant}'?" in str(refusal.value)
    assert f"python -m advisor tables {table}" in str(refusal.value)


def test_a_part_of_a_devices_name_is_answered_with_the_devices_that_have_it():
    with pytest.raises(KnowledgeError, match="did you mean 'h100-sxm-80gb' or 'h100-pcie-80gb' or 'h100-nvl-94gb'"):
        knowledge.find_hardware("H100")


def test_a_misspelt_target_is_answered_with_the_engines_that_are_taken_too():
    with pytest.raises(KnowledgeError, match=r"did you mean 'vllm'\? known are quanto, .*, and the engines .*, vllm"):
        knowledge.find_target("vlm")
    assert knowledge.find_target("vllm").name == "compressed-tensors"
    assert knowledge.find_target("mlx").name == "mlx"


def test_a_name_unlike_any_other_still_gets_the_list():
    with pytest.raises(KnowledgeError, match="Unknown engine 'zzz'; known are .*vllm"):
        knowledge.find_engine("zzz")


def test_a_table_of_ones_own_adds_a_device_and_keeps_the_built_in_ones(own_tables):
    own_tables("hardware/mine.toml", OWN_DEVICE)
    mine, model = knowledge.find_hardware("my-box"), knowledge.find_hardware("rtx-4090")
    assert mine.memory_gb.value == 48
    assert mine.bandwidth_gb_s == model.bandwidth_gb_s
    assert model.memory_gb.value == 24


def test_a_table_of_ones_own_replaces_a_built_in_row(own_tables):
    own_tables(
        "hardware/mine.toml",
        '[m4-max-128gb]\nlike = "m4-max-128gb"\n'
        'usable_fraction = { value = 0.9, source = "iogpu.wired_limit_mb", checked_on = "2026-11" }\n',
    )
    assert knowledge.find_hardware("m4-max-128gb").usable_fraction.value == 0.9


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("hardware/mine.toml", OWN_DEVICE.replace("48", '"lots"'), r"\[my-box\] memory_gb.value: .*number"),
        ("hardware/mine.toml", OWN_DEVICE + "colour = 'green'\n", r"\[my-box\] colour: .*not permitted"),
        ("hardware/mine.toml", OWN_DEVICE.replace("rtx-4090", "rtx-4080"), "did you mean 'rtx-4090'"),
        ("hardware/mine.toml", "label = 'no table'\n", "'label' stands outside of any"),
        ("hardware/mine.toml", "[my-box\n", "is not valid TOML .*line 1"),
        ("hardware/mine.toml", "[my-box]\nlabel = 'x'\n", r"\[my-box\] vendor: Field required"),
    ],
)
def test_a_wrong_device_is_refused_by_file_and_field(own_tables, file, text, complaint):
    written = own_tables(file, text)
    with pytest.raises(KnowledgeError, match=complaint) as refusal:
        knowledge.hardware()
    assert written.name in str(refusal.value)


def test_a_device_that_does_not_say_how_it_computes_with_a_format_is_refused(own_tables):
    own_tables("hardware/mine.toml", OWN_DEVICE + "support = { bf16 = 'native' }\n")
    with pytest.raises(KnowledgeError, match="'my-box' .* does not say how it computes with fp16, fp32, fp8, int2"):
        knowledge.hardware()


def test_an_engine_that_stores_an_unknown_format_is_refused(own_tables):
    own_tables("engines/mine.toml", '[mine]\nlike = "vllm"\nformats = { int4_g46 = {} }\n')
    with pytest.raises(KnowledgeError, match="int4_g46.*did you mean 'int4_g64'"):
        knowledge.engines()


def test_a_format_that_disagrees_with_itself_is_refused(own_tables):
    own_tables("formats.toml", '[int5]\nlabel = "INT5"\nkind = "integer"\nfamily = "int5"\nbits = 5\n')
    with pytest.raises(KnowledgeError, match=r"formats.toml: \[int5\] family"):
        knowledge.formats()


def test_a_folder_of_own_tables_that_does_not_exist_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("ADVISOR_PROFILES", str(tmp_path / "nowhere"))
    with pytest.raises(KnowledgeError, match="ADVISOR_PROFILES names .*nowhere, which is no folder"):
        knowledge.formats()
