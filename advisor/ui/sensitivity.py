"""Page 2: what was measured: which layers suffer, how much, and how sure that is."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from advisor import knowledge
from advisor.types import ProfileSummary, SensitivityProfile
from advisor.ui import answers, charts, common, drawing, explain, frames, quality, score_tables, tour, wording

DIRECTIONS = {"alone": "Only this layer", "won": "All but this one"}


@common.guarded
def render() -> None:
    """The whole page."""
    common.page_head("Sensitivity")
    tour.panel("sensitivity")
    chosen = common.choose_profile()
    if chosen is None:
        return
    summary, profile = chosen
    _headline(summary, profile)
    if profile.calibration.quality is not None:
        quality.warn(profile.calibration.quality)
    if not profile.measurements:
        common.empty_state(
            "**Nothing measured yet.** The first scores appear here as soon as they are stored.",
            "model",
            "Back to the model page",
        )
        return
    gains = _gains(summary, profile)
    won = gains is not None or bool(profile.around)
    st.caption(explain.scores(profile, won))
    if profile.around:
        st.caption(explain.around(profile))
    everything = gains if gains is not None else frames.profile_frame(profile)
    frame, measure, what = _selected(profile, everything, won, estimated=gains is not None)
    _map_and_bars(profile, frame, measure, what)
    st.subheader("By role, beside what the guide expects")
    score_tables.roles(frame, won)
    _text_quality(profile)
    with st.expander("All scores as a table"):
        score_tables.every_score(everything)
    score_tables.download(profile)
    st.divider()
    if profile.around:
        st.caption("No plan is made from these scores: they are about one plan, and its other layers' formats.")
        return
    common.link("plan", "Make a plan from these scores", ":material/arrow_forward:", profile=summary.id)


def _headline(summary: ProfileSummary, profile: SensitivityProfile) -> None:
    baseline, calibration = profile.baseline, profile.calibration
    floor = baseline.noise_floor_kl
    layers = len(_measurable(profile))
    common.metrics(
        [
            (
                "Base perplexity",
                wording.with_error(baseline.perplexity, baseline.perplexity * baseline.nll_stderr),
                "Of the unquantized model on the calibration text, ± one standard error.",
            ),
            ("Text", calibration.text, f"{calibration.samples} sequences of {calibration.seq_len} tokens."),
            ("Tokens scored", _tokens(profile), "Tokens whose prediction was compared; estimates sharpen with them."),
            (
                "Layers measured",
                f"{len(profile.measured_layers)} of {layers}",
                f"Formats: {', '.join(profile.formats)}.",
            ),
            ("Method", _method(summary, profile), _method_help(profile)),
            (
                "Noise floor",
                "not measured" if floor is None else wording.number(floor, 2) if floor else "none (FP32)",
                "KL (nats per token) that rounding to the compute dtype causes by itself; scores near it mean nothing.",
            ),
        ]
    )


def _measurable(profile: SensitivityProfile) -> list[str]:
    """The layers that have a score once the profile is whole."""
    if profile.around:
        return [name for name, fmt in profile.around.items() if fmt != profile.catalogue.dtype]
    return [layer.name for layer in profile.catalogue.quantizable]


def _tokens(profile: SensitivityProfile) -> str:
    whole = profile.baseline.tokens
    seen = min((m.tokens for m in profile.measurements), default=whole)
    return f"{whole:,}" if seen >= whole else f"{seen:,} of {whole:,}"


def _method(summary: ProfileSummary, profile: SensitivityProfile) -> str:
    if profile.method == "exact":
        return "Exact"
    if profile.method == "auto":
        return f"Auto, {summary.exact:,} of {summary.measured:,} exact"
    return f"Fisher, {wording.plural(profile.calibration.draws, 'draw')}"


def _method_help(profile: SensitivityProfile) -> str:
    drawn = f"; {wording.plural(profile.calibration.draws, 'label')} drawn per token"
    how = {
        "exact": "The model run once for every layer and format",
        "fisher": f"All layers estimated together from a few backward passes{drawn}",
        "auto": f"All layers estimated together{drawn}; those whose error bars left a choice open measured exactly",
    }
    return f"{how[profile.method]}. Computed in {profile.dtype.upper()}."


def _gains(summary: ProfileSummary, profile: SensitivityProfile) -> pd.DataFrame | None:
    """What giving back each layer of a stored plan wins, where the reader asks for it and estimates can say it."""
    if profile.around or profile.method == "exact":
        return None
    plans = {plan.id: common.plan_label(plan) for plan in common.store().plans(summary.id)}
    if not plans:
        return None
    left, right = st.columns(2)
    with left:
        direction = common.choose(
            "direction",
            "Quantized",
            DIRECTIONS,
            "One layer by itself, or a whole plan with one layer given back: then errors that add up or cancel count.",
            widget=st.segmented_control,
            required=True,
        )
    if direction == "alone":
        return None
    with right:
        plan_id = common.choose_stored("plan", "Around plan", plans, "Saved plans that were made from these scores.")
    plan = common.store().plan(plan_id)
    won = answers.gains(summary, profile, plan.assignments) if plan is not None else {}
    if not won:
        st.info(
            "These estimates do not cover every layer of this plan alike: wait for the profile to finish, or profile "
            "the plan's formats together. Until then each layer is shown by itself."
        )
        return None
    return frames.gain_frame(profile, plan.assignments, won)


def _selected(
    profile: SensitivityProfile, frame: pd.DataFrame, won: bool, estimated: bool
) -> tuple[pd.DataFrame, frames.Measure, str]:
    """The rows to draw, one per layer; the measure; and what they are called."""
    measures = frames.MEASURES_WON if won else frames.MEASURES
    if estimated:  # estimates of sets speak of KL only
        return frame, measures["kl"], "around the plan"
    left, right = st.columns(2)
    if not won:
        with left:
            fmt = _format(profile)
        frame = frame[frame["format"] == fmt]
    with left if won else right:
        key = common.choose(
            "measure",
            "Measure",
            {key: row.label for key, row in measures.items()},
            "KL carries less chance and ranks best. Δ NLL and Δ perplexity are the loss itself, whose sign can be "
            "chance.",
            widget=st.segmented_control,
            required=True,
        )
    return frame, measures[key], "around the plan" if won else f"in {fmt}"


def _format(profile: SensitivityProfile) -> str:
    known = knowledge.formats()
    return common.choose(
        "shown",
        "Format",
        {name: known[name].label if name in known else name for name in profile.formats},
        "Scores of this format are shown below.",
        profile.formats[-1],
        widget=st.segmented_control,
        required=True,
    )


def _map_and_bars(profile: SensitivityProfile, frame: pd.DataFrame, measure: frames.Measure, what: str) -> None:
    dark = common.dark()
    st.subheader("What giving back wins" if measure.won else "Where it hurts")
    drawing.chart(
        charts.sensitivity_heatmap(profile.catalogue, frame, measure, dark),
        alt=f"{measure.label} of every layer {what}, by block and module; the table below has the numbers.",
    )
    mixed = frame["how"].nunique() > 1
    if mixed:
        st.caption(
            f"{score_tables.exact_share(frame)} {what}: a dot above and a filled bar below mark what was measured "
            "exactly; cells without a dot and hollow bars are estimates."
        )
    st.subheader("Layers that win the most" if measure.won else "Most sensitive layers")
    top = _top(len(frame))
    drawing.chart(
        charts.sensitivity_bars(frame, measure, top, profile.baseline.noise_floor_kl, dark),
        alt=f"The {min(top, len(frame))} layers with the largest {measure.label} {what}, with error bars.",
    )


def _top(scored: int) -> int:
    steps = [count for count in (10, 20, 40, 80) if count < scored] + [scored] * (scored <= 100)
    if len(steps) < 2:
        return scored
    shown = common.choose(
        "top",
        "Layers shown",
        {str(count): str(count) for count in steps},
        "The largest scores first.",
        "20",
        widget=st.segmented_control,
        required=True,
    )
    return int(shown)


def _text_quality(profile: SensitivityProfile) -> None:
    if profile.calibration.quality is not None:
        with st.expander("Quality of the calibration text"):
            quality.show(profile.calibration.quality)


if __name__ == "__main__":
    render()
