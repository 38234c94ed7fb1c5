"""This machine as a row of the hardware table: what drivers say, and what is left where they say nothing."""

import json
import subprocess

import psutil
import pytest

from advisor import knowledge, this_machine
from advisor.types import Format

FAMILIES = tuple(Format.model_fields["family"].annotation.__args__)
FLAGS = {
    "vendor_id : x\nmodel name\t: Old CPU\nflags\t\t: fpu sse4_2 avx2\n": {"int8": "weight_only", "bf16": "emulated"},
    "model name\t: VNNI CPU\nflags\t\t: avx2 avx512_vnni\n\nflags : amx_bf16": {"int8": "native", "bf16": "emulated"},
    "model name\t: AMX CPU\nflags\t\t: amx_int8 amx_bf16\n": {"int8": "native", "bf16": "native", "fp16": "emulated"},
    "processor\t: 0\nFeatures\t: asimd asimdhp asimddp i8mm bf16\n": {"int8": "native", "fp16": "native"},
}


def devices():
    return [row for name, row in knowledge.hardware().items() if name != this_machine.NAME]


@pytest.fixture
def drivers(monkeypatch):
    """Answers instead of the programs of drivers: {program: what it prints}; the others are missing."""

    def answer(**printed: str):
        printed = {name.replace("_", "-"): text for name, text in printed.items()}
        monkeypatch.setattr(this_machine, "_ask", lambda program, *_: printed.get(program, ""))
        return this_machine.detect(devices(), FAMILIES)

    return answer


@pytest.mark.parametrize(
    ("driver", "row"),
    [
        ("NVIDIA H100 80GB HBM3, 81559", "h100-sxm-80gb"),
        ("NVIDIA A100-SXM4-40GB, 40960\nNVIDIA A100-SXM4-40GB, 40960", "a100-sxm-40gb"),
        ("NVIDIA GeForce RTX 4090, 24564", "rtx-4090"),
        ("Tesla T4, 15360", "t4"),
    ],
)
def test_a_known_gpu_takes_its_row_and_the_memory_that_its_driver_reports(drivers, driver, row):
    found, known = drivers(nvidia_smi=driver), knowledge.find_hardware(row)
    mebibytes = int(driver.splitlines()[0].split(", ")[1])
    assert found.memory_bytes == pytest.approx(mebibytes * 2**20, abs=1)
    assert found.label == f"This machine: {known.label}"
    changed = {"name", "label", "memory_gb"}
    assert found.model_dump(exclude=changed) == known.model_dump(exclude=changed)


def test_an_amd_gpu_is_found_by_its_own_tool(drivers):
    card = {"Card Series": "AMD Instinct MI300X OAM", "VRAM Total Memory (B)": "206141652992"}
    found = drivers(rocm_smi=json.dumps({"card0": card}))
    assert found.support == knowledge.find_hardware("mi300x").support
    assert found.memory_bytes == 206141652992


@pytest.mark.parametrize(("gb", "cores", "bandwidth"), [(36, 30, 300), (48, 40, 400), (128, 40, 400)])
def test_chips_of_one_name_are_told_apart_by_their_memory(drivers, monkeypatch, gb, cores, bandwidth):
    monkeypatch.setattr(this_machine.platform, "system", lambda: "Darwin")
    found = drivers(sysctl=f"Apple M3 Max\n{gb * 2**30}")
    assert f"{cores}-core GPU" in found.label
    assert found.bandwidth_gb_s.value == bandwidth
    assert found.usable_fraction.value == (0.66 if gb == 36 else 0.75)


@pytest.mark.parametrize("driver", ["NVIDIA GeForce RTX 4090 Laptop GPU, 16376", "NVIDIA GeForce RTX 3090 Ti, 24564"])
def test_a_gpu_that_only_sounds_known_is_not_mistaken_for_it(drivers, driver):
    found = drivers(nvidia_smi=driver)
    assert found.vendor == "cpu"
    assert f"Its {driver.split(',')[0]} is in no hardware table" in found.notes


@pytest.mark.parametrize("printed", ["", "No devices were found", "a, b", "NVIDIA-SMI has failed\n"])
def test_a_driver_that_says_nothing_of_use_leaves_the_processor(drivers, printed):
    found = drivers(nvidia_smi=printed, rocm_smi=printed)
    assert found.vendor == "cpu"
    assert found.memory_bytes == pytest.approx(psutil.virtual_memory().total, abs=1)
    assert found.bandwidth_gb_s is None and found.peak_tflops == {}


@pytest.mark.parametrize("info", FLAGS)
def test_a_processor_is_native_only_where_its_flags_say_so(drivers, monkeypatch, tmp_path, info):
    file = tmp_path / "cpuinfo"
    file.write_text(info)
    monkeypatch.setattr(this_machine, "_CPU_INFO", file)
    found = drivers()
    assert FLAGS[info].items() <= found.support.items()
    assert found.support["fp32"] == "native" and found.support["int4"] == found.support["nf4"] == "weight_only"
    assert set(found.support) == set(FAMILIES)


def test_a_processor_that_tells_nothing_is_believed_nothing(drivers, monkeypatch, tmp_path):
    monkeypatch.setattr(this_machine, "_CPU_INFO", tmp_path / "missing")
    assert {f for f, support in drivers().support.items() if support == "native"} == {"fp32"}


@pytest.mark.parametrize("fault", [OSError("gone"), subprocess.TimeoutExpired("nvidia-smi", 2)])
def test_a_driver_that_hangs_or_fails_is_passed_over(monkeypatch, fault):
    def fail(*_, **__):
        raise fault

    monkeypatch.setattr(this_machine.shutil, "which", lambda program: program)
    monkeypatch.setattr(this_machine.subprocess, "run", fail)
    assert this_machine.detect(devices(), FAMILIES).vendor == "cpu"


def test_this_machine_is_asked_once_and_listed_first(monkeypatch):
    found = knowledge.find_hardware("this-machine")
    assert next(iter(knowledge.hardware())) == this_machine.NAME
    monkeypatch.setattr(this_machine, "detect", lambda *_: pytest.fail("asked again"))
    assert knowledge.find_hardware("this-machine") is found


def test_a_table_of_ones_own_may_describe_this_machine(monkeypatch, tmp_path):
    (tmp_path / "hardware").mkdir()
    (tmp_path / "hardware" / "mine.toml").write_text('[this-machine]\nlike = "l4"\nlabel = "My box"\n')
    monkeypatch.setenv("ADVISOR_PROFILES", str(tmp_path))
    assert knowledge.find_hardware("this-machine").label == "My box"
