"""The button that gives a plan as a file: the same below a live plan and a refined one."""

from __future__ import annotations

from streamlit.delta_generator import DeltaGenerator

from advisor.types import Plan


def button(row: DeltaGenerator, plan: Plan) -> None:
    """Draw it into `row`; the document is only made when it is asked for."""
    row.download_button(
        "Download JSON",
        lambda: plan.model_dump_json(indent=1),
        "plan.json",
        "application/json",
        on_click="ignore",
        icon=":material/download:",
        help="The plan as data: `python -m advisor apply` reads it.",
    )
