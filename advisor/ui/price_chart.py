"""The chart of one layer's other formats by their price: what a MiB more would win, or a MiB less would cost."""

from __future__ import annotations

import altair as alt
import pandas as pd

from advisor.knowledge import find_format, formats
from advisor.planner.prices import Step
from advisor.ui import chart_parts as parts
from advisor.ui import palette, wording

_ROW = 34
# So many times less than a MiB is worth, and prices are not told apart: they stand at the edge.
_LEAST = 1e-3
_TITLE = "nats per token and MiB, in powers of ten"


def prices_of(layer: str, steps: list[Step], worth: float, dark: bool = False) -> alt.LayerChart:
    """A row for each other format that the layer could have, its price as a triangle, and a line for the worth.

    A larger one points up and would be worth its bytes right of the line; a smaller one points down and would be worth
    its loss left of it. Ticks are all other layers in either of a row's two formats, in the colour of their own.

    Args:
        steps: of the whole plan, at least one of this layer.
        worth: of a byte in the plan, more than 0.
    """
    frame = price_frame(layer, steps)
    own = frame[frame["own"]]
    low, high = worth * wording.MIB * _LEAST, max(frame["price"].max(), worth * wording.MIB) * 1.6
    frame, own = (one.assign(price=one["price"].clip(low, high)) for one in (frame, own))
    rows = list(dict.fromkeys(own["row"]))
    x = alt.X(
        "price:Q",
        title=_TITLE,
        scale=alt.Scale(type="log", domain=[low / 1.4, high], nice=False),
        axis=alt.Axis(values=parts.powers(low, high, at_least=2), format=".0e", grid=False),
    )
    y = alt.Y("row:N", sort=rows, title=None, scale=alt.Scale(domain=rows), axis=parts.names_axis())
    inks = {wording.format_label(name): ink for name, ink in palette.format_colours(formats()).items()}
    colours = {label: ink for label, ink in inks.items() if label in set(frame["chosen"])}
    colour = alt.Color(
        "chosen:N",
        scale=alt.Scale(domain=list(colours), range=list(colours.values())),
        legend=alt.Legend(title=None, orient="top", symbolType="square", labelLimit=200),
    )
    tooltip = [
        alt.Tooltip("layer:N", title="layer"),
        alt.Tooltip("chosen:N", title="format"),
        alt.Tooltip("other:N", title="instead"),
        alt.Tooltip("said:N", title="nats per MiB"),
    ]
    ticks = (
        alt.Chart(frame[~frame["own"]])
        .mark_tick(thickness=2, size=20, opacity=0.75)
        .encode(x=x, y=y, color=colour, tooltip=tooltip)
    )
    marks = (
        alt.Chart(own)
        .mark_point(filled=True, size=220, opacity=1, fill=palette.ink(dark), stroke=palette.page(dark), strokeWidth=2)
        .encode(x=x, y=y, shape=alt.Shape("shape:N", scale=None), tooltip=tooltip)
    )
    line = parts.rule(worth * wording.MIB, "what a MiB is worth in this plan", dark, dashed=True)
    return alt.layer(ticks, *line, marks, height=_ROW * len(rows) + 130)


def price_frame(layer: str, steps: list[Step]) -> pd.DataFrame:
    """A row per step of the layer, and per step of another between the same two formats."""
    own = sorted((step for step in steps if step.layer == layer), key=lambda step: -find_format(step.other).bits)
    pairs = {frozenset((step.chosen, step.other)): step for step in own}
    rows = []
    for step in [*own, *(step for step in steps if step.layer != layer)]:
        pair = pairs.get(frozenset((step.chosen, step.other)))
        if pair is not None:
            rows.append(
                {
                    "layer": step.layer,
                    "row": f"{'larger' if pair.larger else 'smaller'}: {wording.format_label(pair.other)}",
                    "chosen": wording.format_label(step.chosen),
                    "other": wording.format_label(step.other),
                    "price": step.price * wording.MIB,
                    "said": wording.number(step.price * wording.MIB, 2),
                    "own": step.layer == layer,
                    "shape": "triangle-up" if step.larger else "triangle-down",
                }
            )
    return pd.DataFrame(rows)
