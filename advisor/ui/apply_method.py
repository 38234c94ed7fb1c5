"""The choice of a quantization method and its text, beside a target: what is recommended and why, and all compared."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from advisor import knowledge, methods, pipeline
from advisor.types import Catalogue, Plan
from advisor.ui import common, wording

AUTO = "auto"


def choose(plan: Plan, to: str, catalogue: Catalogue | None) -> str:
    """The method for `apply`: drawn where there is something to choose, else `auto`."""
    options = methods.possible(plan, to, catalogue)
    if len(options) == 1:
        return AUTO
    recommended = methods.recommend(plan, to, catalogue)
    table = knowledge.methods()
    labels = {AUTO: f"Recommended: {table[recommended.name].label}"} | {name: table[name].label for name in options}
    return common.choose(
        "method",
        "Method",
        labels,
        f"{table[recommended.name].label}, since {wording.labelled(recommended.reason)}. The recommended method gives "
        "way to rounding to nearest where it wins nothing on text that it did not see.",
    )


def choose_calibration(plan: Plan, to: str, method: str, catalogue: Catalogue | None, recover: int) -> str | None:
    """Text for a method that calibrates or a recovery: None for that of the scores, empty while a path is missing."""
    if not recover and not knowledge.find_method(methods.choose(method, plan, to, catalogue).name).calibrates:
        return None
    text = common.choose_text(
        "Calibration text",
        "What the method chooses its codes on and a recovery trains on: as much of it as the plan's scores were "
        "measured on. Take what the model will be used for. Evaluation reads other parts of it.",
        key="calibration",
        own=f"As the plan's scores · {pipeline.calibration_of(plan).text}",
    )
    return None if text == common.OWN_TEXT else text


def explain(plan: Plan, to: str, method: str, catalogue: Catalogue | None, calibration: str | None) -> None:
    """What the choice means for this plan, and all methods side by side."""
    chosen = methods.choose(method, plan, to, catalogue)
    row = knowledge.find_method(chosen.name)
    text = ""
    if row.calibrates and calibration != "":
        spec = pipeline.calibration_of(plan, calibration)
        text = f" Calibrated on {spec.samples} x {spec.seq_len} tokens of {spec.text}."
    reason = wording.labelled(chosen.reason)
    if knowledge.find_target(to).own_codes:
        st.caption(f"**{row.label}**, but {reason}; the result names the layers that are other than measured.")
    else:
        why = "" if method != AUTO else f" Recommended, since {reason}."
        st.caption(f"**{row.label}**: {row.does}{why}{text}")
    with st.expander("Which method when"):
        st.table(_methods())
        common.guide_link("methods")


def _methods() -> pd.DataFrame:
    """What decides between them; the guide says the rest of each."""
    rows = knowledge.methods().values()
    return pd.DataFrame(
        {"Method": row.label, "When to use it": row.use_when, "What it needs": row.needs, "Time": row.time}
        for row in rows
    ).set_index("Method")
