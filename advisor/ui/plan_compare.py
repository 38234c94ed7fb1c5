"""Two plans side by side: the plan of the page against simple plans, stored plans of the same model, and a file."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from advisor import documents, pipeline
from advisor.errors import AdvisorError
from advisor.planner import comparison
from advisor.planner.comparison import Comparison
from advisor.types import Plan, ProfileSummary, SensitivityProfile, relative_change
from advisor.ui import answers, browser, common, comparison_charts, drawing, plan_wishes, verdict, wording

_SIMPLE = "simple "  # begins the ids of simple plans among those of stored ones


# -------------------------------------------------------------------------------------------- simple


def simple(summary: ProfileSummary, profile: SensitivityProfile, plan: Plan) -> None:
    """What the plans that need no advisor are predicted to lose, beside this one."""
    others = answers.simple_plans(summary, profile, plan.request, profile.formats)
    found = comparison.compare_all(plan, others, profile)
    sentence = verdict.against_simple(found)
    if sentence is not None:
        say(sentence)
    rows = [_simple_row("this plan", plan, "–")]
    rows += [_simple_row(name, one.other, _more(one)) for name, one in found.items()]
    st.dataframe(rows, hide_index=True)
    st.caption(
        "Uniform: every layer that this plan decides in one format. Role rule: the guide's 4 bits for MLPs and "
        "experts, 8 for all else. Guide's strategy: 4 bits everywhere and, where that is predicted to cost too much, 8 "
        "for embeddings, LM head and attention outputs. They ignore the budget, the locks and the choice of formats: "
        "what one gets without an advisor."
    )


def _more(found: Comparison) -> str:
    larger = found.other.memory.model_weights_bytes > found.one.memory.model_weights_bytes
    return f"{wording.signed(found.kl.value)} ± {wording.number(found.kl.stderr, 2)}{' (larger)' if larger else ''}"


def _simple_row(name: str, other: Plan, more: str) -> dict[str, str]:
    predicted = other.predicted
    return {
        "Plan": wording.labelled(name),
        "KL more than this plan": more,
        "Weights": wording.size(other.memory.model_weights_bytes),
        "Average bits": f"{other.memory.decided_bits:.2f}",
        "Predicted perplexity": wording.number(predicted.perplexity, 4),
        "Interval": f"{wording.number(predicted.perplexity_low, 4)} – {wording.number(predicted.perplexity_high, 4)}",
        "Change": wording.percent(predicted.delta_ppl_pct),
        "Predicted KL": wording.with_error(predicted.kl, predicted.kl_stderr),
    }


# ------------------------------------------------------------------------------------------- another


def show(summary: ProfileSummary, profile: SensitivityProfile, plan: Plan, plan_id: str = "") -> None:
    """Choose another plan and see what differs.

    Args:
        plan_id: of this plan where it is a stored one, which is then not offered.
    """
    simple_plans = answers.simple_plans(summary, profile, plan.request, profile.formats)
    labels = {f"{_SIMPLE}{name}": wording.labelled(name) for name in simple_plans}
    labels |= {key: label for key, label in _stored_plans(summary).items() if key != plan_id}
    chosen = _choice(labels)
    if chosen is None:
        st.caption("A plan from a file is checked and compared under *Open a plan file*.")
        return
    known_simple = chosen.startswith(_SIMPLE)
    other = simple_plans[chosen.removeprefix(_SIMPLE)] if known_simple else stored_plan(chosen)
    if other is None:
        st.info("That plan was deleted meanwhile; choose another.")
        return
    draw(profile, plan, other, labels[chosen] if known_simple else "the other plan")


def _stored_plans(summary: ProfileSummary) -> dict[str, str]:
    """Id -> label of the stored plans for the same weights, newest first."""
    same_model = {profile.id for profile in common.store().profiles() if profile.fingerprint == summary.fingerprint}
    return {p.id: wording.plan_label(p) for p in common.store().plans() if p.profile_id in same_model}


def _choice(labels: Mapping[str, str]) -> str | None:
    """The plan that the link has as `?against=`, or the one chosen instead; at first none."""
    held = st.query_params.get("against")
    st.session_state["choose_against"] = held if held in labels else None
    return st.selectbox(
        "Compare with",
        list(labels),
        format_func=lambda key: labels.get(key, key),
        key="choose_against",
        placeholder="choose a plan",
        on_change=_remember,
        help="Simple plans for this device and engine, and the stored plans of this model, newest first.",
    )


def _remember() -> None:
    chosen = st.session_state["choose_against"]
    if chosen is None:
        st.query_params.pop("against", None)
    else:
        st.query_params["against"] = chosen


def stored_plan(plan_id: str) -> Plan | None:
    """A stored plan, read once: plans are never changed."""
    return _read_plan(common.store().url, plan_id)


@st.cache_resource(show_spinner=False, max_entries=32)
def _read_plan(url: str, plan_id: str) -> Plan | None:
    return common.store().plan(plan_id)


# ---------------------------------------------------------------------------------------------- file


def upload(summary: ProfileSummary, profile: SensitivityProfile, plan: Plan | None) -> None:
    """A plan from a file: checked, compared with the plan of the page if there is one, locked or applied."""
    with st.expander("Open a plan file"):
        file = st.file_uploader(
            "Plan (JSON)",
            type="json",
            max_upload_size=32,
            help="A plan.json that this page or the command line wrote, "
            "edited by hand or not. It is checked before anything is done with it.",
        )
        if file is None:
            return
        try:
            given = documents.check_plan_document(file.getvalue().decode("utf-8", errors="replace"))
            pipeline.check_plan_fits(given, profile.catalogue)
        except AdvisorError as refusal:
            common.refuse(refusal)
            return
        st.success(f"A plan for {given.model.name} that fits it: {wording.plural(len(given.assignments), 'layer')}.")
        lock, apply = st.columns(2)
        if lock.button("Lock its formats here", width="stretch", help="Every layer gets the file's format as a lock."):
            plan_wishes.set_locks(summary.id, dict(given.assignments))
            st.query_params.pop("plan", None)  # what is planned now is no longer the plan of this link
            st.rerun()
        if apply.button("Apply and evaluate this file", width="stretch", help="Saves it as it is and goes on."):
            common.go("apply", plan=common.store().save_plan(given, summary.id, file.name))
        try:
            restated = comparison.restated(given, profile)
        except AdvisorError as refusal:
            st.info(f"It cannot be compared. {refusal}")
            return
        if plan is not None:
            draw(profile, plan, restated, file.name)
            if restated.memory != given.memory or restated.predicted != given.predicted:
                st.caption("Size and loss are those of its formats by this profile; the file states others.")


# ------------------------------------------------------------------------------------- side by side


def draw(profile: SensitivityProfile, plan: Plan, other: Plan, name: str) -> None:
    """The differences of two plans: a sentence, the headline numbers, a map, and every layer that differs."""
    found = comparison.compare(plan, other, profile)
    say(verdict.of_comparison(found, len(profile.catalogue.quantizable), name))
    st.dataframe(headline_rows(found), hide_index=True)
    paired = "is of the same sequences, subtracted one by one"
    apart = "takes both as independent, so it is rather too large"
    notes = [f"± is one standard error; that of the difference {paired if found.kl.paired else apart}."]
    if not found.same_deployment:
        notes.insert(0, "The plans are for different devices, engines or loads: memory and speed are each for its own.")
    st.caption(" ".join(notes))
    if found.same_formats:
        return
    drawing.chart(
        comparison_charts.difference_map(profile.catalogue, found, browser.dark()),
        alt=f"The {wording.plural(len(found.layers), 'layer')} that differ, by block and module.",
    )
    st.dataframe(layer_frame(profile, found), hide_index=True, height=min(420, 38 + 35 * len(found.layers)))


def headline_rows(found: Comparison) -> list[dict[str, str]]:
    """One row per quantity: in this plan, in the other, and the difference."""
    one, other = found.one, found.other
    sizes = [
        (label, [wording.size(v) for v in values], wording.size_change(values[1] - values[0]))
        for label, values in (
            ("Weights", [p.memory.model_weights_bytes for p in (one, other)]),
            ("Memory in use", [p.memory.total_bytes for p in (one, other)]),
        )
    ]
    bits = [round(p.memory.decided_bits, 2) for p in (one, other)]
    kl = [wording.with_error(p.predicted.kl, p.predicted.kl_stderr) for p in (one, other)]
    rows = [
        *sizes,
        ("Average bits", [f"{value:.2f}" for value in bits], f"{bits[1] - bits[0]:+.2f}".replace("-", "−")),
        ("Perplexity", [_perplexity(p) for p in (one, other)], _change_of_perplexity(found)),
        ("KL (nats per token)", kl, f"{wording.signed(found.kl.value)} ± {wording.number(found.kl.stderr, 2)}"),
        ("How the loss is known", [_basis(p) for p in (one, other)], "–"),
        ("Decoding (tokens/s)", [_speed(p) for p in (one, other)], _change_of_speed(found)),
    ]
    return [
        {"": label, "This plan": values[0], "The other": values[1], "Difference": difference}
        for label, values, difference in rows
    ]


def layer_frame(profile: SensitivityProfile, found: Comparison) -> pd.DataFrame:
    """One row per layer that differs: formats and sizes in either plan."""
    layers = profile.catalogue.by_name()
    return pd.DataFrame(
        [
            {
                "Layer": one.layer,
                "Role": wording.role(layers[one.layer].role),
                "This plan": wording.format_label(one.one),
                "The other": wording.format_label(one.other),
                "Size here": wording.size(one.one_bytes),
                "Size there": wording.size(one.other_bytes),
                "Difference": wording.size_change(one.other_bytes - one.one_bytes),
            }
            for one in found.layers
        ]
    )


def say(sentence: verdict.Sentence) -> None:
    """A sentence in the colour and with the icon of its tone."""
    {"good": st.success, "fair": st.info, "poor": st.warning}[sentence.tone](sentence.text)


def _perplexity(plan: Plan) -> str:
    low, high = (wording.number(value, 4) for value in (plan.predicted.perplexity_low, plan.predicted.perplexity_high))
    return f"{wording.number(plan.predicted.perplexity, 4)} ({low} to {high})"


def _change_of_perplexity(found: Comparison) -> str:
    if not found.same_text:
        return "not compared: of different texts"
    said = wording.percent(100 * relative_change(found.delta_nll.value))
    return f"{said}, within error" if found.delta_nll.within_error and not found.same_formats else said


def _basis(plan: Plan) -> str:
    return "measured as a whole" if plan.predicted.measured else "predicted from scores"


def _speed(plan: Plan) -> str:
    speed = plan.latency and plan.latency.tokens_per_s
    return "not known" if not speed else f"{wording.number(speed)} (estimate)"


def _change_of_speed(found: Comparison) -> str:
    speeds = [plan.latency and plan.latency.tokens_per_s for plan in (found.one, found.other)]
    return wording.percent(100 * (speeds[1] / speeds[0] - 1)) if all(speeds) else "–"
