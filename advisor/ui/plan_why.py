"""The plan as a map of blocks and modules, and why the layer that is clicked in it has its format."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from advisor import knowledge
from advisor.planner import prices
from advisor.planner.case import MEASUREMENT
from advisor.planner.prices import Step
from advisor.types import Alternative, Plan, Reason, SensitivityProfile
from advisor.ui import browser, charts, common, drawing, explain, landing, layer_card, plan_table, price_chart, wording

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
            _explain(profile, plan, layer)
            common.link(
                "sensitivity",
                "This layer's scores beside all others",
                ":material/arrow_back:",
                profile=profile.id,
                layer=layer,
                direction="alone",
                # Only the reader's own plan may answer there, and it may not be stored.
                plan=st.query_params.get("plan", layer_card.UNSAVED),
                at="card",
            )
    if here:
        landing.scroll_to("why_format")


def _explain(profile: SensitivityProfile, plan: Plan, layer: str) -> None:
    """Why this format, and of every other one what it would change or why it cannot be."""
    reason, chosen = plan.reasons[layer], plan.assignments.get(layer, profile.catalogue.dtype)
    label = wording.format_label(chosen)
    st.markdown(reason.text.replace(label, f"**{label}**", 1))
    steps = prices.steps_of(plan, profile.catalogue)
    _prices(plan, layer, steps)
    for verdict in (one for one in reason.verdicts if one.reason not in reason.text and one.rule != MEASUREMENT):
        icon = ":material/info:" if verdict.advice else ":material/check:" if verdict.allowed else ":material/block:"
        st.markdown(f"{icon} {verdict.reason}")
    unmeasured = [one for one in reason.alternatives if {verdict.rule for verdict in one.verdicts} == {MEASUREMENT}]
    rest = [one for one in reason.alternatives if one not in unmeasured]
    notes = []
    if layer in plan.assignments and rest:
        kls = _kls(profile, layer)
        own = {step.other: step for step in steps if step.layer == layer}
        rows = [{"Format": label, "Possible": "chosen", "KL": kls.get(chosen)}]
        rows += [_instead(other, reason, kls.get(other.format), own.get(other.format)) for other in rest]
        # Not a dataframe, whose cells would cut the sentences.
        st.table(pd.DataFrame(rows).fillna("–"), border="horizontal", hide_index=True)
        notes += [_scope(plan, layer, own), explain.ranking(profile)]
        notes.append(explain.counted(plan, profile.catalogue.by_name()[layer]))
    if unmeasured:
        notes.append(f"Not measured of this layer: {wording.format_labels(one.format for one in unmeasured)}.")
    if notes:
        st.caption(" ".join(filter(None, notes)))


def _scope(plan: Plan, layer: str, own: dict[str, Step]) -> str:
    """Whether changes in the table are of more than this layer."""
    alone = {one.format: one.delta_bytes for one in plan.reasons[layer].alternatives}
    if all(step.delta_bytes == alone[name] for name, step in own.items()):
        return ""
    return "KL is of this layer alone; changes are of all layers that the engine fuses with it, as in the reason."


def _prices(plan: Plan, layer: str, steps: list[Step]) -> None:
    """The prices that the reason speaks of; nothing where bytes are not what decides."""
    worth, steps = plan.exchange_rate, [step for step in steps if step.delta_bytes]
    own = [step for step in steps if step.layer == layer]
    if plan.request.budget.fastest or worth <= 0 or not own:
        return
    said = {wording.format_label(step.other): step.price for step in own} | {"what it is worth in this plan": worth}
    alt = "; ".join(f"{name}: {wording.number(price * wording.MIB, 2)}" for name, price in said.items())
    drawing.chart(price_chart.prices_of(layer, steps, worth, browser.dark()), alt=f"Nats per MiB. {alt}.")
    st.caption(
        "The line is what a MiB wins where the plan spends its last: right of it more bits are worth their bytes, left "
        "of it they are not, by each layer's own score. Triangles are this layer; ticks are all others, in the colour "
        "of their format; what is next to nothing, or less, stands at the left edge."
    )


def _kls(profile: SensitivityProfile, layer: str) -> dict[str, str]:
    """Format -> what was measured of the layer in it, each in one line."""
    scores = [score for score in profile.measurements if score.layer == layer]
    said = {score.format: wording.with_error(score.kl, score.kl_stderr) for score in scores}
    one_line = {name: kl.replace(" ", "\u00a0").replace("-", "−") for name, kl in said.items()}
    return {profile.catalogue.dtype: "0"} | one_line


def _instead(other: Alternative, reason: Reason, kl: str | None, step: Step | None) -> dict[str, str | None]:
    bans = [verdict for verdict in other.verdicts if not verdict.allowed]
    # That it was not measured either is no news of what can never be.
    said = [verdict for verdict in bans if verdict.rule != MEASUREMENT] or other.verdicts
    second = reason.runner_up is not None and reason.runner_up.format == other.format
    return {
        "Format": wording.format_label(other.format),
        "Possible": "no" if bans else "yes, runner-up" if second else "yes",
        "KL": kl or "not measured",
        "Change of ranking loss": f"{wording.signed(step.delta_loss)} nats" if step else None,
        "Change of size": wording.size_change(step.delta_bytes) if step else None,
        "Why not, and what rules say": "; ".join(verdict.reason for verdict in said) or "–",
    }
