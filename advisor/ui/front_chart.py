"""Charts of what is possible: the Pareto front of size against loss, and the guide's marks on a scale of rises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import altair as alt
import pandas as pd

from advisor.knowledge import perplexity_marks
from advisor.types import FrontPoint, Plan
from advisor.ui import chart_parts as parts
from advisor.ui import frames, palette, wording

PICK, NUMBER = "picked", "number"
_TICKS = (-5, -1, 0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000)
_TITLE = "predicted rise of perplexity (%)"
_MOST = 1e5  # percent; what lies above ruins a model anyway
_SHAPES = ("diamond", "square", "triangle-up", "cross", "triangle-down", "triangle-right", "triangle-left", "stroke")


def pareto_front(
    points: Sequence[FrontPoint],
    simple: Mapping[str, FrontPoint],
    plan: FrontPoint | None,
    measure: frames.SizeMeasure,
    limit: float | None = None,
    dark: bool = False,
) -> alt.LayerChart:
    """Size against the predicted rise of perplexity: the front with its 95 % band, simple plans, and this plan.

    A click on a point of the front selects it: the selection `PICK` holds its `NUMBER` in `points`.

    Args:
        plan: where it stands; None where there is none.
        limit: in the unit of `measure`; None draws no rule.
    """
    frame = frames.front_frame(points, measure).assign(**{NUMBER: range(len(points))})
    others = frames.front_frame(simple.values(), measure).assign(plan=[wording.labelled(name) for name in simple])
    here = frames.front_frame([plan] if plan else [], measure).assign(plan="this plan")
    everything = pd.concat([frame, others, here])
    low, high = everything["size"].min(), everything["size"].max()
    margin = 0.03 * (high - low) or 1.0
    x_scale = alt.Scale(domain=[low - margin, high + margin], nice=False)
    x = alt.X("size:Q", title=measure.title, scale=x_scale, axis=alt.Axis(format=parts.DECIMAL, tickCount=8))
    y_scale = _rise_scale(everything)
    also = parts.brief({"x": x, "y": _rises(y_scale)})
    curve = alt.Chart(frame).encode(x=also["x"])
    band = curve.mark_area(color=palette.PREDICTED, opacity=0.2, interpolate="linear").encode(**_interval())
    line = curve.mark_line(color=palette.PREDICTED, strokeWidth=2).encode(y=also["y"])
    picked = alt.selection_point(name=PICK, fields=[NUMBER])
    dots = (
        curve.mark_circle(color=palette.PREDICTED, size=70, opacity=1, cursor="pointer", stroke=palette.page(dark))
        .encode(y=also["y"], tooltip=_tooltips(), detail=alt.Detail(f"{NUMBER}:Q"))
        .add_params(picked)
    )
    layers = [*_marks(x, _rises(y_scale), dark), band, line, dots]
    if limit is not None and low <= limit <= high:
        layers += parts.rule(limit, "limit", dark, dashed=True, after=limit < (low + high) / 2)
    if len(here):
        layers += _this_plan(here, also, x_scale, dark)
    if len(others):  # last, or the name of this plan would hide one beside it
        layers.append(_simple_plans(others, also, dark))
    return alt.layer(*layers, height=340)


def point_of(plan: Plan) -> FrontPoint:
    """A plan as a point among those of the front; its memory is that of one GPU, as limits count it."""
    return FrontPoint(
        bytes=plan.memory.total_bytes,
        weights_bytes=plan.memory.model_weights_bytes,
        decided_bits=plan.memory.decided_bits,
        loss=plan.predicted.kl,
        predicted=plan.predicted,
        tokens_per_s=plan.latency.tokens_per_s if plan.latency else None,
    )


def sentence(points: Sequence[FrontPoint]) -> str:
    """From where to where the front goes, for those who do not see it."""
    low, high = points[0], points[-1]
    return (
        f"Pareto front from {low.decided_bits:.2f} bits ({wording.percent(low.predicted.delta_ppl_pct)} perplexity) to "
        f"{high.decided_bits:.2f} bits ({wording.percent(high.predicted.delta_ppl_pct)})."
    )


def rise_scale(low: float, high: float, dark: bool = False) -> alt.LayerChart:
    """The guide's marks along a slider from `low` to `high` percent: each stretch with its name."""
    marks = perplexity_marks()
    edges = [low, marks.acceptable.value, marks.limit.value, marks.poor.value, high]
    names = ("fine", "acceptable", "too much", "poor")
    rows = [
        {"start": start, "end": end, "middle": (start + end) / 2, "name": name, "room": (end - start) / (high - low)}
        for name, (start, end) in zip(names, pairwise(edges), strict=True)
        if end > start
    ]
    frame = pd.DataFrame(rows)
    x = alt.X(
        "start:Q",
        title=None,
        scale=alt.Scale(domain=[low, high], nice=False),
        axis=alt.Axis(
            values=edges[1:-1], format=parts.DECIMAL, labelExpr="datum.label + ' %'", grid=False, domain=False
        ),
    )
    colours = [palette.GOOD, palette.GOOD, palette.PREDICTED, palette.BAD]
    bars = (
        alt.Chart(frame)
        .mark_bar(height=6)
        .encode(
            x=x,
            x2=alt.X2("end:Q"),
            y=alt.YValue(20),
            color=alt.Color("name:N", legend=None, scale=alt.Scale(domain=list(names), range=colours)),
            opacity=alt.OpacityValue(1, condition={"test": "datum.name == 'acceptable'", "value": 0.55}),
            tooltip=[alt.Tooltip("name:N", title="a rise here is")],
        )
    )
    # A stretch too narrow for its name keeps its colour and the numbers at its ends.
    text = (
        alt.Chart(frame[frame["room"] > 0.12])
        .mark_text(baseline="top", fontSize=11, color=palette.ink(dark))
        .encode(x=alt.X("middle:Q"), y=alt.YValue(2), text=alt.Text("name:N"))
    )
    return alt.layer(bars, text, height=64)


def _rise_scale(frame: pd.DataFrame) -> alt.Scale:
    """Linear within one percent, beyond it logarithmic: the best plans and the worst are all told apart."""
    low, high = min(0.0, frame["low"].min()), max(perplexity_marks().poor.value * 1.3, frame["high"].max() * 1.1)
    return alt.Scale(type="symlog", constant=1, domain=[max(low, -50.0), min(high, _MOST)], nice=False, clamp=True)


def _rises(scale: alt.Scale) -> alt.Y:
    low, high = scale.domain
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    # Their number too: of the layers that leave the axis to this one, Vega would take every second tick.
    axis = alt.Axis(
        values=ticks,
        tickCount=len(ticks),
        format="~s" if high >= 10_000 else "d",
        labelFlush=False,
        labelOverlap=False,
    )
    return alt.Y("rise:Q", title=_TITLE, scale=scale, axis=axis)


def _interval() -> dict[str, alt.Y | alt.Y2]:
    """From the low end of a prediction to its high end."""
    return {"y": alt.Y("low:Q", title=_TITLE), "y2": alt.Y2("high:Q")}


def _marks(x: alt.X, y: alt.Y, dark: bool) -> list[alt.Chart]:
    """The guide's marks: up to where a rise is accepted, and where it is poor; with the axes of the whole picture."""
    guide = perplexity_marks()
    right = x["scale"].domain[1]
    frame = pd.DataFrame(
        [
            {"rise": guide.acceptable.value, "size": right, "text": f"below {guide.acceptable.value:g} %: fine"},
            {"rise": guide.limit.value, "size": right, "text": f"below {guide.limit.value:g} %: acceptable"},
            {"rise": guide.poor.value, "size": right, "text": f"above {guide.poor.value:g} %: poor"},
        ]
    )
    base = alt.Chart(frame)
    rules = base.mark_rule(color=palette.quiet(dark), strokeDash=[4, 4], strokeWidth=1)
    text = base.mark_text(align="right", baseline="bottom", dy=-2, dx=-2, color=palette.ink(dark), fontSize=11)
    return [rules.encode(y=y), text.encode(x=x, y=parts.brief({"y": y})["y"], text=alt.Text("text:N"))]


def _simple_plans(frame: pd.DataFrame, axes: Mapping[str, alt.X | alt.Y], dark: bool) -> alt.Chart:
    names = list(frame["plan"])
    widest = 30 + 7 * max(map(len, names))  # pixels, with the symbol
    shapes = [_SHAPES[number % len(_SHAPES)] for number in range(len(names))]
    return (
        alt.Chart(frame)
        .mark_point(size=110, filled=True, opacity=1, color=palette.BAR, stroke=palette.page(dark), strokeWidth=1)
        .encode(
            **axes,
            shape=alt.Shape(
                "plan:N",
                scale=alt.Scale(domain=names, range=shapes),
                legend=alt.Legend(
                    title=None,
                    orient="top",
                    columns=alt.expr(f"max(1, floor(width / {widest}))"),
                    labelLimit=0,
                    symbolSize=90,
                    symbolFillColor=palette.BAR,
                    symbolStrokeColor=palette.BAR,
                ),
            ),
            tooltip=[alt.Tooltip("plan:N"), *_tooltips()],
        )
    )


def _this_plan(
    frame: pd.DataFrame, axes: Mapping[str, alt.X | alt.Y], x_scale: alt.Scale, dark: bool
) -> list[alt.Chart]:
    ink = palette.ink(dark)
    base = alt.Chart(frame)
    interval = base.mark_rule(color=ink, strokeWidth=2).encode(x=axes["x"], **_interval())
    ring = base.mark_point(size=230, filled=False, color=ink, strokeWidth=2.5, opacity=1).encode(
        **axes, tooltip=[alt.Tooltip("plan:N"), *_tooltips()]
    )
    left, right = x_scale.domain
    # The curve falls from the upper left: its name lies below it, or well above it, and above simple plans beside it,
    # where the axis is near.
    near = frame["size"].iloc[0] < left + (right - left) / 4
    place = {"align": "left", "baseline": "bottom"} if near else {"align": "right", "baseline": "top"}
    side = 1 if near else -1
    name = base.encode(**axes, text=alt.Text("plan:N"))
    return [interval, ring, *parts.text(name, dark, **place, dx=10 * side, dy=-22 if near else 8, fontWeight="bold")]


def _tooltips() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("change:N", title="change of perplexity"),
        alt.Tooltip("perplexity:N", title="perplexity"),
        alt.Tooltip("interval:N", title="95 % interval"),
        alt.Tooltip("bits:Q", title="bits on average", format=".2f"),
        alt.Tooltip("weights:N", title="weights"),
        alt.Tooltip("used:N", title="counted"),
        alt.Tooltip("speed:N", title="speed, estimated"),
    ]
