"""The plan as a map of blocks and modules, and why the layer that is clicked in it has its format."""

from __future__ import annotations

import streamlit as st

from advisor import knowledge
from advisor.planner.case import MEASUREMENT
from advisor.types import Alternative, Plan, Reason, SensitivityProfile
from advisor.ui import browser, charts, common, drawing, explain, landing, layer_card, plan_table, wording

WHY = "why"  # the layer that is asked about, in the link
_NONE = ""


def show(profile: SensitivityProfile, plan: Plan) -> None:
    """The map, and below it the reason of the layer that was clicked or chosen."""
    formats = knowledge.formats()
    locked = plan_table.locked_layers(profile, plan)
    counts = {name: list(plan.assignments.values()).count(name) for name in formats}
    chosen = st.query_params.get(WHY) or st.session_state.get(f"last_{WHY}") or _NONE
    drawn, clicks = layer_card.clickable("plan_map", chosen, WHY)
    drawing.chart(
        charts.plan_map(profile.catalogue, plan.assignments, formats, locked, browser.dark(), drawn),
        alt="The plan by block and module, each cell with the name of its format and in its colour.",
        **clicks,
    )
    said = f"{wording.layers_by_format(counts)}."
    if undecided := [layer.name for layer in profile.catalogue.quantizable if layer.name not in plan.assignments]:
        engine = knowledge.find_engine(plan.request.engine).label
        said += f" Hollow: {wording.plural(len(undecided), 'layer')}, which {engine} leaves unquantized."
    st.caption(said)
    _question(profile, plan)


def _question(profile: SensitivityProfile, plan: Plan) -> None:
    here = landing.asked_for(WHY)
    labels = wording.layer_labels(profile.catalogue)
    options = {_NONE: "click a cell of the map, or choose a layer"}
    options |= {name: labels.get(name, name) for name in plan.reasons}
    with st.container(key="why_format"):
        layer = common.choose(
            WHY, "Why this format?", options, "The reason, the rules that spoke, and what else was possible."
        )
        if layer in plan.reasons:
            _explain(profile, plan.assignments.get(layer, profile.catalogue.dtype), plan.reasons[layer])
            common.link(
                "sensitivity",
                "What was measured of this layer",
                ":material/arrow_back:",
                profile=profile.id,
                layer=layer,
                at="card",
            )
    if here:
        landing.scroll_to("why_format")


def _explain(profile: SensitivityProfile, chosen: str, reason: Reason) -> None:
    """Why this format, and of every other one what it would change or why it cannot be."""
    label = wording.format_label(chosen)
    st.markdown(reason.text.replace(label, f"**{label}**", 1))
    if reason.runner_up is not None:  # else no nats are told
        st.caption(explain.ranking(profile))
        if reason.within_noise:
            st.markdown(
                f":material/balance: Within noise: with bytes counted at what they win elsewhere, {label} and "
                f"{wording.format_label(reason.runner_up.format)} differ by less than the error of the scores."
            )
    for verdict in (one for one in reason.verdicts if one.reason not in reason.text and one.rule != MEASUREMENT):
        icon = ":material/info:" if verdict.advice else ":material/check:" if verdict.allowed else ":material/block:"
        st.markdown(f"{icon} {verdict.reason}")
    unmeasured = [one for one in reason.alternatives if {verdict.rule for verdict in one.verdicts} == {MEASUREMENT}]
    if rest := [one for one in reason.alternatives if one not in unmeasured]:
        # Not a dataframe, whose cells would cut the sentences.
        st.table([_instead(other, reason) for other in rest], border="horizontal", hide_index=True)
        st.caption("The table counts this layer alone.")
    if unmeasured:
        st.caption(f"Not measured of this layer: {wording.format_labels(one.format for one in unmeasured)}.")


def _instead(other: Alternative, reason: Reason) -> dict[str, str]:
    banned = any(not verdict.allowed for verdict in other.verdicts)
    second = reason.runner_up is not None and reason.runner_up.format == other.format
    return {
        "Instead": wording.format_label(other.format),
        "Possible": "no" if banned else "runner-up" if second else "yes",
        "Change of ranking loss": plan_table.change_of_loss(other),
        "Change of size": wording.size_change(other.delta_bytes),
        "Why not, and what rules say": "; ".join(verdict.reason for verdict in other.verdicts) or "–",
    }
