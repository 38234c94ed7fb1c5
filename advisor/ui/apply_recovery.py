"""The choice of a recovery beside that of a method: off unless steps are asked for; when it pays, and what it costs."""

from __future__ import annotations

import streamlit as st

from advisor import knowledge, methods
from advisor.types import Plan
from advisor.ui import fields, wording

_MOST = 100_000


def choose(plan: Plan, to: str) -> int:
    """Steps of the recovery, 0 for none; the field says why where this plan or target can have none."""
    refusal = methods.why_not_recovered(plan, to)
    row = knowledge.find_method(methods.RECOVERY)
    fields.keep_within("recover", 0, _MOST)
    steps = fields.number(
        "recover",
        st.number_input,
        "Recovery steps",
        0,
        _MOST,
        0,
        step=8,
        disabled=bool(refusal),
        help=wording.labelled(refusal)
        or f"0 leaves it out. {row.does} It pays for {row.use_when} Cost: {row.time}; 1,024 tokens a step.",
    )
    return 0 if refusal else int(steps)


def explain(steps: int) -> None:
    """What the chosen recovery does and needs; nothing where there is none."""
    if steps:
        row = knowledge.find_method(methods.RECOVERY)
        st.caption(
            f"**{row.label}**: {steps:,} steps; {row.time}. The result says what it cost and won, and it is left out "
            f"where it wins nothing. {knowledge.approaches()[row.approach].label}: *Which method when* compares."
        )
