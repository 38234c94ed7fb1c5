"""The chart of a blind test: how many pairs each side won, as one bar from the plan's to the original's."""

from __future__ import annotations

import altair as alt
import pandas as pd

from advisor.types import PreferenceResult
from advisor.ui import palette

_COLOURS = {
    "plan preferred": palette.FAMILIES["int8"],
    "about equal": "#8d97a5",
    "identical": "#b4bcc7",
    "no vote": "#d5dae1",
    "original preferred": palette.FAMILIES["bf16"],
}


def counts(found: PreferenceResult) -> dict[str, int]:
    """What became of the pairs, from the plan's to the original's; what did not happen is left out."""
    told = (found.plan, found.equal, found.identical, found.unvoted, found.original)
    return {name: count for name, count in zip(_COLOURS, told, strict=True) if count}


def shares(found: PreferenceResult, dark: bool = False) -> alt.LayerChart:
    """One bar over all pairs, in the order of `counts`, each part with its number."""
    told = counts(found)
    frame = pd.DataFrame(
        [
            {"what": name, "pairs": count, "order": place, "ink": palette.ink_on(_COLOURS[name])}
            for place, (name, count) in enumerate(told.items())
        ]
    )
    ends = frame["pairs"].cumsum()
    frame = frame.assign(start=ends - frame["pairs"], end=ends, middle=ends - frame["pairs"] / 2)
    bars = (
        alt.Chart(frame)
        .mark_bar(height=34, stroke=palette.page(dark), strokeWidth=2, cornerRadius=3)
        .encode(
            x=alt.X("start:Q", title=None, axis=None, scale=alt.Scale(domain=[0, found.prompts], nice=False)),
            x2="end:Q",
            color=alt.Color(
                "what:N",
                title=None,
                scale=alt.Scale(domain=list(told), range=[_COLOURS[name] for name in told]),
                legend=alt.Legend(orient="top", direction="horizontal", symbolType="square"),
            ),
            tooltip=[alt.Tooltip("what:N", title="pairs"), alt.Tooltip("pairs:Q", title="number")],
        )
    )
    numbers = (
        alt.Chart(frame)
        .mark_text(fontSize=13, fontWeight=600)
        .encode(x="middle:Q", text="pairs:Q", color=alt.Color("ink:N", scale=None))
    )
    return alt.layer(bars, numbers, height=88).resolve_scale(color="independent")
