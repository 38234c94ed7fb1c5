"""The parts that the charts share: axes of the block x module grid, colour scales, rules, error bars, tooltips."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import altair as alt
import pandas as pd

from advisor.types import Catalogue, Layer
from advisor.ui import frames, palette, wording

PICK, PICKED = "picked", "layer"  # a click selects what has this field
ROW_HEIGHT = 30
RING_WIDTH = 2.5
# Decimal, as people read: without digits of its own Vega writes 120 in steps of ten as `1.2e+2`.
DECIMAL = ",.6~r"
NAME_WIDTH = 22  # pixels that `INT4` needs at the smallest size that people read


def _rows(frame: pd.DataFrame) -> dict[str, list[dict[str, object]]]:
    """A frame as altair puts it into a specification: numbers that are none, or infinite, are null.

    Altair's own way asks of every column what it is, which took most of the time that a page needs for its charts.
    """

    def shown(value: object) -> object:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    columns = [[shown(value) for value in frame[name].tolist()] for name in frame]
    return {"values": [dict(zip(frame.columns, row, strict=True)) for row in zip(*columns, strict=True)]}


alt.data_transformers.register("rows", _rows)
alt.data_transformers.enable("rows")


@dataclass(frozen=True)
class Picture:
    """A chart that is drawn again and again: a specification, made once, that calls its data by name, and the data.

    As long as the specification stays the same, a browser that shows it takes the new data alone.
    """

    specification: dict[str, Any]
    data: dict[str, pd.DataFrame]

    def to_dict(self, validate: bool = True) -> dict[str, Any]:
        """The whole, as altair's charts give themselves; validated against Vega-Lite's schema if asked to."""
        rows = {name: _rows(frame)["values"] for name, frame in self.data.items()}
        found = self.specification | {"datasets": rows}
        if validate:
            alt.LayerChart.validate(found)
        return found


def specification(chart: alt.LayerChart) -> dict[str, Any]:
    """What a `Picture` keeps of a chart whose data are `alt.NamedData`."""
    found = chart.to_dict(validate=False)
    # altair's own theme, where streamlit has not just taken it away in another session; pages and reports bring theirs.
    found.pop("config", None)
    return found


class Grid(NamedTuple):
    """Blocks across (`in` and `out` around them) and modules down, in the order of the forward pass."""

    columns: tuple[str, ...]
    modules: tuple[str, ...]


def grid_of(catalogue: Catalogue, layers: Iterable[Layer]) -> Grid:
    """The grid that holds these layers."""
    layers = list(layers)
    columns, modules = frames.grid_columns(catalogue), wording.module_labels(layers)
    used = {columns[layer.name] for layer in layers}
    blocks = sorted((name for name in used if name.isdigit()), key=int)
    order = tuple(name for name in ["in", *blocks, "out"] if name in used)
    return Grid(order, tuple(dict.fromkeys(modules[layer.name] for layer in layers)))


def grid_axes(grid: Grid) -> dict[str, alt.X | alt.Y]:
    """The axes of a grid, for the first layer of a picture."""
    columns, modules = map(list, grid)
    return {
        "x": alt.X(
            "column:N",
            sort=columns,
            title="block",
            scale=alt.Scale(domain=columns, paddingInner=0.06),
            axis=alt.Axis(labelAngle=0, grid=False, labelFlush=False, labelPadding=4, titlePadding=6),
        ),
        "y": alt.Y(
            "module:N",
            sort=modules,
            title=None,
            scale=alt.Scale(domain=modules, paddingInner=0.08),
            axis=alt.Axis(grid=False, labelFlush=False, labelOverlap=False, labelLimit=180, labelPadding=6),
        ),
    }


def brief(axes: Mapping[str, alt.X | alt.Y]) -> dict[str, alt.X | alt.Y]:
    """The same fields for a picture's further layers: its first layer has the scales and axes of all.

    altair copies every layer's several times over, which takes most of the time that a picture takes.
    """
    return {name: type(axis)(axis["shorthand"], title=axis["title"]) for name, axis in axes.items()}


def names_axis() -> alt.Axis:
    """An axis of names, every one of them shown."""
    # The theme drops and shifts labels that it finds crowded; a bar without its name is no use.
    return alt.Axis(labelLimit=240, labelPadding=6, labelOverlap=False, labelFlush=False)


def grid_height(grid: Grid) -> int:
    """Pixels that the grid needs, axis and legend included."""
    return ROW_HEIGHT * len(grid.modules) + 92


def kl_scale(domain: list[float], dark: bool) -> alt.Scale:
    """Logarithmic and perceptually uniform over a `kl_domain`; what lies below has the colour of the low end."""
    # The far end from the page's background is the sensitive end: it stands out in light and in dark.
    return alt.Scale(type="log", scheme="viridis", reverse=not dark, domain=domain, nice=False)


def kl_domain(frame: pd.DataFrame, key: str = "kl") -> list[float]:
    """From the smallest KL (or KL per MiB) of `frame` that exceeds its error to the largest, for a scale of powers."""
    positive = frame[key][frame[key] > 0]
    # The smallest of many values within their errors would stretch the scale by chance.
    sure = frame[key][frame[key] > frame[f"{key}_stderr"].clip(lower=0)]
    low = (sure if len(sure) else positive).min() if len(positive) else 1e-6
    high = positive.max() if len(positive) else 1e-3
    # Within one tenth of a decade a logarithmic scale would paint noise in full contrast.
    return [float(min(low, high / 10)), float(high)]


def signed_domain(frame: pd.DataFrame, measure: frames.Measure) -> list[float]:
    """As far to both sides of zero as the largest score."""
    largest = float(frame[measure.key].abs().max()) if len(frame) else 1.0
    return [-largest, largest]


def signed_scale(domain: list[float], dark: bool) -> alt.Scale:
    """Diverging around zero, in the colours of the page."""
    # Symmetric around zero; near zero linear, beyond logarithmic, so that one large layer does not flatten the rest.
    return alt.Scale(
        type="symlog",
        constant=max(domain[1] / 50, 1e-9),
        domain=domain,
        nice=False,
        range=palette.diverging(dark),
        interpolate="lab",
    )


def legend_ticks(scale: alt.Scale, measure: frames.Measure, below: bool) -> dict[str, object]:
    """Which values the colour legend shows: powers of ten and a few between them, or zero and to both sides.

    Args:
        below: some values lie below the scale and have the colour of its low end, which the legend then names.
    """
    low, high = scale.domain
    if measure.signed:
        return {"values": [low, low / 10, 0, high / 10, high], "format": ".2~r"}
    values = powers(low, high, at_least=3) or [low, high]
    if not below:
        return {"values": values, "format": ".0e"}
    said = f"datum.value <= {low!r} ? '≤ ' + datum.label : datum.label"
    return {"values": [low, *(value for value in values if value > 1.5 * low)], "format": ".0e", "labelExpr": said}


def powers(low: float, high: float, at_least: int) -> list[float]:
    """Powers of ten from `low` to `high`, and round numbers between them where there are fewer than `at_least`."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        values = [step * 10.0**exponent for exponent in exponents for step in steps]
        values = [value for value in values if low <= value <= high]
        if len(values) >= at_least:
            break
    return values


def measure_tooltips(columns: Collection[str], measure: frames.Measure) -> list[alt.Tooltip]:
    """Everything that is known of a layer: what there are columns of."""
    won = " won" if measure.won else ""
    tooltips = {
        "layer": alt.Tooltip("layer:N", title="layer"),
        "role": alt.Tooltip("role:N", title="role"),
        "format_label": alt.Tooltip("format_label:N", title="format"),
        "how": alt.Tooltip("how:N", title="how"),
        "parameters": alt.Tooltip("parameters:Q", title="parameters", format=",d"),
        "kl": alt.Tooltip("kl:Q", title=f"KL{won} (nats/token)", format=".3g"),
        "kl_stderr": alt.Tooltip("kl_stderr:Q", title="± standard error", format=".2g"),
        "size": alt.Tooltip("size:N", title="size"),
        "kl_per_mib": alt.Tooltip("kl_per_mib:Q", title=f"KL{won} per MiB saved", format=".3g"),
        "delta_nll": alt.Tooltip("delta_nll:Q", title=f"Δ NLL{won} (nats/token)", format="+.3g"),
        "delta_nll_stderr": alt.Tooltip("delta_nll_stderr:Q", title="± standard error", format=".2g"),
    }
    if not measure.won:
        tooltips["delta_ppl_pct"] = alt.Tooltip("delta_ppl_pct:Q", title="Δ perplexity (%)", format="+.3g")
    return [tooltip for name, tooltip in tooltips.items() if name in columns]


def pick(layer: str = "") -> alt.Parameter:
    """A click on a mark picks its layer: the selection `PICK` holds it as `PICKED`, and `layer` until then.

    In a layered picture it answers to the marks of all layers, whichever it was given to; beside them it picks nothing.
    """
    # A click beside all marks would clear what the browser frames, and the page would not hear of it.
    on = f"click[event.item && event.item.datum && event.item.datum.{PICKED}]"
    return alt.selection_point(name=PICK, fields=[PICKED], value=[{PICKED: layer}], empty=False, on=on, clear=False)


def picking(specification: dict[str, Any], layer: str | None) -> dict[str, Any]:
    """A specification with a `pick` in which this layer is picked; as it is where there is nothing to click."""
    if layer is None:
        return specification
    (parameter,) = specification["params"]
    return specification | {"params": [parameter | {"value": [{PICKED: layer}]}]}


def where(picked: alt.Parameter, value: str | float | dict[str, str]) -> dict[str, object]:
    """The value of a channel where something is picked.

    Written as Vega-Lite has it: what `alt.condition` returns, altair looks up in its whole schema again.
    """
    return {"param": picked.name, "value": value, "empty": False}


def rings(
    outline: alt.Chart, axes: dict[str, alt.X | alt.Y], picked: alt.Parameter, dark: bool, cells: bool = True
) -> list[alt.Chart]:
    """An outline in ink within one in the page's colour around what is picked: seen on every colour of a scale.

    Of width zero elsewhere, so that nothing but the marks beneath is hit.

    Args:
        cells: they are those of a grid, and narrow ones get thinner rings, or nothing else of them would be seen.
    """

    def width(most: float) -> float | dict[str, str]:
        return {"expr": f"min({most}, bandwidth('x') * {most / 40})"} if cells else most

    inks = [(palette.page(dark), 3 * RING_WIDTH), (palette.ink(dark), RING_WIDTH)]
    halo, line = (
        outline.encode(
            **axes,
            stroke=alt.StrokeValue(colour),
            strokeWidth=alt.StrokeWidthValue(0, condition=where(picked, width(most))),
        )
        for colour, most in inks
    )
    return [halo, line.add_params(picked)]


def error_bars(data: pd.DataFrame | alt.NamedData, y: alt.Y, low: str, high: str, colour: str) -> list[alt.Chart]:
    """Whiskers from column `low` to column `high`."""
    base = alt.Chart(data).encode(y=y)
    return [
        base.mark_rule(color=colour, strokeWidth=1.4).encode(x=alt.X(f"{low}:Q"), x2=alt.X2(f"{high}:Q")),
        base.mark_tick(color=colour, thickness=1.4, size=8).encode(x=alt.X(f"{low}:Q")),
        base.mark_tick(color=colour, thickness=1.4, size=8).encode(x=alt.X(f"{high}:Q")),
    ]


def rule(
    x: float | alt.NamedData, label: str, dark: bool, dashed: bool = False, over: bool = False, after: bool = False
) -> list[alt.Chart]:
    """A vertical line at `x`, or at the `x` of data, red where `over`, and above the plot its name: before or after."""
    colour = palette.BAD if over else palette.ink(dark)
    base = alt.Chart(x if isinstance(x, alt.NamedData) else pd.DataFrame([{"x": x}])).encode(x=alt.X("x:Q"))
    line = base.mark_rule(color=colour, strokeWidth=2, strokeDash=[4, 4] if dashed else [1, 0])
    text = base.mark_text(
        align="left" if after else "right", baseline="bottom", dx=6 if after else -6, color=colour, fontSize=12
    )
    return [line.encode(tooltip=alt.TooltipValue(label)), text.encode(y=alt.YValue(-3), text=alt.TextValue(label))]


def text(base: alt.Chart, dark: bool, **style: object) -> list[alt.Chart]:
    """The text that `base` encodes, readable where lines pass behind it."""
    style |= {"fontSize": 12}
    return [
        base.mark_text(**style, stroke=palette.page(dark), strokeWidth=4),
        base.mark_text(**style, color=palette.ink(dark)),
    ]


def legend_sizes(parts: Mapping[str, int]) -> str:
    """A Vega expression that writes each part's size behind its name in the legend."""
    cases = [f"datum.label == '{part}' ? '{part} {wording.size(count)}'" for part, count in parts.items()]
    return " : ".join([*cases, "datum.label"])


def cell_names(axes: dict[str, alt.X | alt.Y]) -> alt.Chart:
    """The text over the cells of the plan map; where a cell is too narrow for a name its bits remain."""
    narrow = f"bandwidth('x') < {NAME_WIDTH}"
    mark = alt.Chart().mark_text(
        text=alt.expr(f"{narrow} ? datum.bits : datum.tag"),
        fontSize=alt.expr(f"clamp(bandwidth('x') * ({narrow} ? 0.75 : 0.39), 5, 10)"),
        lineBreak="\n",
        lineHeight=10,
        baseline="middle",
        # The first line sits on the anchor: half of what follows it goes above, so that a pair stands in the middle.
        dy=alt.expr(f"{narrow} ? 0 : 5 - 5 * datum.lines"),
    )
    return mark.encode(**axes, color=alt.Color("ink:N", scale=None))
