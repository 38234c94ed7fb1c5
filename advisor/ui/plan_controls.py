"""The left side of the plan page: device, budget, formats and locks -> a PlanRequest."""

from __future__ import annotations

import math
import re
from typing import TypeVar

import streamlit as st

from advisor import knowledge
from advisor.memory import weights_bytes
from advisor.types import Budget, Engine, PlanRequest, SensitivityProfile
from advisor.ui import common, wording

LIMITS = {
    "bits": "Average bits",
    "memory": "Device memory",
    "weights": "Size of the weights",
    "ppl": "Rise of perplexity",
}
# Beyond this a browser cannot tell whole numbers apart, and streamlit refuses the field.
_LARGEST = 2**53 - 1
FLOORS = {"off": "Ignore", "advise": "Advise", "enforce": "Enforce"}


Number = TypeVar("Number", int, float)


def request(profile_id: str, profile: SensitivityProfile) -> PlanRequest:
    """Draw the controls and return what they say."""
    _restore(profile_id)
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
    budget = _budget(profile, devices[device].memory_bytes, engines[engine])
    _forget_unmeasured("plan_formats", profile)
    formats = st.multiselect(
        "Formats to choose from",
        list(profile.formats),
        key="plan_formats",
        placeholder="all that were measured",
        persist_state="session",
        help="Empty means all measured ones. The original format is always possible.",
    )
    floors = common.choose(
        "floors",
        "Role floors",
        FLOORS,
        "The guide's least bits for each role: ignored, shown as "
        "advice beside each layer, or enforced whatever the scores say.",
        "advise",
        widget=st.segmented_control,
        required=True,
    )
    _lock_controls(profile_id, profile)
    return PlanRequest(
        hardware=device,
        engine=engine,
        budget=budget,
        locks=locks(profile_id),
        formats=tuple(name for name in formats if name in profile.formats),
        role_floors=floors,
    )


def locks(profile_id: str) -> dict[str, str]:
    """The locks that this session holds for a profile: layer name or pattern -> format name."""
    return st.session_state.setdefault("locks", {}).setdefault(profile_id, {})


def set_locks(profile_id: str, wanted: dict[str, str]) -> None:
    """Replace the locks; the table is drawn afresh."""
    st.session_state.setdefault("locks", {})[profile_id] = wanted
    st.session_state["locks_version"] = st.session_state.get("locks_version", 0) + 1


def clear_locks_button(profile_id: str, key: str) -> None:
    """A button that takes all locks away; nothing where there are none."""
    count = len(locks(profile_id))
    if count:
        st.button(
            f"Clear {wording.plural(count, 'lock')}",
            on_click=set_locks,
            args=(profile_id, {}),
            key=key,
            icon=":material/lock_open:",
            help="The solver decides every layer again.",
        )


def _budget(profile: SensitivityProfile, device_bytes: int, engine: Engine) -> Budget:
    kind = common.choose(
        "limit",
        "What limits",
        LIMITS,
        "The one limit that the plan must respect. The first three look "
        "for the least loss within it, the last for the least memory.",
        widget=st.radio,
    )
    limit = {
        "bits": lambda: _bits_limit(profile),
        "memory": lambda: _memory_limit(device_bytes),
        "weights": lambda: _weights_limit(profile, engine),
        "ppl": _rise_limit,
    }[kind]()
    with st.expander("Load: context, sequences, KV cache", expanded=kind == "memory"):
        context = st.number_input(
            "Context (tokens)",
            1,
            _reach("context", 1, max(1_048_576, profile.catalogue.max_context))[1],
            min(4096, profile.catalogue.max_context),
            step=512,
            help="Tokens of one sequence, prompt and answer together.",
            **common.setting("context"),
        )
        sequences = st.number_input(
            "Sequences at once",
            1,
            _reach("sequences", 1, 4096)[1],
            1,
            help="How many sequences share the device.",
            **common.setting("sequences"),
        )
        kv_bits = st.segmented_control(
            "KV cache (bits)",
            [16, 8],
            default=16,
            required=True,
            help="Bits of one value of the KV cache.",
            key="kv_bits",
            persist_state="session",
        )
    return Budget(context=context, sequences=sequences, kv_bits=kv_bits or 16, **limit)


def _bits_limit(profile: SensitivityProfile) -> dict[str, float]:
    smallest = min(knowledge.find_format(name).bits for name in profile.formats)
    bits = st.slider(
        "Average bits per weight",
        *_reach("bits", 2.0, float(knowledge.find_format(profile.catalogue.dtype).bits)),
        min(smallest + 1.0, 16.0),
        0.05,
        help="Over the layers that the plan decides, scales and zero points included.",
        **common.setting("bits"),
    )
    return {"weight_bits": bits}


def _memory_limit(device_bytes: int) -> dict[str, int]:
    gib = st.number_input(
        "Memory (GiB)",
        *_reach("memory", 0.05, float(2**20)),
        None,
        step=0.5,
        format="%.2f",
        placeholder=f"{device_bytes / wording.GIB:.1f} (the whole device)",
        help="1 GiB is 2^30 bytes. Empty means all of the device. The engine's usable share of it "
        "holds weights, KV cache, activations and overhead.",
        **common.setting("memory"),
    )
    return {"vram_bytes": int(gib * wording.GIB) if gib else device_bytes}


def _weights_limit(profile: SensitivityProfile, engine: Engine) -> dict[str, int]:
    original = weights_bytes(profile.catalogue, {}, engine) / wording.MIB
    mib = st.number_input(
        "Weights (MiB)",
        _reach("weight_mib", 0.01, 0.01)[0],
        None,
        max(0.01, round(0.6 * original, 2)),
        step=max(0.01, round(original / 50, 2)),
        format="%.2f",
        help=f"1 MiB is 2^20 bytes. All weights of the model as the engine stores them, those that the plan does not "
        f"decide included; in {profile.catalogue.dtype.upper()} they are {original:,.2f} MiB.",
        key="weight_mib",
        persist_state="session",
    )
    return {"weight_bytes": int(mib * wording.MIB)}


def _rise_limit() -> dict[str, float]:
    rise = st.slider(
        "Largest rise of perplexity (%)",
        *_reach("rise", 0.0, 30.0),
        5.0,
        0.5,
        help="The plan with the least memory whose predicted perplexity rises no more than this.",
        **common.setting("rise"),
    )
    return {"max_ppl_increase": rise / 100}


def _reach(key: str, low: Number, high: Number) -> tuple[Number, Number]:
    """The bounds of a field, widened to what a stored plan or the link asks of it: streamlit refuses values outside.

    They stay as wide for the session, since a field whose bounds change is a new field.
    """
    held = _held(key)
    reaches = st.session_state.setdefault("reaches", {})
    low, high = min(low, reaches.get(key, (low, high))[0]), max(high, reaches.get(key, (low, high))[1])
    if held is not None:
        low, high = min(low, type(low)(held)), max(high, type(high)(held))
    reaches[key] = low, high
    return low, high


def _held(key: str) -> float | None:
    """The number that this session, or else the link, holds for a field; None where that is none to plan with."""
    try:
        held = float(st.session_state.get(key) or st.query_params.get(key) or math.nan)
    except ValueError:
        return None
    return held if 0 < held <= _LARGEST else None


def _forget_unmeasured(key: str, profile: SensitivityProfile) -> None:
    """Formats chosen for another profile are no choice here."""
    if key in st.session_state:
        st.session_state[key] = [name for name in st.session_state[key] if name in profile.formats]


def _lock_controls(profile_id: str, profile: SensitivityProfile) -> None:
    held = locks(profile_id)
    label = f"Locks ({len(held)})" if held else "Locks"
    with st.expander(label, expanded=bool(held)):
        pattern = st.text_input(
            "Layers",
            key="lock_pattern",
            placeholder=r"layers\.0\.|down_proj",
            help="A layer's name, or a regular expression searched in the names.",
        )
        fmt = st.selectbox(
            "Format",
            [profile.catalogue.dtype, *profile.formats],
            key="lock_format",
            help="The format that these layers must get.",
        )
        if st.button("Lock", disabled=not pattern, help="The solver works around the locked layers."):
            problem = _lock_problem(pattern, profile)
            if problem:
                st.error(problem)
            else:
                # Locks match whole names; what people type is searched for, as elsewhere on these pages.
                set_locks(profile_id, {**held, f".*(?:{pattern}).*": fmt})
                st.rerun()
        for name, locked_format in list(held.items())[:12]:
            st.caption(f":material/lock: `{_readable(name)}` in {locked_format}")
        if len(held) > 12:
            st.caption(f"and {len(held) - 12} more, in the table")
        clear_locks_button(profile_id, "clear_locks")


def _lock_problem(pattern: str, profile: SensitivityProfile) -> str | None:
    try:
        matcher = re.compile(pattern)
    except re.error as error:
        return f"`{pattern}` is not a regular expression ({error}); correct it."
    if not any(matcher.search(layer.name) for layer in profile.catalogue.quantizable):
        return f"`{pattern}` matches no layer; the table shows their names."
    return None


def _readable(pattern: str) -> str:
    """A lock as it was typed."""
    return pattern.removeprefix(".*(?:").removesuffix(").*") if pattern.startswith(".*(?:") else pattern


def _restore(profile_id: str) -> None:
    """Take the settings of a stored plan that the link asks for (`?plan=ID`), once."""
    plan_id = st.query_params.get("plan")
    if not plan_id or st.session_state.get("restored_plan") == plan_id:
        return
    st.session_state["restored_plan"] = plan_id
    stored = common.store().plan(plan_id)
    if stored is None:
        st.info("The plan of this link is no longer stored; here is a new one from the same scores.")
        return
    wanted, budget = stored.request, stored.request.budget
    choices = {"device": wanted.hardware, "engine": wanted.engine, "floors": wanted.role_floors}
    state: dict[str, object] = {
        "plan_formats": list(wanted.formats),
        "context": min(budget.context, _LARGEST),
        "sequences": min(budget.sequences, _LARGEST),
        "kv_bits": budget.kv_bits,
    }
    if budget.weight_bits is not None:
        choices["limit"], state["bits"] = "bits", budget.weight_bits
    elif budget.vram_bytes is not None:
        choices["limit"], state["memory"] = "memory", budget.vram_bytes / wording.GIB
    elif budget.weight_bytes is not None:
        choices["limit"], state["weight_mib"] = "weights", budget.weight_bytes / wording.MIB
    else:
        choices["limit"], state["rise"] = "ppl", 100 * budget.max_ppl_increase
    for key, value in choices.items():
        common.set_choice(key, value)
    st.session_state.update(state)
    set_locks(profile_id, dict(wanted.locks))
