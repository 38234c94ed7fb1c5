"""The tables of the sensitivity page: scores by role beside the guide, and every score with its error."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from advisor import knowledge
from advisor.types import SensitivityProfile
from advisor.ui import frames, wording

_COLUMNS = {
    "layer": st.column_config.TextColumn("Layer"),
    "role": st.column_config.TextColumn("Role"),
    "format": st.column_config.TextColumn("Format"),
    "how": st.column_config.TextColumn("How"),
    "parameters": st.column_config.NumberColumn("Parameters", format="localized"),
    "kl": st.column_config.NumberColumn("KL (nats)", format="%.3e"),
    "kl_stderr": st.column_config.NumberColumn("± KL", format="%.1e"),
    "delta_nll": st.column_config.NumberColumn("Δ NLL (nats)", format="%.3e"),
    "delta_nll_stderr": st.column_config.NumberColumn("± Δ NLL", format="%.1e"),
    "delta_ppl_pct": st.column_config.NumberColumn("Δ perplexity (%)", format="%.3f"),
}


def roles(frame: pd.DataFrame, won: bool) -> None:
    """Mean and largest score of each role, beside what the guide expects of it.

    Args:
        won: the scores are of giving layers back.
    """
    what = "KL won" if won else "KL"
    advice = {wording.role(role): row for role, row in knowledge.roles().items()}
    grouped = frame.groupby("role", sort=False).agg(
        layers=("layer", "count"),
        parameters=("parameters", "sum"),
        mean=("kl", "mean"),
        largest=("kl", "max"),
        total=("kl", "sum"),
    )
    grouped = grouped.sort_values("mean", ascending=False)
    numbers = {
        f"Mean {what}": grouped["mean"],
        f"Largest {what}": grouped["largest"],
        f"{what} per million parameters": grouped["total"] / grouped["parameters"] * 1e6,
    }
    table = pd.DataFrame(
        {
            "Role": grouped.index,
            "Layers": grouped["layers"].to_numpy(),
            **{name: column.to_numpy() for name, column in numbers.items()},
            "Guide: sensitivity": [advice[role].sensitivity for role in grouped.index],
            "Guide: least bits": [advice[role].minimum_bits for role in grouped.index],
        }
    )
    st.dataframe(
        table,
        hide_index=True,
        column_config={name: st.column_config.NumberColumn(format="%.2e", help="Nats per token.") for name in numbers},
    )


def every_score(frame: pd.DataFrame) -> None:
    """All scores, each with its error and how it was found."""
    shown = [name for name in _COLUMNS if name in frame]
    st.dataframe(frame[shown], hide_index=True, column_config=_COLUMNS)


def download(profile: SensitivityProfile) -> None:
    """The profile as a document."""
    st.download_button(
        "Download the profile (JSON)",
        lambda: profile.model_dump_json(indent=1),
        "profile.json",
        "application/json",
        on_click="ignore",
        icon=":material/download:",
        help="The file that `python -m advisor plan` reads.",
    )


def exact_share(frame: pd.DataFrame) -> str:
    """`31 of 422 exact`."""
    return f"{(frame['how'] == frames.EXACT).sum():,} of {len(frame):,} exact"
