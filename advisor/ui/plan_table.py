"""The plan as a table that people filter, question and edit: a changed format becomes a lock."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from advisor.knowledge import find_engine, find_hardware, formats
from advisor.latency import Roofline, times
from advisor.memory import stored_bytes
from advisor.planner.groups import decision_groups
from advisor.planner.locks import resolve_locks
from advisor.types import Catalogue, Engine, Plan, Reason, SensitivityProfile
from advisor.ui import common, plan_wishes, wording

GAIN = "KL won by giving it back (estimated)"
RUNNER_UP, CHOICE, TIME = "Runner-up (ranking loss, size)", "Choice", "Time per step"
CLEAR, CLOSE = "clear", "close call"
_COLUMNS = ("Locked", "Layer", "Format", CHOICE, "KL", RUNNER_UP, "Size", TIME, GAIN, "Role", "Parameters", "Why")
_NUMBERS = {
    "Parameters": st.column_config.NumberColumn(format="localized"),
    "KL": st.column_config.NumberColumn(
        format="%.2e", help="Nats per token, in the format chosen, with every other layer as it is."
    ),
}


def show(profile_id: str, profile: SensitivityProfile, plan: Plan, won: Mapping[str, tuple[float, float]]) -> None:
    """Filters and the editable table.

    Args:
        won: layer -> KL that giving it back wins and its standard error, where the profile can tell.
    """
    frame = _filtered(plan_frame(profile, plan, won))
    shown = [name for name in _COLUMNS if name in frame]
    version = plan_wishes.version()
    key = f"plan_table_{version}"
    st.data_editor(
        frame,
        key=key,
        hide_index=True,
        height=420,
        disabled=[name for name in shown if name not in ("Locked", "Format")],
        column_order=shown,
        column_config={
            "Locked": st.column_config.CheckboxColumn(
                width="small",
                help="Tick to keep this format whatever the budget; untick to let the solver decide again.",
            ),
            "Format": st.column_config.SelectboxColumn(
                options=[wording.format_label(name) for name in (profile.catalogue.dtype, *profile.formats)],
                required=True,
                help="Choose another format: the layer is locked to it.",
            ),
            **_NUMBERS,
            "Size": st.column_config.TextColumn(
                help="As the engine stores it, scales included: with the layers that stay as they are, these add up to "
                "*Weights* above."
            ),
            CHOICE: st.column_config.TextColumn(
                width=105,
                help=f"*{CLOSE[0].upper()}{CLOSE[1:]}*: with bytes counted at what one is worth in the plan, the "
                "runner-up and the chosen format differ by less than 1.96 standard errors of their scores; measure on "
                "more text, or take the one you prefer.",
            ),
            RUNNER_UP: st.column_config.TextColumn(
                help="What the solver would take instead, and by how much the loss that ranks formats (nats per token) "
                "and size would change, for all layers that the engine fuses with this one; bytes as the limit counts "
                "them, which average bits do by the formats' own layout.",
            ),
            TIME: st.column_config.TextColumn(
                help="Of the step in which every sequence grows by one token, estimated by a roofline, and whether "
                "memory or compute takes it.",
            ),
            GAIN: st.column_config.NumberColumn(
                format="%.2e",
                help="Nats per token by which the plan's KL falls when this layer gets its own weights back and all "
                "others stay quantized, from the profile's estimates. Where it is far from *KL*, errors of several "
                "layers add up or cancel.",
            ),
            "Why": st.column_config.TextColumn(width="large"),
        },
        on_change=_take_edits,
        args=(key, profile_id, frame, profile.catalogue, find_engine(plan.request.engine)),
    )
    plan_wishes.buttons(profile_id, "below")


def show_stored(profile: SensitivityProfile, plan: Plan) -> None:
    """The same table of a plan that is not solved again."""
    frame = _filtered(plan_frame(profile, plan))
    shown = [name for name in _COLUMNS if name in frame]
    st.dataframe(frame, hide_index=True, height=420, column_order=shown, column_config=_NUMBERS)


def locked_layers(profile: SensitivityProfile, plan: Plan) -> set[str]:
    """The layers that locks and exclusions hold, partners in a fused group included."""
    engine = find_engine(plan.request.engine)
    return set(resolve_locks(profile.catalogue, engine, plan.request.locks, plan.request.excluded))


def plan_frame(
    profile: SensitivityProfile, plan: Plan, won: Mapping[str, tuple[float, float]] | None = None
) -> pd.DataFrame:
    """One row per layer that the plan decides, as the table shows it."""
    layers, known, locked = profile.catalogue.by_name(), formats(), locked_layers(profile, plan)
    engine = find_engine(plan.request.engine)
    scores = {(m.layer, m.format): m.kl for m in profile.measurements}
    took = _times(profile.catalogue, plan)
    rows = [
        {
            "Locked": name in locked,
            "Layer": name,
            "Format": wording.format_label(chosen),
            CHOICE: _choice(plan.reasons.get(name)),
            RUNNER_UP: _runner_up(plan.reasons.get(name)),
            TIME: took.get(name, "not known"),
            "Role": wording.role(layers[name].role),
            "Parameters": layers[name].parameters,
            "Size": wording.size(stored_bytes(engine, known[chosen], layers[name])),
            "KL": scores.get((name, chosen), 0.0 if not known[chosen].quantized else None),
            "Why": plan.reasons[name].text if name in plan.reasons else "",
        }
        for name, chosen in plan.assignments.items()
    ]
    frame = pd.DataFrame(rows)
    if won:
        frame[GAIN] = [won.get(name, (None, None))[0] for name in frame["Layer"]]
    return frame


def _choice(reason: Reason | None) -> str:
    if reason is None or reason.runner_up is None:
        return ""
    return CLOSE if reason.within_noise else CLEAR


def _runner_up(reason: Reason | None) -> str:
    if reason is None or reason.runner_up is None:
        return ""
    other = reason.runner_up
    change = f"{wording.signed(other.delta_loss)} nats, {wording.size_change(other.delta_bytes)}"
    return f"{wording.format_label(other.format)}: {change}"


def _times(catalogue: Catalogue, plan: Plan) -> dict[str, str]:
    """Layer -> time of a decoding step and what binds it; nothing where it cannot be told."""
    request = plan.request
    roofline = Roofline(catalogue, find_engine(request.engine), find_hardware(request.hardware), request.budget)
    if not roofline.tells("decode"):
        return {}
    found = times(roofline, plan.assignments, "decode")
    return {name: f"{wording.seconds(time.seconds)}, {time.bound}" for name, time in found.items()}


def _filtered(frame: pd.DataFrame) -> pd.DataFrame:
    search, role, fmt, choice = st.columns([2, 1, 1, 1])
    text = search.text_input(
        "Find layers",
        placeholder="down_proj, layers.29, expert",
        **common.setting("find", persist_state="session"),
        help="Shows layers whose name contains this.",
    )
    roles = role.multiselect(
        "Roles",
        list(dict.fromkeys(frame["Role"])),
        placeholder="all",
        **common.setting("in_roles", persist_state="session"),
        help="Shows layers of these roles.",
    )
    chosen = fmt.multiselect(
        "Formats",
        list(dict.fromkeys(frame["Format"])),
        placeholder="all",
        **common.setting("in_formats", persist_state="session"),
        help="Shows layers in these formats.",
    )
    noise = choice.multiselect(
        CHOICE,
        list(dict.fromkeys(filter(None, frame[CHOICE]))),
        placeholder="all",
        **common.setting("in_choice", persist_state="session"),
        help="Shows layers whose format is a clear choice, or a close call.",
    )
    if text:
        frame = frame[frame["Layer"].str.contains(text, regex=False)]
    if roles:
        frame = frame[frame["Role"].isin(roles)]
    if chosen:
        frame = frame[frame["Format"].isin(chosen)]
    if noise:
        frame = frame[frame[CHOICE].isin(noise)]
    return frame.reset_index(drop=True)


def _take_edits(key: str, profile_id: str, frame: pd.DataFrame, catalogue: Catalogue, engine: Engine) -> None:
    edits = st.session_state[key]["edited_rows"]
    held = plan_wishes.locks(profile_id), plan_wishes.excluded(profile_id)
    plan_wishes.set_locks(profile_id, *edited_locks(*held, edits, frame, catalogue, engine))


def edited_locks(
    held: Mapping[str, str],
    excluded: tuple[str, ...],
    edits: Mapping[int, Mapping[str, object]],
    frame: pd.DataFrame,
    catalogue: Catalogue,
    engine: Engine,
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Locks and exclusions after edits of the table: a chosen format or a tick locks a layer, no tick frees it.

    Args:
        edits: row of `frame` -> changed columns, as `st.data_editor` reports them.
    """
    locks, ids = dict(held), {fmt.label: name for name, fmt in formats().items()}
    for row, changed in edits.items():
        layer = frame.at[int(row), "Layer"]
        if not (changed.get("Format") or "Locked" in changed):
            continue
        locks, excluded = _freed(locks, excluded, layer, catalogue, engine)
        if changed.get("Format"):
            locks[layer] = ids[str(changed["Format"])]
        elif changed["Locked"]:
            locks[layer] = ids[frame.at[int(row), "Format"]]
    return locks, excluded


def _freed(
    locks: Mapping[str, str], excluded: tuple[str, ...], layer: str, catalogue: Catalogue, engine: Engine
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Both without the layer and its fused partners; a pattern that held them is spelled out for what else it holds."""
    groups = decision_groups(catalogue, engine, (one.name for one in catalogue.quantizable))
    together = next({one.name for one in group.layers} for group in groups if layer in {x.name for x in group.layers})

    def others(pattern: str) -> list[str]:
        held = {lock.layer for lock in resolve_locks(catalogue, engine, {}, (pattern,)).values()}
        return [pattern] if held.isdisjoint(together) else [one for one in held if one not in together]

    kept = {name: fmt for pattern, fmt in locks.items() for name in sorted(others(pattern))}
    return kept, tuple(dict.fromkeys(name for pattern in excluded for name in sorted(others(pattern))))
