"""The chart of sensitivity against parameters: where bytes are cheap to save, and where they are dear."""

from __future__ import annotations

import math
from itertools import pairwise

import altair as alt
import pandas as pd

from advisor.ui import chart_parts as parts
from advisor.ui import frames, palette, wording

_WIDEST = 0.16  # powers of ten over which the layers of one size are spread
_HEIGHT = 400
# Of the square around a mark (pixels): what is pointed fills less of it.
_AREA, _AREAS = 80, {"diamond": 120, "triangle-up": 120, "triangle-down": 120, "cross": 100}


def sensitivity_by_size(
    frame: pd.DataFrame, measure: frames.Measure, dark: bool = False, picked: str | None = None
) -> alt.LayerChart:
    """Parameters across, KL (or KL per MiB) up, both in powers of ten; roles differ in shape and colour.

    Layers of one size stand side by side from the first block to the last. The dashed line is the mean price of a MiB:
    bytes are dearer above it. Whiskers are one standard error to each side.

    Args:
        frame: one row per scored layer; those whose format saves no bytes are left out.
        measure: `kl` or `kl_per_mib`.
        picked: the layer whose mark is framed, until a click picks another (`parts.pick`); None: marks to look at.
    """
    frame = frame[frame["saved"] > 0]
    low, high = parts.kl_domain(frame, measure.key)
    low, high = low / 1.5, high * 1.5
    value, error = frame[measure.key], frame[f"{measure.key}_stderr"]
    # What has no logarithm, a KL of zero or one won by chance below it, stands at the lower edge.
    frame = frame.assign(
        across=spread(frame),
        shown=value.clip(low, high),
        low=(value - error).clip(low, high),
        high=(value + error).clip(low, high),
    )
    y_scale = alt.Scale(type="log", domain=[low, high], nice=False)
    x = _parameters(frame)
    y = alt.Y("shown:Q", title=measure.title, scale=y_scale, axis=alt.Axis(values=_powers(low, high), format=".0e"))
    whiskers = (
        alt.Chart(frame)
        .mark_rule(color=palette.quiet(dark), opacity=0.7)
        .encode(x=x, y=alt.Y("low:Q", scale=y_scale, title=measure.title), y2=alt.Y2("high:Q"))
    )
    marks = _marks(frame, x, y, measure, dark)
    layers = [*_mean_price(frame, measure, x, y_scale, dark), whiskers, marks]
    if picked is not None:
        outline = alt.Chart(frame).mark_point(shape="circle", size=340, fill=None, opacity=1)
        layers += parts.rings(outline, {"x": x, "y": y}, parts.pick(picked), dark, cells=False)
    return alt.layer(*layers, height=_HEIGHT)


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten between both; both themselves where there is none."""
    found = [10.0**exponent for exponent in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    return found or [low, high]


def mean_price(frame: pd.DataFrame) -> float:
    """KL of all layers over the MiB that they save (nats per token and MiB)."""
    saving = frame[frame["saved"] > 0]
    return float(saving["kl"].sum() / (saving["saved"].sum() / wording.MIB)) if len(saving) else 0.0


def spread(frame: pd.DataFrame) -> pd.Series:
    """Parameters of each row, moved a little: layers of one size lie side by side, from the first block to the last.

    Less than the gap to the next size, so that sizes stay apart; layers outside of the blocks are not moved.
    """
    sizes = sorted(set(frame["parameters"]))
    gaps = [math.log10(after / before) for before, after in pairwise(sizes)]
    width = min([_WIDEST, *(0.6 * gap for gap in gaps)])
    blocks = frame["block"].astype(float)
    depth = (blocks - blocks.min()) / max(blocks.max() - blocks.min(), 1) - 0.5
    return frame["parameters"] * 10 ** (width * depth.fillna(0.0))


def _parameters(frame: pd.DataFrame) -> alt.X:
    low, high = (float(edge) for edge in (frame["across"].min(), frame["across"].max())) if len(frame) else (1e3, 1e6)
    return alt.X(
        "across:Q",
        title="parameters",
        scale=alt.Scale(type="log", domain=[low / 1.3, high * 1.3], nice=False),
        axis=alt.Axis(format="~s", tickCount=5, grid=False),
    )


def _marks(frame: pd.DataFrame, x: alt.X, y: alt.Y, measure: frames.Measure, dark: bool) -> alt.Chart:
    roles = list(dict.fromkeys(frame["role"]))
    colours, shapes = ([palette.ROLES[role][part] for role in roles] for part in (0, 1))
    sizes = [_AREAS.get(shape, _AREA) for shape in shapes]
    legend = alt.Legend(
        title=None, orient="top", columns=alt.expr("width < 560 ? 2 : 6"), symbolStrokeWidth=0, labelLimit=200
    )
    return (
        alt.Chart(frame)
        .mark_point(filled=True, opacity=0.92, stroke=palette.page(dark), strokeWidth=0.8, cursor="pointer")
        .encode(
            x=x,
            y=y,
            color=alt.Color("role:N", scale=alt.Scale(domain=roles, range=colours), legend=legend),
            shape=alt.Shape("role:N", scale=alt.Scale(domain=roles, range=shapes), legend=legend),
            size=alt.Size("role:N", scale=alt.Scale(domain=roles, range=sizes), legend=legend),
            detail=alt.Detail(f"{parts.PICKED}:N"),
            tooltip=parts.measure_tooltips(frame, measure),
        )
    )


def _mean_price(
    frame: pd.DataFrame, measure: frames.Measure, x: alt.X, y_scale: alt.Scale, dark: bool
) -> list[alt.Chart]:
    """The price of a MiB over all layers as a line with its name; nothing where chance makes it zero or less."""
    price = mean_price(frame)
    if price <= 0:
        return []
    edges, ends = list(x["scale"].domain), [price, price]
    if measure.key == "kl":
        per_parameter = price * frame["saved"].sum() / wording.MIB / frame["parameters"].sum()
        # Cut off where it leaves the picture: a clip path, as a gradient, is lost when a choice changes the link.
        low, high = (edge / per_parameter for edge in y_scale.domain)
        edges = [min(max(edge, low), high) for edge in edges]
        ends = [edge * per_parameter for edge in edges]
    y = alt.Y("shown:Q", scale=y_scale, title=measure.title)
    line = alt.Chart(pd.DataFrame({"across": edges, "shown": ends}))
    name = alt.Chart(pd.DataFrame({"across": edges[1:], "shown": ends[1:]}))
    rule = line.mark_line(color=palette.ink(dark), strokeDash=[5, 4], strokeWidth=1.4)
    text = name.mark_text(align="right", baseline="top", dx=-4, dy=24, color=palette.ink(dark), fontSize=12)
    return [rule.encode(x=x, y=y), text.encode(x=x, y=y, text=alt.TextValue("mean price of a MiB"))]
