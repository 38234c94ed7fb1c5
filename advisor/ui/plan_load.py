"""Where a plan is to run: the device, the engine, how many GPUs, and the load that memory and speed are planned for."""

from __future__ import annotations

from typing import Any

import streamlit as st

from advisor import knowledge
from advisor.types import Engine, Hardware, PlanRequest, SensitivityProfile
from advisor.ui import common, fields


def device_and_engine() -> tuple[Hardware, Engine]:
    """Draw both choices and return what they say."""
    devices, engines = knowledge.hardware(), knowledge.engines()
    device = common.choose(
        "device",
        "Device",
        {name: row.label for name, row in devices.items()},
        "What it computes with, and how much memory it has.",
        "rtx-4090",
    )
    engine = common.choose(
        "engine",
        "Engine",
        {name: row.label for name, row in engines.items()},
        "Which formats it stores, which layers it fuses, and what it takes for itself.",
        "transformers",
    )
    return devices[device], engines[engine]


def load(profile: SensitivityProfile, engine: Engine) -> dict[str, Any]:
    """Draw the fields of the load and return what they say, as fields of a Budget."""
    with st.expander("Load: GPUs, context, sequences, KV cache", expanded=True):
        left, right = st.columns(2)
        gpus = fields.number(
            "gpus",
            left.number_input,
            "GPUs",
            1,
            fields.reach("gpus", 1, 64)[1],
            help="Devices over which the engine splits every layer (tensor parallelism). Their number must divide the "
            "model's attention heads.",
        )
        sequences = fields.number(
            "sequences",
            right.number_input,
            "Sequences at once",
            1,
            fields.reach("sequences", 1, 4096)[1],
            help="How many sequences share the device.",
        )
        context = fields.number(
            "context",
            st.number_input,
            "Context (tokens)",
            1,
            fields.reach("context", 1, max(1_048_576, profile.catalogue.max_context))[1],
            min(4096, profile.catalogue.max_context),
            step=512,
            help=f"Tokens of one sequence, prompt and answer together; {profile.catalogue.model.name} was made for "
            f"{profile.catalogue.max_context:,} at most.",
        )
        return {"gpus": gpus, "sequences": sequences, "context": context, "kv_bits": _kv_bits(engine)}


def fill(wanted: PlanRequest) -> None:
    """Take device, engine and load of a request into the fields."""
    budget = wanted.budget
    for key, value in {"device": wanted.hardware, "engine": wanted.engine, "kv_bits": str(budget.kv_bits)}.items():
        common.set_choice(key, value)
    for key in ("gpus", "sequences", "context"):
        st.session_state[key] = min(getattr(budget, key), fields.LARGEST)


def _kv_bits(engine: Engine) -> int:
    """One of the engine's own choices; says so where the one before is none of them."""
    options = {str(bits): str(bits) for bits in engine.kv_bits}
    held = st.session_state.get("last_kv_bits")
    bits = common.choose(
        "kv_bits",
        "KV cache (bits)",
        options,
        f"Bits of one value of the KV cache, among those that {engine.label} has.",
        widget=st.segmented_control,
        required=True,
    )
    if held and held not in options:
        st.info(f"{engine.label} has no KV cache of {held} bits: planned with {bits}.")
    return int(bits)
