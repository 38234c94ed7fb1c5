"""What the chosen device does with each format, beside what the guide says of it, with the sources of both."""

from __future__ import annotations

import streamlit as st

from advisor import knowledge
from advisor.types import Engine, Format, Hardware, SensitivityProfile, Sourced
from advisor.ui import common

_SUPPORT = {
    "native": "native: matrix units run it",
    "weight_only": "weight only: stored small, computed in 16 bits",
    "emulated": "emulated: computed in software",
    "none": "none: cannot be used",
}


def show(device: Hardware, engine: Engine, profile: SensitivityProfile) -> None:
    """An expander with a row per format that the engine stores or the profile measured."""
    with st.expander("What this device does with each format"):
        st.dataframe(rows(device, engine, profile), hide_index=True)
        st.caption(" ".join(_notes(device)))
        common.guide_link("hardware", shown_device=device.name)


def rows(device: Hardware, engine: Engine, profile: SensitivityProfile) -> list[dict[str, str]]:
    """Format by format: what the hardware does, the guide's word, and whether engine and profile have it."""
    names = dict.fromkeys([profile.catalogue.dtype, *profile.formats, *engine.formats])
    return [_row(knowledge.find_format(name), device, engine, profile) for name in names]


def _row(fmt: Format, device: Hardware, engine: Engine, profile: SensitivityProfile) -> dict[str, str]:
    support, said = device.support[fmt.family], device.guide.get(fmt.family, "")
    own = fmt.name == profile.catalogue.dtype
    return {
        "Format": fmt.label,
        f"{device.label}": _SUPPORT[support],
        "The guide says": f"{said} (differs)" if said and said != support else said or "–",
        engine.label: _stored(fmt, engine),
        "Measured": "the model's own" if own else "yes" if fmt.name in profile.formats else "no",
    }


def _stored(fmt: Format, engine: Engine) -> str:
    if fmt.name not in engine.formats:
        return "does not store it" if fmt.quantized else "keeps it"
    return engine.formats[fmt.name].note or "stores it"


def _notes(device: Hardware) -> list[str]:
    facts = [
        f"{device.label}: {device.memory_gb.value:g} GB of memory ({device.memory_gb.source}),",
        f"bandwidth {_stated(device.bandwidth_gb_s, 'GB/s')}.",
    ]
    peaks = [f"{family.upper()} {peak.value:g}" for family, peak in device.peak_tflops.items()]
    facts.append(f"Dense peaks in TFLOPS or TOPS: {', '.join(peaks) or 'not stated'}.")
    facts.append(f"Source of the support: {device.support_source}.")
    if device.guide:
        facts.append("The guide's word is that of the quantization guide's hardware table.")
    return [*facts, device.notes] if device.notes else facts


def _stated(number: Sourced | None, unit: str) -> str:
    return f"{number.value:g} {unit} ({number.source})" if number is not None else "not stated"
