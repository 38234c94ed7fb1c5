"""The buttons that give a plan, its scores and its report as files: the same wherever a plan is shown."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from advisor.types import Evaluation, ExportRecord, Plan, SensitivityProfile
from advisor.ui import common, report

_REPORT = (
    "One HTML file with the charts, the reason of every layer, what was measured, and the commands that make it again. "
    "It fetches nothing: keep it, send it, print it. Making it takes a second or two."
)


def button(row: DeltaGenerator, plan: Plan) -> None:
    """The plan as data; this document and the others are only made when they are asked for."""
    row.download_button(
        "Download JSON",
        lambda: plan.model_dump_json(indent=1),
        "plan.json",
        "application/json",
        on_click="ignore",
        icon=":material/download:",
        help="The plan as data: `python -m advisor apply` reads it.",
    )


def report_button(
    row: DeltaGenerator,
    plan: Plan,
    profile: SensitivityProfile | None,
    evaluations: Callable[[], list[Evaluation]] = list,
    record: ExportRecord | None = None,
    name: str = "",
) -> None:
    """The report of the plan.

    Args:
        evaluations: reads those of the plan, once they are asked for.
    """
    row.download_button(
        "Download report",
        lambda: report.html(plan, profile, evaluations(), record, name),
        "report.html",
        "text/html",
        on_click="ignore",
        icon=":material/description:",
        help=_REPORT,
    )


def profile_button(row: DeltaGenerator, profile: SensitivityProfile) -> None:
    """The scores that the plan was made from."""
    row.download_button(
        "Download profile",
        lambda: profile.model_dump_json(indent=1),
        "profile.json",
        "application/json",
        on_click="ignore",
        icon=":material/download:",
        help="The sensitivity profile as data: `python -m advisor plan` and `front` read it.",
    )


def show(plan_id: str, plan: Plan, profile: SensitivityProfile | None, record: ExportRecord | None, name: str) -> None:
    """All of them, of a stored plan."""
    st.subheader("Downloads")
    row, store = st.container(horizontal=True), common.store()
    button(row, plan)
    report_button(row, plan, profile, lambda: store.evaluations(plan_id), record, name)
    if profile is not None:
        profile_button(row, profile)
