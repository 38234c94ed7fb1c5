"""The layers with the largest scores, ranked: bars from zero, or marks on a scale of powers of ten."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import altair as alt
import pandas as pd

from advisor.ui import chart_parts as parts
from advisor.ui import frames, palette

# Where the largest score is more than so many times the median, bars of all others are stumps.
_FLATTENED = 8


def flattened(frame: pd.DataFrame, measure: frames.Measure, top: int) -> bool:
    """Whether a few of the `top` largest scores leave the bars of the others too short to compare."""
    shown = frame[measure.key].nlargest(top)
    return bool(not measure.signed and len(shown) and shown.max() > _FLATTENED * shown.median() > 0)


def ranked_layers(
    frame: pd.DataFrame,
    measure: frames.Measure,
    top: int = 20,
    floor: float | None = None,
    dark: bool = False,
    picked: str | None = None,
    powers: bool = False,
) -> parts.Picture:
    """The `top` layers with the largest scores, largest first, with one standard error to each side.

    Estimates are hollow where others were measured exactly.

    Args:
        frame: one row per scored layer.
        floor: KL that the compute dtype's rounding alone causes.
        picked: the layer whose mark is framed, until a click picks another (`parts.pick`); None: marks to look at.
        powers: marks on a logarithmic scale instead of bars, which begin at zero and would claim a length there.
    """
    mixed = frame["how"].nunique() > 1
    frame = frame.nlargest(top, measure.key)
    value, error = frame[measure.key], frame[f"{measure.key}_stderr"]
    filled = ((frame["how"] == frames.EXACT) | (not mixed)).map({True: 1.0, False: 0.12})
    frame = frame.assign(shown=value, low=value - error, high=value + error, filled=filled)
    reach = _reach(frame) if powers else None
    if reach:  # a whisker that reaches zero or below runs to the edge
        cut = {name: frame[name].clip(lower=reach[0]) for name in ("shown", "low", "high")}
        frame = frame.assign(**cut, edge=reach[0])
    # Where the floor is next to nothing its rule would hide behind the axis.
    least = reach[0] if reach else 0.01 * value.max()
    floors = [floor] if measure.key == "kl" and floor and len(frame) and floor > least else []
    labels = tuple(frame["label"])
    picture = _ranked(measure, labels, tuple(frame), reach, bool(floors), dark, picked is not None)
    data = {"scores": frame} | ({"floor": pd.DataFrame({"x": floors})} if floors else {})
    return parts.Picture(parts.picking(picture, picked), data)


@lru_cache(maxsize=64)
def _ranked(
    measure: frames.Measure,
    labels: tuple[str, ...],
    columns: tuple[str, ...],
    reach: tuple[float, float] | None,
    floor: bool,
    dark: bool,
    clicks: bool,
) -> dict[str, Any]:
    """The specification; `reach` are both ends of a logarithmic axis, None for bars."""
    axis = alt.Axis(tickCount=6, format=parts.DECIMAL, labelFlush=False)
    x = alt.X("shown:Q", title=measure.title, axis=axis)
    if reach:
        written = {"format": ".0e"} if reach[0] < 1e-4 else {"format": parts.DECIMAL}
        x = alt.X(
            "shown:Q",
            title=measure.title,
            scale=alt.Scale(type="log", domain=list(reach), nice=False),
            axis=alt.Axis(values=parts.powers(*reach, at_least=5), **written),
        )
    y = alt.Y("label:N", sort=list(labels), title=None, axis=parts.names_axis())
    chart = alt.Chart(alt.NamedData("scores"))
    marks = (
        chart.mark_point(shape="circle", size=110, fill=palette.BAR, opacity=1)
        if reach
        else chart.mark_bar(color=palette.BAR, height=alt.RelativeBandSize(0.62), cornerRadiusEnd=2)
    ).encode(
        y=y,
        x=x,
        stroke=alt.StrokeValue(palette.BAR),
        fillOpacity=alt.FillOpacity("filled:Q", scale=None),
        tooltip=parts.measure_tooltips(columns, measure),
    )
    if clicks:
        chosen = parts.pick()
        marks = marks.encode(
            stroke=alt.StrokeValue(palette.BAR, condition=parts.where(chosen, palette.ink(dark))),
            strokeWidth=alt.StrokeWidthValue(1, condition=parts.where(chosen, 3)),
        ).add_params(chosen)
    errors = parts.error_bars(alt.NamedData("scores"), y, "low", "high", palette.ink(dark))
    # A line leads from each name to its mark; whiskers lie on bars, and behind marks.
    leaders = chart.mark_rule(color=palette.faint(dark)).encode(y=y, x=alt.X("edge:Q"), x2=alt.X2("shown:Q"))
    layers = [leaders, *errors, marks] if reach else [marks, *errors]
    if floor:
        layers += parts.rule(alt.NamedData("floor"), "noise floor", dark, dashed=True, after=True)
    return parts.specification(alt.layer(*layers, height=max(90, 21 * len(labels) + 20)))


def _reach(frame: pd.DataFrame) -> tuple[float, float]:
    """Both ends of a logarithmic axis: all marks on it, and a whisker down to a third of the smallest one."""
    positive = frame["shown"][frame["shown"] > 0]
    least = float(positive.min()) if len(positive) else 1e-6
    low = max(least / 3, float(frame["low"].min()))
    return low / 1.2, 1.15 * max(float(frame["high"].max()), least)
