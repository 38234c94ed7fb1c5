"""What giving each layer of a plan back would win: as estimated, and the way to have it measured."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from advisor import pipeline
from advisor.knowledge import find_format
from advisor.types import Job, Plan, ProfileRequest, SensitivityProfile
from advisor.ui import browser, common, drawing, frames, job_panel, ranked_chart, wording

_SHOWN = 10


def show(profile: SensitivityProfile, plan: Plan, won: Mapping[str, tuple[float, float]]) -> None:
    """The largest gains as the profile estimates them, if it can, and the button that has them measured.

    Args:
        won: layer -> KL that giving it back wins and its standard error.
    """
    st.markdown(
        "With the whole plan in place, errors of several layers add up or cancel: what one layer's own weights would "
        "win back then differs from its score alone."
    )
    if won:
        frame = frames.gain_frame(profile, plan.assignments, won)
        count = min(_SHOWN, len(frame))
        drawing.chart(
            ranked_chart.ranked_layers(frame, frames.MEASURES_WON["kl"], count, dark=browser.dark()),
            alt=f"The {count} layers whose giving back wins the most KL, estimated, with error bars.",
        )
        st.caption("Estimated from this profile's gradients; bars are one standard error to each side.")
    quantized = [name for name, fmt in plan.assignments.items() if find_format(fmt).quantized]
    said, button = st.columns([2, 1], vertical_alignment="center")
    said.caption(
        f"Measuring runs the model once for each of the plan's {wording.plural(len(quantized), 'quantized layer')}, on "
        "the profile's own text."
        if quantized
        else "This plan quantizes no layer: there is nothing to give back."
    )
    if button.button(
        "Measure what giving back each layer wins",
        width="stretch",
        disabled=not quantized,
        help="Runs in the background, stores a sensitivity profile around this plan, and changes nothing here.",
    ):
        request = measuring(profile, plan)
        pipeline.check_source(request.model)
        pipeline.check_text(request.text)
        job_panel.start("profile", request)


def measuring(profile: SensitivityProfile, plan: Plan) -> ProfileRequest:
    """The exact measurement around the plan on the very text of its profile."""
    calibration = profile.calibration
    return ProfileRequest(
        model=profile.catalogue.model.source,
        text=calibration.text,
        samples=calibration.samples,
        seq_len=calibration.seq_len,
        seed=calibration.seed,
        formats=tuple(dict.fromkeys(plan.assignments.values())),
        method="exact",
        around=plan.assignments,
        # A request has no FP16: a model of that dtype is measured in it by `auto`.
        dtype="auto" if profile.dtype == "fp16" else profile.dtype,
    )


def when_measured(job: Job) -> None:
    """The way to the scores of a finished profile."""
    st.success("Measured and stored.")
    if st.button("See what giving back wins", type="primary", icon=":material/arrow_forward:"):
        common.go("sensitivity", profile=(job.result or {}).get("profile_id", ""))
