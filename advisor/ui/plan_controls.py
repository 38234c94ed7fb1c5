"""The left side of the plan page: device, budget, formats and locks -> a PlanRequest."""

from __future__ import annotations

import re

import streamlit as st

from advisor import knowledge
from advisor.types import Budget, PlanRequest, SensitivityProfile
from advisor.ui import common, wording

LIMITS = {
    "bits": "Average bits",
    "memory": "Device memory",
    "weights": "Size of the weights",
    "ppl": "Rise of perplexity",
}
FLOORS = {"off": "Ignore", "advise": "Advise", "enforce": "Enforce"}


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
    budget = _budget(profile, knowledge.find_hardware(device).memory_bytes)
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


def _budget(profile: SensitivityProfile, device_bytes: int) -> Budget:
    kind = common.choose(
        "limit",
        "What limits",
        LIMITS,
        "The one limit that the plan must respect. The first three look "
        "for the least loss within it, the last for the least memory.",
        widget=st.radio,
    )
    limit = _limit(kind, profile, device_bytes)
    with st.expander("Load: context, sequences, KV cache", expanded=kind == "memory"):
        context = st.number_input(
            "Context (tokens)",
            1,
            1_048_576,
            min(4096, profile.catalogue.max_context),
            step=512,
            help="Tokens of one sequence, prompt and answer together.",
            **common.setting("context"),
        )
        sequences = st.number_input(
            "Sequences at once", 1, 4096, 1, help="How many sequences share the device.", **common.setting("sequences")
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


def _limit(kind: str, profile: SensitivityProfile, device_bytes: int) -> dict[str, float | int]:
    if kind == "bits":
        bits = st.slider(
            "Average bits per weight",
            2.0,
            16.0,
            5.0,
            0.05,
            help="Over the layers that the plan decides, scales and zero points included.",
            **common.setting("bits"),
        )
        return {"weight_bits": bits}
    if kind == "memory":
        gib = st.number_input(
            "Memory (GiB)",
            0.05,
            None,
            None,
            step=0.5,
            format="%.2f",
            placeholder=f"{device_bytes / wording.GIB:.1f} (the whole device)",
            help="1 GiB is 2^30 bytes. Empty means all of the device. The engine's usable share of it "
            "holds weights, KV cache, activations and overhead.",
            **common.setting("memory"),
        )
        return {"vram_bytes": int(gib * wording.GIB) if gib else device_bytes}
    if kind == "weights":
        original = 2 * profile.catalogue.parameters / wording.GIB
        gib = st.number_input(
            "Weights (GiB)",
            0.001,
            None,
            round(0.6 * original, 3),
            step=round(original / 50, 3) or 0.001,
            format="%.3f",
            help="1 GiB is 2^30 bytes. All weights of the model as the engine stores "
            "them, those that the plan does not decide included.",
            key="weight_gib",
            persist_state="session",
        )
        return {"weight_bytes": int(gib * wording.GIB)}
    rise = st.slider(
        "Largest rise of perplexity (%)",
        0.0,
        30.0,
        5.0,
        0.5,
        help="The plan with the least memory whose predicted perplexity rises no more than this.",
        **common.setting("rise"),
    )
    return {"max_ppl_increase": rise / 100}


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
        "context": budget.context,
        "sequences": budget.sequences,
        "kv_bits": budget.kv_bits,
    }
    if budget.weight_bits is not None:
        choices["limit"], state["bits"] = "bits", budget.weight_bits
    elif budget.vram_bytes is not None:
        choices["limit"], state["memory"] = "memory", budget.vram_bytes / wording.GIB
    elif budget.weight_bytes is not None:
        choices["limit"], state["weight_gib"] = "weights", budget.weight_bytes / wording.GIB
    else:
        choices["limit"], state["rise"] = "ppl", 100 * budget.max_ppl_increase
    for key, value in choices.items():
        common.set_choice(key, value)
    st.session_state.update(state)
    set_locks(profile_id, dict(wanted.locks))
