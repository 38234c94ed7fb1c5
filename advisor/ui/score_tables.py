"""Every score of the sensitivity page with its error: as a table, and as files to take away."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from advisor.types import SensitivityProfile
from advisor.ui import frames

_COLUMNS = {
    "layer": st.column_config.TextColumn("Layer"),
    "role": st.column_config.TextColumn("Role"),
    "format_label": st.column_config.TextColumn("Format"),
    "how": st.column_config.TextColumn("How"),
    "parameters": st.column_config.NumberColumn("Parameters", format="localized"),
    "size": st.column_config.TextColumn("Size"),
    "kl": st.column_config.NumberColumn("KL (nats)", format="%.3e"),
    "kl_stderr": st.column_config.NumberColumn("± KL", format="%.1e"),
    "kl_per_mib": st.column_config.NumberColumn("KL per MiB saved", format="%.3e"),
    "delta_nll": st.column_config.NumberColumn("Δ NLL (nats)", format="%.3e"),
    "delta_nll_stderr": st.column_config.NumberColumn("± Δ NLL", format="%.1e"),
    "delta_ppl_pct": st.column_config.NumberColumn("Δ perplexity (%)", format="%.3f"),
}


def every_score(frame: pd.DataFrame) -> None:
    """All scores, each with its error and how it was found."""
    shown = [name for name in _COLUMNS if name in frame]
    st.dataframe(frame[shown], hide_index=True, column_config=_COLUMNS)


def download(profile: SensitivityProfile, frame: pd.DataFrame) -> None:
    """The scores as a sheet, and the whole profile as a document.

    Args:
        frame: every score that the page knows of, as `every_score` shows them.
    """
    row = st.container(horizontal=True)
    row.download_button(
        "Download the scores (CSV)",
        lambda: csv(frame),
        "scores.csv",
        "text/csv",
        on_click="ignore",
        icon=":material/table:",
        help="One line per layer and format: every measure with its standard error, parameters and bytes.",
    )
    row.download_button(
        "Download the profile (JSON)",
        lambda: profile.model_dump_json(indent=1),
        "profile.json",
        "application/json",
        on_click="ignore",
        icon=":material/download:",
        help="The file that `python -m advisor plan` reads.",
    )


def csv(frame: pd.DataFrame) -> str:
    """The columns that others can read, units in their names: nats per token, percent, bytes, MiB."""
    kept = {
        "layer": "layer",
        "block": "block",
        "role": "role",
        "format": "format",
        "how": "how",
        "tokens": "tokens",
        "parameters": "parameters",
        "bytes": "bytes",
        "original_bytes": "original_bytes",
        "kl": "kl_nats",
        "kl_stderr": "kl_stderr_nats",
        "kl_per_mib": "kl_nats_per_mib_saved",
        "delta_nll": "delta_nll_nats",
        "delta_nll_stderr": "delta_nll_stderr_nats",
        "delta_ppl_pct": "delta_perplexity_pct",
        "delta_ppl_pct_stderr": "delta_perplexity_stderr_pct",
    }
    shown = {name: title for name, title in kept.items() if name in frame}
    return frame[list(shown)].rename(columns=shown).astype({"block": "Int64"}).to_csv(index=False)


def exact_share(frame: pd.DataFrame) -> str:
    """`31 of 422 exact`."""
    return f"{(frame['how'] == frames.EXACT).sum():,} of {len(frame):,} exact"
