"""The scores of a running profile as they arrive: the map of blocks and modules, filling in."""

from __future__ import annotations

import streamlit as st

from advisor.types import Progress, SensitivityProfile
from advisor.ui import browser, charts, common, drawing, frames, wording

REDRAWN_EVERY_SECONDS = 5.0


def show(job_id: str) -> None:
    """Draw what is stored so far of the profile that the job measures, again and again until it ends."""
    st.fragment(run_every=REDRAWN_EVERY_SECONDS)(_map)(job_id)


@common.guarded
def _map(job_id: str) -> None:
    store = common.store()
    job = store.job(job_id)
    subject = (job.progress or Progress(stage="")).subject if job is not None else ""
    profile = store.profile(subject, whole=False) if subject else None
    if profile is None:
        return  # the model or its text is still being read
    frame = frames.profile_frame(profile)
    if frame.empty:
        st.caption("The first scores appear here as soon as they are stored.")
        return
    shown = job.params.get("formats", profile.formats)[-1]
    if job.params.get("around"):
        shown = wording.format_labels(profile.formats)
    else:
        frame = frame[frame["format"] == shown]
        shown = wording.format_label(shown)
    if frame.empty:
        return
    drawing.chart(
        charts.sensitivity_heatmap(profile.catalogue, frame, frames.MEASURES["kl"], browser.dark()),
        alt=f"KL divergence of the {len(frame)} layers scored in {shown} so far, by block and module.",
        key=f"live_scores_{job_id}",
    )
    st.caption(f"{_said(profile, len(frame))} in {shown}; empty cells are still to come.")


def _said(profile: SensitivityProfile, layers: int) -> str:
    whole = profile.baseline.tokens
    most = max(m.tokens for m in profile.measurements)
    read = "" if most >= whole else f" on {most:,} of {whole:,} tokens"
    return f"{layers} of {len(profile.catalogue.quantizable)} layers scored{read}"
