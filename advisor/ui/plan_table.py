"""The plan as a table that people filter, question and edit: a changed format becomes a lock."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd
import streamlit as st

from advisor.knowledge import find_engine, formats
from advisor.locks import resolve_locks
from advisor.memory import stored_bytes
from advisor.types import Plan, SensitivityProfile
from advisor.ui import plan_controls, wording

GAIN = "KL won by giving it back (estimated)"
_COLUMNS = ("Locked", "Layer", "Format", "Role", "Parameters", "Size", "KL", GAIN, "Why")


def show(profile_id: str, profile: SensitivityProfile, plan: Plan, won: Mapping[str, tuple[float, float]]) -> None:
    """Filters, the editable table, and every reason of one layer.

    Args:
        won: layer -> KL that giving it back wins and its standard error, where the profile can tell.
    """
    frame = _filtered(plan_frame(profile, plan, won))
    shown = [name for name in _COLUMNS if name in frame]
    version = st.session_state.get("locks_version", 0)
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
                options=[profile.catalogue.dtype, *profile.formats],
                required=True,
                help="Choose another format: the layer is locked to it.",
            ),
            "Parameters": st.column_config.NumberColumn(format="localized"),
            "Size": st.column_config.TextColumn(
                help="As the engine stores it, scales included: with the layers that stay as they are, these add up to "
                "*Weights* above."
            ),
            "KL": st.column_config.NumberColumn(
                format="%.2e", help="Nats per token, in the format chosen, with every other layer as it is."
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
        args=(key, profile_id, frame, tuple(plan.assignments)),
    )
    plan_controls.clear_locks_button(profile_id, "clear_locks_below")
    _question(profile, plan)


def locked_layers(profile: SensitivityProfile, plan: Plan) -> set[str]:
    """The layers that the plan's locks hold, partners in a fused group included."""
    return set(resolve_locks(profile.catalogue, find_engine(plan.request.engine), plan.request.locks))


def plan_frame(
    profile: SensitivityProfile, plan: Plan, won: Mapping[str, tuple[float, float]] | None = None
) -> pd.DataFrame:
    """One row per layer that the plan decides, as the table shows it."""
    layers, known, locked = profile.catalogue.by_name(), formats(), locked_layers(profile, plan)
    engine = find_engine(plan.request.engine)
    scores = {(m.layer, m.format): m.kl for m in profile.measurements}
    rows = [
        {
            "Locked": name in locked,
            "Layer": name,
            "Format": chosen,
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


def _filtered(frame: pd.DataFrame) -> pd.DataFrame:
    search, role, fmt = st.columns([2, 1, 1])
    text = search.text_input(
        "Find layers",
        placeholder="down_proj, layers.29, expert",
        key="table_find",
        help="Shows layers whose name contains this.",
    )
    roles = role.multiselect(
        "Roles",
        list(dict.fromkeys(frame["Role"])),
        placeholder="all",
        key="table_roles",
        help="Shows layers of these roles.",
    )
    chosen = fmt.multiselect(
        "Formats",
        list(dict.fromkeys(frame["Format"])),
        placeholder="all",
        key="table_formats",
        help="Shows layers in these formats.",
    )
    if text:
        frame = frame[frame["Layer"].str.contains(text, regex=False)]
    if roles:
        frame = frame[frame["Role"].isin(roles)]
    if chosen:
        frame = frame[frame["Format"].isin(chosen)]
    return frame.reset_index(drop=True)


def _take_edits(key: str, profile_id: str, frame: pd.DataFrame, layers: tuple[str, ...]) -> None:
    edits = st.session_state[key]["edited_rows"]
    plan_controls.set_locks(profile_id, edited_locks(plan_controls.locks(profile_id), edits, frame, layers))


def edited_locks(
    held: dict[str, str], edits: dict[int, dict[str, object]], frame: pd.DataFrame, layers: tuple[str, ...]
) -> dict[str, str]:
    """The locks after edits of the table: a chosen format or a tick locks a layer, taking the tick away frees it.

    Args:
        edits: row of `frame` -> changed columns, as `st.data_editor` reports them.
        layers: every layer that the plan decides, shown in the table or not.
    """
    locks = dict(held)
    for row, changed in edits.items():
        layer = frame.at[int(row), "Layer"]
        if changed.get("Format"):
            locks[layer] = str(changed["Format"])
        elif changed.get("Locked"):
            locks[layer] = frame.at[int(row), "Format"]
        elif "Locked" in changed:
            locks = _unlocked(locks, layer, layers)
    return locks


def _unlocked(held: dict[str, str], layer: str, layers: tuple[str, ...]) -> dict[str, str]:
    """The locks without `layer`; a pattern that held it is spelled out for the other layers it holds."""
    kept: dict[str, str] = {}
    for pattern, fmt in held.items():
        if pattern == layer:
            continue
        if re.fullmatch(pattern, layer):
            kept |= {name: fmt for name in layers if name != layer and re.fullmatch(pattern, name)}
        else:
            kept[pattern] = fmt
    return kept


def _question(profile: SensitivityProfile, plan: Plan) -> None:
    labels = wording.layer_labels(profile.catalogue)
    layer = st.selectbox(
        "Why this format?",
        list(plan.assignments),
        None,
        format_func=lambda name: labels.get(name, name),
        placeholder="choose a layer",
        key="why",
        help="The reason, the rules that spoke, and what else was possible.",
    )
    if layer is None or layer not in plan.reasons:
        return
    reason = plan.reasons[layer]
    st.markdown(f"**{plan.assignments[layer]}**: {reason.text}")
    for verdict in reason.verdicts:
        icon = ":material/info:" if verdict.advice else ":material/check:" if verdict.allowed else ":material/block:"
        st.markdown(f"{icon} {verdict.reason}")
    if reason.alternatives:
        st.dataframe(
            [
                {
                    "Instead": other.format,
                    "Change of predicted loss (nats)": (
                        "not measured" if other.delta_loss is None else wording.number(other.delta_loss, 2)
                    ),
                    "Change of size": ("+" if other.delta_bytes >= 0 else "−") + wording.size(abs(other.delta_bytes)),
                    "Rules": "; ".join(v.reason for v in other.verdicts) or "allowed",
                }
                for other in reason.alternatives
            ],
            hide_index=True,
        )
