"""Charts of what is possible: the Pareto front of size against loss, and the guide's marks on a scale of rises."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import altair as alt
import pandas as pd

from advisor.knowledge import perplexity_marks
from advisor.types import FrontPoint, Plan
from advisor.ui import chart_parts as parts
from advisor.ui import frames, palette, wording

PICK, NUMBER, BESIDE = "picked", "number", "beside"
_THIS_PLAN = "this plan"
_NEAR_THE_END = 14  # pixels: a number as close to the end of its axis is moved inwards, not cut
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
) -> parts.Picture:
    """Size against the predicted rise of perplexity: the front with its 95 % band, simple plans, and this plan.

    A click on a point of the front selects it: the selection `PICK` holds its `NUMBER` in `points`.

    Args:
        plan: where it stands; None where there is none.
        limit: in the unit of `measure`; None draws no rule.
    """
    # Of a point that is selected already a browser tells no click: what it was chosen beside belongs to its identity.
    beside = f"{limit} {plan.bytes if plan else 0}"
    frame = frames.front_frame(points, measure).assign(**{NUMBER: range(len(points)), BESIDE: beside})
    others = frames.front_frame(simple.values(), measure).assign(plan=[wording.labelled(name) for name in simple])
    here = frames.front_frame([plan] if plan else [], measure).assign(plan=_THIS_PLAN)
    everything = pd.concat([frame, others, here])
    low, high = everything["size"].min(), everything["size"].max()
    margin = 0.03 * (high - low) or 1.0
    limits = [limit] if limit is not None and low <= limit <= high else []
    picture = _picture(
        measure.title,
        sizes=(low - margin, high + margin),
        rises=_rises_shown(everything),
        names=(*here["plan"], *others["plan"]),
        limit_in_front=any(one < (low + high) / 2 for one in limits),
        in_memory=measure.in_memory,
        dark=dark,
    )
    marks = pd.DataFrame(_marks()).assign(size=high + margin)
    data = {"points": frame, "simple": others, "here": here, "limit": pd.DataFrame({"x": limits}), "marks": marks}
    return parts.Picture(picture, data)


@lru_cache(maxsize=64)
def _picture(
    title: str,
    sizes: tuple[float, float],
    rises: tuple[float, float],
    names: tuple[str, ...],
    limit_in_front: bool,
    in_memory: bool,
    dark: bool,
) -> dict[str, Any]:
    """The specification, which stays the same while a limit is moved.

    Args:
        sizes, rises: what the axes reach from and to.
        names: of the plans in the legend: this plan where there is one, then the simple plans.
        limit_in_front: the limit is on the left, where its name has no room before.
        in_memory: size is memory in use.
    """
    tooltips = _tooltips(in_memory)
    size_axis = alt.Axis(format=parts.DECIMAL, tickCount=8, labelFlush=_NEAR_THE_END)
    x = alt.X("size:Q", title=title, scale=alt.Scale(domain=list(sizes), nice=False), axis=size_axis)
    y = _rises(rises)
    also = parts.brief({"x": x, "y": y})
    curve = alt.Chart(alt.NamedData("points")).encode(x=also["x"])
    band = curve.mark_area(color=palette.PREDICTED, opacity=0.2, interpolate="linear").encode(**_interval())
    line = curve.mark_line(color=palette.PREDICTED, strokeWidth=2).encode(y=also["y"])
    dots = (
        curve.mark_circle(color=palette.PREDICTED, size=70, opacity=1, cursor="pointer", stroke=palette.page(dark))
        .encode(y=also["y"], tooltip=tooltips, detail=alt.Detail(f"{NUMBER}:Q"))
        .add_params(_pick())
    )
    layers = [*_guide(x, y, dark), band, line]
    looks, named = _looks(names, dark), set(names)
    if _THIS_PLAN in named:
        layers += _this_plan(also, looks, tooltips, dark)
    # Points lie over the ring, or those beside this plan could not be clicked.
    layers += [dots, *parts.rule(alt.NamedData("limit"), "limit", dark, dashed=True, after=limit_in_front)]
    if named - {_THIS_PLAN}:
        simple = alt.Chart(alt.NamedData("simple")).mark_rule(color=palette.BAR, strokeWidth=1.5, opacity=0.7)
        layers.append(simple.encode(x=also["x"], **_interval()))
        layers.append(_named("simple", also, looks, tooltips).mark_point(size=110, opacity=1, strokeWidth=1))
    return parts.specification(alt.layer(*layers, height=340))


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


def _pick() -> alt.Parameter:
    """A click on a point of the front; a picture's other marks, which would answer too, have no number."""
    on = f"click[event.item && event.item.datum && isValid(event.item.datum.{NUMBER})]"
    return alt.selection_point(name=PICK, fields=[NUMBER, BESIDE], on=on, clear=False)


def _rises_shown(frame: pd.DataFrame) -> tuple[float, float]:
    """From the least rise to the largest, in percent, and to where a rise is poor in any case."""
    low, high = min(0.0, frame["low"].min()), max(perplexity_marks().poor.value * 1.3, frame["high"].max() * 1.1)
    return max(low, -50.0), min(high, _MOST)


def _rises(shown: tuple[float, float]) -> alt.Y:
    """Linear within one percent, beyond it logarithmic: the best plans and the worst are all told apart."""
    low, high = shown
    scale = alt.Scale(type="symlog", constant=1, domain=[low, high], nice=False, clamp=True)
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


def _marks() -> list[dict[str, object]]:
    """The guide's marks: up to where a rise is accepted, and where it is poor."""
    guide = perplexity_marks()
    return [
        {"rise": guide.acceptable.value, "text": f"below {guide.acceptable.value:g} %: fine"},
        {"rise": guide.limit.value, "text": f"below {guide.limit.value:g} %: acceptable"},
        {"rise": guide.poor.value, "text": f"above {guide.poor.value:g} %: poor"},
    ]


def _guide(x: alt.X, y: alt.Y, dark: bool) -> list[alt.Chart]:
    """The guide's marks as lines with their names at the right end, and with the axes of the whole picture."""
    base = alt.Chart(alt.NamedData("marks"))
    rules = base.mark_rule(color=palette.quiet(dark), strokeDash=[4, 4], strokeWidth=1)
    # The lowest has its name below it: where the chart is narrow there is no room for two names between the lines.
    lowest = f"datum.rise == {perplexity_marks().acceptable.value:g}"
    place = {"baseline": alt.expr(f"{lowest} ? 'top' : 'bottom'"), "dy": alt.expr(f"{lowest} ? 3 : -2")}
    text = base.mark_text(align="right", dx=-2, color=palette.ink(dark), fontSize=11, **place)
    return [rules.encode(y=y), text.encode(x=x, y=parts.brief({"y": y})["y"], text=alt.Text("text:N"))]


def _looks(names: Sequence[str], dark: bool) -> dict[str, alt.Shape | alt.Fill | alt.Stroke]:
    """A ring for this plan and a shape for each simple one, in one legend above the chart.

    A name beside the ring would lie over the limit that the plan fills, or over what stands close to it.
    """
    widest = 30 + 7 * max(map(len, names), default=0)  # pixels, with the symbol
    legend = alt.Legend(
        title=None,
        orient="top",
        columns=alt.expr(f"max(1, floor(width / {widest}))"),
        labelLimit=0,
        symbolSize=90,
        symbolStrokeWidth=2,
    )
    own = [name == _THIS_PLAN for name in names]
    shapes = itertools.cycle(_SHAPES)
    looks = {
        alt.Shape: ["circle" if mine else next(shapes) for mine in own],
        alt.Fill: ["transparent" if mine else palette.BAR for mine in own],
        alt.Stroke: [palette.ink(dark) if mine else palette.page(dark) for mine in own],
    }
    return {
        channel.__name__.lower(): channel("plan:N", scale=alt.Scale(domain=list(names), range=look), legend=legend)
        for channel, look in looks.items()
    }


def _named(
    data: str,
    axes: Mapping[str, alt.X | alt.Y],
    looks: Mapping[str, alt.Shape | alt.Fill | alt.Stroke],
    tooltips: list[alt.Tooltip],
) -> alt.Chart:
    return alt.Chart(alt.NamedData(data)).encode(**axes, **looks, tooltip=[alt.Tooltip("plan:N"), *tooltips])


def _this_plan(
    axes: Mapping[str, alt.X | alt.Y],
    looks: Mapping[str, alt.Shape | alt.Fill | alt.Stroke],
    tooltips: list[alt.Tooltip],
    dark: bool,
) -> list[alt.Chart]:
    """A ring with its interval."""
    base = alt.Chart(alt.NamedData("here"))
    interval = base.mark_rule(color=palette.ink(dark), strokeWidth=2).encode(x=axes["x"], **_interval())
    return [interval, _named("here", axes, looks, tooltips).mark_point(size=230, strokeWidth=2.5, opacity=1)]


def _tooltips(in_memory: bool) -> list[alt.Tooltip]:
    used = [alt.Tooltip("used:N", title="memory in use")] if in_memory else []
    return [
        alt.Tooltip("change:N", title="change of perplexity"),
        alt.Tooltip("perplexity:N", title="perplexity"),
        alt.Tooltip("interval:N", title="95 % interval"),
        alt.Tooltip("bits:Q", title="bits on average", format=".2f"),
        alt.Tooltip("weights:N", title="weights"),
        *used,
        alt.Tooltip("speed:N", title="speed, estimated"),
    ]
