"""What was measured on the apply page: every variant beside the others, by perplexity, tasks and speed."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from advisor.types import Evaluation
from advisor.ui import result_tables


def show(evaluations: Mapping[str, Evaluation]) -> None:
    """The tables that have something in them."""
    st.dataframe(result_tables.perplexities(evaluations), hide_index=True)
    if any(evaluation.tasks for evaluation in evaluations.values()):
        st.markdown("**Downstream tasks**")
        st.dataframe(result_tables.tasks(evaluations), hide_index=True)
        st.caption(
            "± is one standard error over documents; in brackets the change against the original, paired document by "
            "document, which tells apart what the values alone cannot."
        )
    if any(evaluation.speed for evaluation in evaluations.values()):
        st.markdown("**Speed of one sequence**")
        st.dataframe(result_tables.speeds(evaluations), hide_index=True)
        st.caption("Medians, and in brackets the slowest and the fastest run.")
