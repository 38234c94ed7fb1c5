"""What a profiling run would take and what its text is worth, before it starts."""

from __future__ import annotations

import streamlit as st

from advisor import units
from advisor.types import Job, Preview, ProfileRequest
from advisor.ui import common, job_panel, quality, wording


def show(job: Job) -> None:
    """The estimate of a finished preview, and the button that starts the very run it is about."""
    found = Preview.model_validate(job.result)
    estimate, calibration = found.estimate, found.calibration
    most = "At most " if estimate.at_most else "About "
    common.metrics(
        [
            ("Time", most + units.duration(estimate.seconds), "On this machine, from the model's pace just now."),
            ("Memory", wording.size(estimate.memory_bytes), "At the peak, the model's weights included."),
            ("Scores", f"{estimate.scores:,}", "Layers times formats that fit them."),
            (
                "Forward passes",
                wording.number(estimate.forward_passes, 3),
                "The work in units of one forward pass over the whole text.",
            ),
        ]
    )
    st.markdown("**Calibration text**")
    if calibration.quality is not None:
        quality.show(calibration.quality)
        quality.warn(calibration.quality)
    said, button = st.columns([3, 1], vertical_alignment="center")
    said.caption(_what(ProfileRequest(**job.params), found))
    if button.button(
        "Profile as estimated",
        type="primary",
        width="stretch",
        key=f"profile_{job.id}",
        help="Starts the run with exactly these settings, whatever the form below says by now.",
    ):
        job_panel.start("profile", job.params)


def _what(request: ProfileRequest, found: Preview) -> str:
    text = found.calibration
    layers = f"the layers `{request.layers}`" if request.layers else "all layers"
    return (
        f"{found.method.capitalize()} · {text.text}, {text.samples} × {text.seq_len} tokens · {layers} in "
        f"{wording.format_labels(request.formats)}"
    )
