"""Page 2: what was measured: which layers suffer, how much, and how sure that is."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from advisor import knowledge
from advisor.types import SensitivityProfile
from advisor.ui import charts, common, frames, wording


@common.guarded
def render() -> None:
    """The whole page."""
    common.page_head("Sensitivity")
    chosen = common.choose_profile()
    if chosen is None:
        return
    summary, profile = chosen
    _headline(profile)
    if not profile.measurements:
        common.empty_state(
            "**Nothing measured yet.** The first scores appear here as soon as they are stored.",
            "model",
            "Back to the model page",
        )
        return
    _explanation()
    fmt, measure = _selectors(profile)
    _map_and_bars(profile, fmt, measure)
    _roles(profile, fmt)
    _data(profile)
    st.divider()
    common.link("plan", "Make a plan from these scores", ":material/arrow_forward:", profile=summary.id)


def _headline(profile: SensitivityProfile) -> None:
    baseline, calibration = profile.baseline, profile.calibration
    floor = baseline.noise_floor_kl
    layers = len(profile.catalogue.quantizable)
    common.metrics(
        [
            (
                "Base perplexity",
                wording.with_error(baseline.perplexity, baseline.perplexity * baseline.nll_stderr),
                "Of the unquantized model on the calibration text, ± one standard error.",
            ),
            ("Text", calibration.text, f"{calibration.samples} sequences of {calibration.seq_len} tokens."),
            ("Tokens scored", f"{baseline.tokens:,}", "Tokens whose prediction was compared."),
            (
                "Layers measured",
                f"{len(profile.measured_layers)} of {layers}",
                f"Formats: {', '.join(profile.formats)}.",
            ),
            (
                "Method",
                f"{profile.method}, {profile.dtype.upper()}",
                "Exact: one layer at a time, the whole model run.",
            ),
            (
                "Noise floor",
                "not measured" if floor is None else wording.number(floor, 2) if floor else "none (FP32)",
                "KL (nats per token) that rounding to the compute dtype causes by itself; scores near it mean nothing.",
            ),
        ]
    )


def _explanation() -> None:
    st.caption(
        "A score says how far the model's predictions move when this one layer is quantized and all else stays as it "
        "is, per token of the text. Its bar is one standard error to each side: two layers whose bars overlap are not "
        "told apart by this text."
    )


def _selectors(profile: SensitivityProfile) -> tuple[str, frames.Measure]:
    left, right = st.columns(2)
    known = knowledge.formats()
    with left:
        fmt = common.choose(
            "shown",
            "Format",
            {name: known[name].label if name in known else name for name in profile.formats},
            "Scores of this format are shown below.",
            profile.formats[-1],
            widget=st.segmented_control,
            required=True,
        )
    with right:
        key = common.choose(
            "measure",
            "Measure",
            {key: row.label for key, row in frames.MEASURES.items()},
            "KL cannot fall below zero and ranks best. Δ NLL and Δ perplexity are the loss itself, and "
            "can be negative by chance.",
            widget=st.segmented_control,
            required=True,
        )
    return fmt, frames.MEASURES[key]


def _map_and_bars(profile: SensitivityProfile, fmt: str, measure: frames.Measure) -> None:
    dark = common.dark()
    st.subheader("Where it hurts")
    st.altair_chart(
        charts.sensitivity_heatmap(profile, fmt, measure, dark),
        width="stretch",
        alt=f"{measure.label} of every layer in {fmt}, by block and module; the table below has the numbers.",
    )
    st.subheader("Most sensitive layers")
    scored = sum(m.format == fmt for m in profile.measurements)
    steps = [count for count in (10, 20, 40, 80) if count < scored] + [scored] * (scored <= 100)
    top = scored
    if len(steps) > 1:
        shown = common.choose(
            "top",
            "Layers shown",
            {str(count): str(count) for count in steps},
            "The most sensitive layers first.",
            "20",
            widget=st.segmented_control,
            required=True,
        )
        top = int(shown)
    st.altair_chart(
        charts.sensitivity_bars(profile, fmt, measure, top, dark),
        width="stretch",
        alt=f"The {min(top, scored)} layers with the largest {measure.label} in {fmt}, with error bars.",
    )


def _roles(profile: SensitivityProfile, fmt: str) -> None:
    st.subheader("By role, beside what the guide expects")
    frame = frames.profile_frame(profile)
    frame = frame[frame["format"] == fmt]
    advice = {wording.role(role): row for role, row in knowledge.roles().items()}
    grouped = frame.groupby("role", sort=False).agg(
        layers=("layer", "count"), parameters=("parameters", "sum"), mean=("kl", "mean"), largest=("kl", "max")
    )
    grouped["kl_per_million"] = frame.groupby("role")["kl"].sum() / grouped["parameters"] * 1e6
    grouped = grouped.sort_values("mean", ascending=False)
    table = pd.DataFrame(
        {
            "Role": grouped.index,
            "Layers": grouped["layers"].to_numpy(),
            "Mean KL": grouped["mean"].to_numpy(),
            "Largest KL": grouped["largest"].to_numpy(),
            "KL per million parameters": grouped["kl_per_million"].to_numpy(),
            "Guide: sensitivity": [advice[role].sensitivity for role in grouped.index],
            "Guide: least bits": [advice[role].minimum_bits for role in grouped.index],
        }
    )
    st.dataframe(
        table,
        hide_index=True,
        column_config={
            name: st.column_config.NumberColumn(format="%.2e", help="Nats per token.")
            for name in ("Mean KL", "Largest KL", "KL per million parameters")
        },
    )


def _data(profile: SensitivityProfile) -> None:
    with st.expander("All scores as a table"):
        frame = frames.profile_frame(profile)
        shown = frame[
            [
                "layer",
                "role",
                "format",
                "parameters",
                "kl",
                "kl_stderr",
                "delta_nll",
                "delta_nll_stderr",
                "delta_ppl_pct",
            ]
        ]
        st.dataframe(
            shown,
            hide_index=True,
            column_config={
                "layer": "Layer",
                "role": "Role",
                "format": "Format",
                "parameters": st.column_config.NumberColumn("Parameters", format="localized"),
                "kl": st.column_config.NumberColumn("KL (nats)", format="%.3e"),
                "kl_stderr": st.column_config.NumberColumn("± KL", format="%.1e"),
                "delta_nll": st.column_config.NumberColumn("Δ NLL (nats)", format="%.3e"),
                "delta_nll_stderr": st.column_config.NumberColumn("± Δ NLL", format="%.1e"),
                "delta_ppl_pct": st.column_config.NumberColumn("Δ perplexity (%)", format="%.3f"),
            },
        )
    st.download_button(
        "Download the profile (JSON)",
        lambda: profile.model_dump_json(indent=1),
        "profile.json",
        "application/json",
        on_click="ignore",
        icon=":material/download:",
        help="The file that `python -m advisor plan` reads.",
    )


if __name__ == "__main__":
    render()
