"""Page 2: what was measured: which layers suffer, how much, and how sure that is."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from advisor import jobs
from advisor.types import ProfileSummary, SensitivityProfile
from advisor.ui import (
    answers,
    browser,
    charts,
    common,
    drawing,
    explain,
    frames,
    layer_card,
    plan_compare,
    quality,
    ranked_chart,
    role_table,
    score_tables,
    size_chart,
    tour,
    wording,
)

_LOOK_AGAIN_S = 3.0
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
    _follow(summary)
    if profile.calibration.quality is not None:
        quality.warn(profile.calibration.quality)
    if not profile.measurements:
        common.empty_state(
            "**Nothing measured yet.** The first scores appear here as soon as they are stored.",
            "model",
            "Back to the model page",
        )
        return
    alone = answers.scores(summary, profile)
    direction, plan_id, gains = _direction(summary, profile)
    won = direction == "won"
    st.caption(explain.scores(profile, won))
    if profile.around:
        st.caption(explain.around(profile))
    frame, measure, what = _selected(profile, gains if gains is not None else alone, won, estimated=gains is not None)
    _by_layer(summary, profile, alone, frame, measure, what, plan_id)
    st.subheader("By role, beside what the guide expects")
    role_table.show(profile, frame, measure)
    common.guide_link("roles")
    _text_quality(profile)
    everything = gains if gains is not None else alone
    with st.expander("All scores as a table"):
        score_tables.every_score(everything)
    score_tables.download(profile, everything)
    st.divider()
    if profile.around:
        st.caption("No plan is made from these scores: they are about one plan, and its other layers' formats.")
        return
    common.link("plan", "Make a plan from these scores", ":material/arrow_forward:", profile=summary.id)


@st.fragment
@common.guarded
def _by_layer(
    summary: ProfileSummary,
    profile: SensitivityProfile,
    alone: pd.DataFrame,
    frame: pd.DataFrame,
    measure: frames.Measure,
    what: str,
    plan_id: str | None,
) -> None:
    """The charts and the card of the layer that is chosen in any of them: only this is drawn again for another layer.

    Args:
        alone: the scores of all formats, each layer by itself.
        frame: the rows that the charts draw.
    """
    layer = layer_card.choose(profile, frame if len(frame) else alone, measure)
    _map(profile, frame, measure, what, layer)
    layer_card.show(summary, profile, alone, layer, plan_id)
    _open_tab(profile, frame, measure, what, layer)


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
                f"Formats: {wording.format_labels(profile.formats)}.",
            ),
            ("Method", _method(summary, profile), _method_help(profile)),
            (
                "Noise floor",
                "not measured" if floor is None else wording.number(floor, 2) if floor else "none (FP32)",
                "KL (nats per token) that rounding to the compute dtype causes by itself; scores near it mean nothing.",
            ),
        ]
    )


def _follow(summary: ProfileSummary) -> None:
    """While a job still measures this profile: say so, and draw the page again as scores arrive."""
    active = [job for job in common.store().jobs(active_only=True) if job.progress]
    job = next((job for job in active if job.progress.subject == summary.id), None)
    if job is None:
        return
    st.info("**Still being measured.** New scores appear on this page as they are stored.", icon=":material/hourglass:")
    common.link("model", "See its progress", ":material/arrow_forward:", job=job.id)
    st.fragment(run_every=_LOOK_AGAIN_S)(_look_again)(summary.scores_key, job.id)


@common.guarded
def _look_again(scores_key: tuple[str, int, int, int], job_id: str) -> None:
    store = common.store()
    jobs.reap(store)
    job = store.job(job_id)
    keys = {summary.scores_key for summary in store.profiles()}
    if scores_key not in keys or job is None or job.status.ended:
        st.rerun()


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


def _direction(summary: ProfileSummary, profile: SensitivityProfile) -> tuple[str, str | None, pd.DataFrame | None]:
    """Which way the scores are read; the plan where the reader chose one; and what giving each layer back wins.

    Around a stored plan only estimates can be read: exact scores say nothing of sets.
    """
    if profile.around:
        return "won", None, None
    plans = {plan.id: wording.plan_label(plan) for plan in common.store().plans(summary.id)}
    if profile.method == "exact" or not plans:
        st.caption(explain.other_direction(profile))
        return "alone", None, None
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
        return "alone", None, None
    with right:
        said = "Saved plans that were made from these scores."
        plan_id = common.choose("plan", "Around plan", plans, said, missing=common.NOT_STORED)
    plan = plan_compare.stored_plan(plan_id)
    won = answers.gains(summary, profile, plan.assignments) if plan is not None else {}
    if not won:
        st.info(
            "These estimates do not cover every layer of this plan alike: wait for the profile to finish, or profile "
            "the plan's formats together. Until then each layer is shown by itself."
        )
        return "alone", plan_id, None
    return "won", plan_id, frames.gain_frame(profile, plan.assignments, won)


def _selected(
    profile: SensitivityProfile, frame: pd.DataFrame, won: bool, estimated: bool
) -> tuple[pd.DataFrame, frames.Measure, str]:
    """The rows to draw, one per layer; the measure; and what they are called."""
    measures = frames.MEASURES_WON if won else frames.MEASURES
    if estimated:  # estimates of sets speak of KL only
        measures = {key: row for key, row in measures.items() if key in frame}
    with st.container(horizontal=True, gap="large"):
        if not won:
            fmt = _format(profile)
            frame = frame[frame["format"] == fmt]
        key = common.choose(
            "measure_won" if won else "measure",  # either direction keeps its own
            "Measure",
            {key: row.label for key, row in measures.items()},
            "KL carries less chance and ranks best; per MiB saved it says where bytes are cheap and where dear. Δ NLL "
            "and Δ perplexity are the loss itself, whose sign can be chance.",
            widget=st.segmented_control,
            required=True,
        )
    return frame, measures[key], "around the plan" if won else f"in {wording.format_label(fmt)}"


def _format(profile: SensitivityProfile) -> str:
    return common.choose(
        "shown",
        "Format",
        {name: wording.format_label(name) for name in profile.formats},
        "Scores of this format are shown below.",
        profile.formats[-1],
        widget=st.segmented_control,
        required=True,
    )


def _map(profile: SensitivityProfile, frame: pd.DataFrame, measure: frames.Measure, what: str, layer: str) -> None:
    st.subheader("What giving back wins" if measure.won else "Where it hurts")
    drawn, clicks = layer_card.clickable("map", layer)
    drawing.chart(
        charts.sensitivity_heatmap(profile.catalogue, frame, measure, browser.dark(), drawn),
        alt=f"{measure.label} of every layer {what}, by block and module; the table below has the numbers.",
        **clicks,
    )
    if frame["how"].nunique() > 1:
        st.caption(
            f"{score_tables.exact_share(frame)} {what}: a dot above and a filled mark below stand for what was "
            "measured exactly; cells without a dot and hollow marks are estimates."
        )


def _open_tab(profile: SensitivityProfile, frame: pd.DataFrame, measure: frames.Measure, what: str, layer: str) -> None:
    """All layers once more, ranked or against their size: only the chart that is looked at is drawn."""
    draw = {
        "Layers that win the most" if measure.won else "Most sensitive layers": _bars,
        "Where bytes are cheap and where dear": _against_size,
    }
    for name, tab in zip(draw, st.tabs(list(draw), **common.setting("ranked")), strict=True):
        if tab.open:
            with tab:
                draw[name](profile, frame, measure, what, layer)


def _bars(profile: SensitivityProfile, frame: pd.DataFrame, measure: frames.Measure, what: str, layer: str) -> None:
    with st.container(horizontal=True, gap="large"):
        top = _top(len(frame))
        powers = not measure.signed and _powers(frame, measure, top)
    drawn, clicks = layer_card.clickable(f"bars_{'powers' if powers else 'zero'}", layer)
    floor = profile.baseline.noise_floor_kl
    drawing.chart(
        ranked_chart.ranked_layers(frame, measure, top, floor, browser.dark(), drawn, powers),
        alt=f"The {min(top, len(frame))} layers with the largest {measure.label} {what}, with error bars.",
        **clicks,
    )


def _against_size(
    profile: SensitivityProfile, frame: pd.DataFrame, measure: frames.Measure, what: str, layer: str
) -> None:
    if measure.signed:  # what may be below zero has no place on a scale of powers of ten
        measure = (frames.MEASURES_WON if measure.won else frames.MEASURES)["kl"]
    if not (frame["saved"] > 0).any():
        st.info("No layer saves bytes in this format, so none has a price.")
        return
    drawn, clicks = layer_card.clickable("sizes", layer)
    drawing.chart(
        size_chart.sensitivity_by_size(frame, measure, browser.dark(), drawn),
        alt=f"{measure.label} of every layer {what} against its parameters, both in powers of ten, by role.",
        **clicks,
    )
    st.caption(explain.price(size_chart.mean_price(frame), measure.won))


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


def _powers(frame: pd.DataFrame, measure: frames.Measure, top: int) -> bool:
    """Whether scores are read on a scale of powers of ten: at first where bars would leave most of them as stumps."""
    scale = common.choose(
        f"scale_{measure.key}",
        "Scale",
        {"linear": "From zero", "log": "Powers of ten"},
        "From zero, lengths compare; in powers of ten, equal distances are equal factors and small scores are told "
        "apart beside large ones.",
        "log" if ranked_chart.flattened(frame, measure, top) else "linear",
        widget=st.segmented_control,
        required=True,
    )
    return scale == "log"


def _text_quality(profile: SensitivityProfile) -> None:
    if profile.calibration.quality is not None:
        with st.expander("Quality of the calibration text"):
            quality.show(profile.calibration.quality)


if __name__ == "__main__":
    render()
