"""What the advisor runs on, as a row of the hardware table: asked of drivers and the system, without torch."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import psutil

from advisor.types import Hardware, Sourced, now
from advisor.units import size

NAME = "this-machine"
_PATIENCE_SECONDS = 2
_CPU_INFO = Path("/proc/cpuinfo")
# Instructions that multiply matrices or long vectors of a family, as Linux names them on x86 and ARM.
_NATIVE = {
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
    "fp16": {"avx512_fp16", "amx_fp16", "asimdhp"},
    "int8": {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"},
}


class _Accelerator(NamedTuple):
    name: str
    memory_bytes: int


def detect(known: Iterable[Hardware], families: Iterable[str]) -> Hardware:
    """This machine's first accelerator, when `known` has a device that its driver calls so, else its processor.

    The device's row is taken over with the memory that was found; of several rows of one name, the one whose memory is
    nearest. For a processor, memory is all of the machine's, bandwidth and peaks are not stated, and each of the format
    `families` is native only where the processor has instructions for it. Waits two seconds at most for each driver.
    """
    found = _nvidia() or _amd() or _apple()
    rows = [row for row in known if found and found.name in row.detected_as]
    if not rows:
        return _processor(families, found)
    row = min(rows, key=lambda row: abs(row.memory_bytes - found.memory_bytes))
    memory = _measured(found.memory_bytes / 10**9, "its driver, on this machine")
    return row.model_copy(update={"name": NAME, "label": f"This machine: {row.label}", "memory_gb": memory})


def _nvidia() -> _Accelerator | None:
    said = _ask("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    name, _, mebibytes = said.partition("\n")[0].rpartition(", ")
    return _Accelerator(name, int(mebibytes) * 2**20) if name and mebibytes.strip().isdigit() else None


def _amd() -> _Accelerator | None:
    try:
        cards = json.loads(_ask("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json") or "{}")
    except ValueError:
        return None
    for card in cards.values() if isinstance(cards, dict) else ():
        told = {str(key).lower(): str(value) for key, value in card.items()} if isinstance(card, dict) else {}
        name, memory = told.get("card series"), told.get("vram total memory (b)", "")
        if name and memory.isdigit():
            return _Accelerator(name, int(memory))
    return None


def _apple() -> _Accelerator | None:
    if platform.system() != "Darwin":
        return None
    name, _, memory = _ask("sysctl", "-n", "machdep.cpu.brand_string", "hw.memsize").partition("\n")
    return _Accelerator(name, int(memory)) if memory.strip().isdigit() else None


def _ask(command: str, *arguments: str) -> str:
    """What a program prints; nothing where it is missing, fails or hangs."""
    found = shutil.which(command)
    if found is None:
        return ""
    try:
        ran = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=_PATIENCE_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""


def _processor(families: Iterable[str], accelerator: _Accelerator | None) -> Hardware:
    name, flags = _cpu_name_and_flags()
    memory = psutil.virtual_memory().total
    support = {family: "native" if _NATIVE.get(family, set()) & flags else "weight_only" for family in families}
    support |= {family: "emulated" for family in ("bf16", "fp16") if support.get(family) == "weight_only"}
    notes = "Formats that its instructions do not multiply are de-quantized first: they save memory, not arithmetic."
    if accelerator:
        notes += f" Its {accelerator.name} is in no hardware table; add one to plan for it."
    return Hardware(
        name=NAME,
        label=f"This machine: {name}, {size(memory)}",
        vendor="cpu",
        memory_gb=_measured(memory / 10**9, "psutil, on this machine"),
        support=support | {"fp32": "native"},
        support_source="the processor's flags, on this machine",
        notes=notes,
    )


def _cpu_name_and_flags() -> tuple[str, set[str]]:
    """As Linux tells them of the first core; elsewhere a name alone."""
    try:
        first = _CPU_INFO.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine(), set()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    flags = told.get("flags") or told.get("Features") or ""
    return told.get("model name") or platform.machine(), set(flags.split())


def _measured(value: float, source: str) -> Sourced:
    return Sourced(value=value, source=source, checked_on=f"{now():%Y-%m}")
