"""One layer of the sensitivity page: its numbers in every format, what the guide expects, what a plan made of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd
import streamlit as st

from advisor import estimates, knowledge
from advisor.formats.table import packed_bytes
from advisor.types import Layer, Measurement, Plan, ProfileSummary, SensitivityProfile
from advisor.ui import answers, at_hand, chart_parts, common, explain, frames, landing, plan_compare, wording

KEY = "layer"
UNSAVED = "unsaved"  # as the plan of a link: the one of the plan page
_BEYOND = "Δ NLL − KL"


def choose(profile: SensitivityProfile, frame: pd.DataFrame, measure: frames.Measure) -> str:
    """The layer in the link, the one of the largest score where it names none.

    The charts above and below need it before `show` draws its field, which takes it from here.
    """
    names = {layer.name for layer in profile.catalogue.quantizable}
    wanted = st.query_params.get(KEY) or st.session_state.get(f"last_{KEY}")
    return wanted if wanted in names else str(frame.loc[frame[measure.key].idxmax(), "layer"])


class _Drawn(NamedTuple):
    """A chart in the browser: how often it was drawn anew, the layer it was drawn with, and the one it frames now."""

    times: int
    layer: str
    framed: str | None


def clickable(chart: str, layer: str, choice: str = KEY) -> tuple[str, dict[str, Any]]:
    """The layer to draw a chart with, and what `st.altair_chart` takes so that a click in it chooses another one.

    The browser frames by itself what is clicked, so the chart stays as it was drawn: to draw it anew would take longer
    than all the rest. It is drawn anew, under another key, where the layer was chosen elsewhere.

    Args:
        choice: what is chosen, as `common.choose` knows it.
    """
    drawn = st.session_state.get(f"drawn_{chart}", _Drawn(0, layer, layer))
    if drawn.framed != layer or f"{chart}_{drawn.times}" not in st.session_state:
        drawn = _Drawn(drawn.times + 1, layer, layer)
        st.session_state[f"drawn_{chart}"] = drawn
    key = f"{chart}_{drawn.times}"
    return drawn.layer, {"key": key, "on_select": lambda: take(chart, key, choice), "selection_mode": chart_parts.PICK}


def take(chart: str, key: str, choice: str = KEY) -> None:
    """Choose the layer that was clicked in the chart drawn under `key`; a click beside all layers changes nothing."""
    picked = st.session_state[key]["selection"].get(chart_parts.PICK, [])
    layer = picked[0].get(chart_parts.PICKED) if picked else None
    st.session_state[f"drawn_{chart}"] = st.session_state[f"drawn_{chart}"]._replace(framed=layer)
    if layer:
        common.set_choice(choice, layer)


def show(
    summary: ProfileSummary,
    profile: SensitivityProfile,
    frame: pd.DataFrame,
    chosen: str,
    plan_id: str | None,
) -> None:
    """The field that chooses a layer, and the card of it.

    Args:
        frame: the scores of `frames.profile_frame`, all formats.
        plan_id: the plan that the page shows already; None to choose one here.
    """
    layer = profile.catalogue.by_name()[chosen]
    here = landing.asked_for("card")
    with st.container(border=True, key="layer_card"):
        left, right = st.columns(2)
        with left:
            common.choose(
                KEY,
                "Layer",
                wording.layer_labels(profile.catalogue),
                "Click a cell, a bar or a point, or choose here (type to search): what is known of it stands below.",
                chosen,
            )
        with right:
            plan_id = plan_id or _choose_plan(summary)
        plan = at_hand.plan(summary, profile) if plan_id == UNSAVED else plan_compare.stored_plan(plan_id or "")
        st.markdown(f"`{layer.name}` · {_what(layer)}")
        rows = score_rows(profile, frame, chosen)
        with st.container(key="numbers_layer"):
            st.table(
                rows, border="horizontal", hide_index=True, alt=f"Scores and sizes of {layer.name} in every format."
            )
        ranked = " Of Δ NLL − KL, formats are ranked by what stands out of its error." if _BEYOND in rows else ""
        st.caption(f"KL and Δ NLL in nats per token; ± is one standard error.{ranked}")
        if not (frame["layer"] == chosen).any():
            st.caption("This layer is not measured yet: its scores appear here as soon as they are stored.")
        _beside_its_role(profile, frame, layer)
        _expected(layer)
        if profile.around:
            said = wording.format_label(profile.around.get(chosen, profile.catalogue.dtype))
            st.markdown(f":material/balance: In the plan that these scores are around: **{said}**.")
        elif plan is not None:
            _planned(summary, profile, chosen, plan, plan_id)
        else:
            st.markdown(":material/balance: No plan is chosen: save one, and its choice is told here.")
    if here:
        landing.scroll_to("layer_card")


def _choose_plan(summary: ProfileSummary) -> str | None:
    """One of the plans made from these scores; None where there are none."""
    plans = {plan.id: wording.plan_label(plan) for plan in common.store().plans(summary.id)}
    if at_hand.there_is(summary.id):
        plans = {UNSAVED: "the plan that you are making"} | plans
    elif st.query_params.get("plan") == UNSAVED:
        plans = {UNSAVED: "none: the link's was not saved"} | plans
    if not plans:
        return None
    said = "The plan of the plan page, and saved plans made from these scores."
    return common.choose("plan", "In plan", plans, said, missing=common.NOT_STORED)


def score_rows(profile: SensitivityProfile, frame: pd.DataFrame, layer: str) -> pd.DataFrame:
    """One row per format, the original one first: scores with their errors, size, and the rank among all layers."""
    measures = frames.MEASURES_WON if profile.around else frames.MEASURES
    dtype = profile.catalogue.dtype
    original = packed_bytes(knowledge.find_format(dtype), profile.catalogue.by_name()[layer])
    ranks = frame.groupby("format")["kl"].rank(ascending=False, method="min") if len(frame) else {}
    counts = frame["format"].value_counts() if len(frame) else {}
    mixed = bool(len(frame)) and frame["how"].nunique() > 1
    # Where scores have projections, plans are ranked by the part of a change of loss beyond KL that stands out.
    ranked_by = {m.format: _beyond(m) for m in profile.measurements if m.layer == layer and m.projections}
    rows = [
        {"Format": f"{wording.format_label(dtype)} (original)", "Size": wording.size(original), "Saved": "–"}
        | {row.label: "0" for key, row in measures.items() if key != "kl_per_mib"}
        | {_BEYOND: "0"}
    ]
    for index, score in frame[frame["layer"] == layer].iterrows():
        fmt = score["format"]
        rows.append(
            {
                "Format": wording.format_label(fmt),
                **{measure.label: _said(score, measure) for measure in measures.values()},
                _BEYOND: ranked_by.get(fmt),
                "Size": score["size"],
                "Saved": _saved(score["saved"], original),
                "Rank by KL": f"{ranks[index]:.0f} of {counts[fmt]}",
                **({"How": score["how"]} if mixed else {}),
            }
        )
    order = ["Format", *(measure.label for measure in measures.values()), *([_BEYOND] if ranked_by else [])]
    order += ["Size", "Saved", "Rank by KL", *(["How"] if mixed else [])]
    return pd.DataFrame(rows).reindex(columns=order).fillna("–")


def _said(score: pd.Series, measure: frames.Measure) -> str:
    value, stderr = score[measure.key], score[f"{measure.key}_stderr"]
    if pd.isna(value):
        return "–"
    said = _signed(value, stderr) if measure.signed else wording.with_error(value, stderr)
    return f"{said} %" if measure.key == "delta_ppl_pct" else said


def _signed(value: float, stderr: float) -> str:
    """With its sign, which is half of what it says."""
    said = wording.with_error(value, stderr)
    return said.replace("-", "−", 1) if value < 0 else f"+{said}"


def _beyond(score: Measurement) -> str:
    """By how much the loss on the text itself changes more than KL, with its error over the sequences."""
    return _signed(score.delta_nll - score.kl, estimates.first_order_stderr(score))


def _saved(count: float, original: int) -> str:
    return f"{wording.size(int(count))} ({100 * count / original:.0f} %)" if count > 0 else "–"


def _what(layer: Layer) -> str:
    where = f"block {layer.block}" if layer.block is not None else "outside of the blocks"
    shape = " × ".join(f"{size:,}" for size in layer.shape)
    return f"{wording.role(layer.role)}, {where}, {layer.parameters:,} parameters ({shape})"


def _beside_its_role(profile: SensitivityProfile, frame: pd.DataFrame, layer: Layer) -> None:
    """How it stands among the layers of its role in the format that costs it most."""
    alike = frame[frame["role"] == wording.role(layer.role)] if len(frame) else frame
    own = alike[alike["layer"] == layer.name] if len(alike) else alike
    if not len(own) or alike["layer"].nunique() < 2:
        return
    worst = own.loc[own["kl"].idxmax()]
    alike = alike[alike["format"] == worst["format"]]
    mean, place = alike["kl"].mean(), int((alike["kl"] > worst["kl"]).sum()) + 1
    if mean <= 0:
        return
    verb = "Giving it back wins" if profile.around else f"In {wording.format_label(worst['format'])} its KL is"
    st.markdown(
        f":material/leaderboard: {verb} **{wording.number(worst['kl'] / mean, 2)} times** the mean of its role, "
        f"{worst['role']}: place {place} of {len(alike)}."
    )


def _expected(layer: Layer) -> None:
    advice = knowledge.roles()[layer.role]
    st.markdown(
        f":material/menu_book: Expected of this role: **{advice.sensitivity}** sensitivity, at least "
        f"{advice.minimum_bits} bits. {advice.advice} *({advice.source})*"
    )
    common.guide_link("roles")


def _planned(summary: ProfileSummary, profile: SensitivityProfile, layer: str, plan: Plan, plan_id: str) -> None:
    """The format and the reason in a plan, what giving the layer back would win there, and the way to it."""
    label = wording.format_label(plan.assignments.get(layer, profile.catalogue.dtype))
    # A reason names the format itself, of layers that the plan leaves alone too.
    said = plan.reasons[layer].text if layer in plan.reasons else f"{label}, without a stored reason."
    st.markdown(f":material/balance: In this plan: {said.replace(label, f'**{label}**', 1)}")
    if layer in plan.reasons and plan.reasons[layer].runner_up is not None:  # else no nats are told
        st.caption(explain.ranking(profile))
    _given_back(summary, profile, plan, layer)
    common.link(
        "plan",
        "The rules and what else was possible, on the plan page",
        ":material/arrow_forward:",
        profile=summary.id,
        why=layer,
        at="why",
        **({} if plan_id == UNSAVED else {"plan": plan_id}),
    )


def _given_back(summary: ProfileSummary, profile: SensitivityProfile, plan: Plan, layer: str) -> None:
    won = answers.gains(summary, profile, plan.assignments)
    if layer in won:
        value, stderr = won[layer]
        chance = ", which may be chance" if abs(value) < 2 * stderr else ""
        does = "lower" if value >= 0 else "raise"
        st.markdown(
            f":material/undo: All but this one: with the rest of the plan in place, getting its own weights back would "
            f"{does} the plan's KL by {wording.with_error(abs(value), stderr)} nats per token{chance} (estimated)."
        )
