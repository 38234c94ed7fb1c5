"""Typed results -> altair charts, in one palette: the only module that knows how a result looks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import altair as alt
import pandas as pd

from advisor.knowledge import perplexity_marks
from advisor.types import Catalogue, Format, MemoryEstimate
from advisor.ui import chart_parts as parts
from advisor.ui import frames, palette, wording


def sensitivity_heatmap(
    catalogue: Catalogue,
    frame: pd.DataFrame,
    measure: frames.Measure,
    dark: bool = False,
    picked: str | None = None,
) -> parts.Picture:
    """Blocks across, modules down, coloured by each layer's score; layers not measured (yet) stay outlined.

    A dot marks what was measured exactly, where others are estimates.

    Args:
        frame: one row per scored layer, as `frames.profile_frame` or `frames.gain_frame` give it.
        picked: the layer whose cell has a frame around it, until a click picks another (`parts.pick`); None where cells
            are not there to click.
    """
    domain = parts.signed_domain(frame, measure) if measure.signed else parts.kl_domain(frame, measure.key)
    # What has no logarithm, a KL of zero or one won by chance below it, is drawn at the low end of the scale.
    lowest = None if measure.signed else domain[0]
    exact = frame[frame["how"] == frames.EXACT]
    picture = _heatmap(
        parts.grid_of(catalogue, catalogue.quantizable),
        measure,
        tuple(domain),
        columns=tuple(frame),
        below=lowest is not None and bool((frame[measure.key] < lowest).any()),
        dots=0 < len(exact) < len(frame),
        dark=dark,
        clicks=picked is not None,
    )
    data = {"grid": frames.grid_frame(catalogue, catalogue.quantizable), "exact": exact}
    data["scores"] = frame.assign(shown=frame[measure.key].clip(lower=lowest))
    return parts.Picture(parts.picking(picture, picked), data)


@lru_cache(maxsize=64)
def _heatmap(
    grid: parts.Grid,
    measure: frames.Measure,
    domain: tuple[float, ...],
    columns: tuple[str, ...],
    below: bool,
    dots: bool,
    dark: bool,
    clicks: bool,
) -> dict[str, Any]:
    """The specification of the heatmap.

    Args:
        domain: what the colours reach from and to; below: some scores lie below it.
        dots: some scores are exact, and others are not.
    """
    scale = parts.signed_scale(list(domain), dark) if measure.signed else parts.kl_scale(list(domain), dark)
    axes = parts.grid_axes(grid)
    also = parts.brief(axes)
    places, scores = alt.Chart(alt.NamedData("grid")), alt.Chart(alt.NamedData("scores"))
    empty = places.mark_rect(fill="transparent", stroke=palette.faint(dark), strokeWidth=1).encode(
        **axes, tooltip=[alt.Tooltip("layer:N", title="layer"), alt.Tooltip("state:N", title="state")]
    )
    tooltips = parts.measure_tooltips(columns, measure)
    cells = scores.mark_rect(cornerRadius=2, cursor="pointer" if clicks else "default").encode(
        **also,
        color=alt.Color(
            "shown:Q",
            scale=scale,
            # No gradient: a browser finds one by the page's address, and loses it when a choice changes the link.
            legend=alt.Legend(
                title=measure.title,
                orient="top",
                type="symbol",
                symbolType="square",
                symbolSize=220,
                symbolStrokeWidth=0,
                titleLimit=400,
                **parts.legend_ticks(scale, measure, below),
            ),
        ),
        tooltip=tooltips,
    )
    layers = [empty, cells]
    if dots:  # light with a dark rim: seen on every colour of the scale
        dot = {"shape": "circle", "size": 22, "fill": "#ffffff", "stroke": "#14181f", "strokeWidth": 1, "opacity": 1}
        exact = alt.Chart(alt.NamedData("exact")).mark_point(filled=True, **dot)
        layers.append(exact.encode(**also, tooltip=tooltips))
    if clicks:
        layers += parts.rings(places.mark_rect(fill=None), also, parts.pick(), dark)
    return parts.specification(alt.layer(*layers, height=parts.grid_height(grid)))


def plan_map(
    catalogue: Catalogue,
    assignments: Mapping[str, str],
    formats: Mapping[str, Format],
    locked: Collection[str] = (),
    dark: bool = False,
    picked: str | None = None,
) -> parts.Picture:
    """Blocks across, modules down, each cell in its format's colour with the format's name in it; locks outlined.

    Layers that the plan does not decide stay hollow, with the name of the format that they keep.

    Args:
        picked: the layer whose cell is framed, until a click picks another (`parts.pick`); None: cells to look at.
    """
    frame = frames.plan_frame(catalogue, assignments, formats, locked)
    frame["ink"] = frame["ink"].where(frame["decided"], palette.quiet(dark))
    colours, used = palette.format_colours(formats), set(assignments.values())
    shown = tuple((fmt.label, colours[name]) for name, fmt in formats.items() if name in used)
    picture = _plan_map(parts.grid_of(catalogue, catalogue.quantizable), shown, dark, clicks=picked is not None)
    return parts.Picture(parts.picking(picture, picked), {"layers": frame})


@lru_cache(maxsize=64)
def _plan_map(grid: parts.Grid, formats: tuple[tuple[str, str], ...], dark: bool, clicks: bool) -> dict[str, Any]:
    """The specification of the map; `formats` are labels and colours."""
    axes = parts.grid_axes(grid)
    also = parts.brief(axes)
    tooltip = [
        alt.Tooltip("layer:N", title="layer"),
        alt.Tooltip("format:N", title="format"),
        alt.Tooltip("role:N", title="role"),
        alt.Tooltip("parameters:Q", title="parameters", format=",d"),
        alt.Tooltip("how:N", title="how"),
    ]
    labels, colours = map(list, zip(*formats, strict=True)) if formats else ([], [])
    decided = (
        alt.Chart()
        .transform_filter("datum.decided")
        .mark_rect(cornerRadius=2)
        .encode(
            **also,
            color=alt.Color(
                "format:N",
                scale=alt.Scale(domain=labels, range=colours),
                legend=alt.Legend(title=None, orient="top", symbolType="square", labelLimit=200, columns=6),
            ),
            stroke=alt.StrokeValue(None, condition={"test": "datum.locked", "value": palette.ink(dark)}),
            strokeWidth=alt.StrokeWidthValue(0, condition={"test": "datum.locked", "value": 2.5}),
            tooltip=tooltip,
        )
    )
    hollow = (
        alt.Chart()
        .transform_filter("!datum.decided")
        .mark_rect(cornerRadius=2, fill="transparent", stroke=palette.faint(dark))
        .encode(**axes, tooltip=tooltip)
    )
    # A pane over all, so that a cell is one thing to point at, its name included.
    pane = alt.Chart().mark_rect(fill="transparent", cursor="pointer" if clicks else "default")
    layers = [hollow, decided, parts.cell_names(also), pane.encode(**also, tooltip=tooltip)]
    if clicks:
        layers += parts.rings(alt.Chart().mark_rect(fill=None), also, parts.pick(), dark)
    chart = alt.layer(*layers, data=alt.NamedData("layers"), height=parts.grid_height(grid))
    return parts.specification(chart)


def memory_bar(
    estimate: MemoryEstimate, limits: Sequence[tuple[str, int]] | None = None, dark: bool = False
) -> alt.LayerChart:
    """Weights, KV cache, activations and overhead stacked, and a rule at each limit (default: the device's).

    A limit far beyond the bar would squeeze it flat: it is then named at the right edge instead of drawn to scale, with
    room left before it.
    """
    pieces = {
        "Weights": estimate.weights_bytes,
        "KV cache": estimate.kv_cache_bytes,
        "Activations": estimate.activation_bytes,
        "Overhead": estimate.overhead_bytes,
    }
    limits = limits if limits is not None else [("device", estimate.limit_bytes)]
    unit, factor = ("GiB", wording.GIB) if estimate.total_bytes >= wording.GIB else ("MiB", wording.MIB)
    frame = pd.DataFrame(frames.stack_frame(pieces, factor))
    far = [(label, limit) for label, limit in limits if limit > 6 * estimate.total_bytes]
    near = [(label, limit) for label, limit in limits if (label, limit) not in far]
    end = max((2 if far else 1.06) * estimate.total_bytes, *(1.06 * limit for _, limit in near), 0) / factor
    bars = (
        alt.Chart(frame)
        .mark_bar(height=34)
        .encode(
            x=alt.X(
                "start:Q",
                title=unit,
                scale=alt.Scale(domain=[0, end], nice=False),
                axis=alt.Axis(tickCount=8, format=parts.DECIMAL, grid=False),
            ),
            x2=alt.X2("end:Q"),
            color=alt.Color(
                "part:N",
                sort=list(pieces),
                scale=alt.Scale(domain=list(pieces), range=[palette.MEMORY_PARTS[part] for part in pieces]),
                legend=alt.Legend(
                    title=None,
                    orient="top",
                    symbolType="square",
                    labelLimit=260,
                    columns=alt.expr("width < 560 ? 2 : 4"),
                    labelExpr=parts.legend_sizes(pieces),
                ),
            ),
            tooltip=[
                alt.Tooltip("part:N", title="part"),
                alt.Tooltip("size:N", title="size"),
                alt.Tooltip("share:N", title="of the total"),
            ],
        )
    )
    layers = [bars]
    for label, limit in near:
        over = estimate.total_bytes > limit if label == "device" else False
        after = limit / factor < end / 4  # its name has no room before it
        layers += parts.rule(limit / factor, f"{label} limit {wording.size(limit)}", dark, over=over, after=after)
    for label, limit in far:
        used = f"{label}: {wording.number(100 * estimate.total_bytes / limit, 2)} % of {wording.size(limit)} →"
        note = pd.DataFrame([{"x": end, "text": used}])
        layers.append(
            alt.Chart(note)
            .mark_text(align="right", baseline="middle", color=palette.ink(dark), fontSize=12)
            .encode(x=alt.X("x:Q"), text=alt.Text("text:N"))
        )
    return alt.layer(*layers, height=150)


def predicted_against_measured(rows: Sequence[frames.ChangeRow], dark: bool = False) -> alt.LayerChart:
    """Change of perplexity by variant, predicted (hollow diamond) beside measured (disc), with their intervals.

    By the guide's marks the shaded band ends where a rise is no longer acceptable; the rule stands where it is poor.
    """
    guide = perplexity_marks()
    poor = guide.poor.value
    frame = pd.DataFrame([row.__dict__ for row in rows])
    variants = list(dict.fromkeys(row.variant for row in rows))
    frame["text"] = [wording.percent(row.change_pct) for row in rows]
    y = alt.Y("variant:N", sort=variants, title=None, axis=parts.names_axis())
    offset = alt.YOffset("kind:N", sort=["predicted", "measured"], scale=alt.Scale(paddingInner=0.4, paddingOuter=0.3))
    top = max(1.1 * poor, *(row.high_pct for row in rows))
    bottom = min(0.0, *(row.low_pct for row in rows))
    x_scale = alt.Scale(domain=[bottom - 0.02 * (top - bottom), top * 1.12], nice=False)
    legend = alt.Legend(title=None, orient="top")
    colours = alt.Scale(domain=["predicted", "measured"], range=[palette.PREDICTED, palette.MEASURED])
    band = (
        alt.Chart(pd.DataFrame([{"x": bottom - 0.02 * (top - bottom), "x2": guide.limit.value}]))
        .mark_rect(color=palette.GOOD, opacity=0.10)
        .encode(x=alt.X("x:Q", scale=x_scale, title="change of perplexity (%)"), x2=alt.X2("x2:Q"))
    )
    lines = (
        alt.Chart(frame)
        .mark_rule(strokeWidth=2)
        .encode(
            y=y,
            yOffset=offset,
            x=alt.X("low_pct:Q", scale=x_scale),
            x2=alt.X2("high_pct:Q"),
            color=alt.Color("kind:N", scale=colours, legend=legend),
        )
    )
    points = (
        alt.Chart(frame)
        .mark_point(size=95, filled=True, opacity=1)
        .encode(
            y=y,
            yOffset=offset,
            x=alt.X(
                "change_pct:Q",
                scale=x_scale,
                title="change of perplexity (%)",
                axis=alt.Axis(format=parts.DECIMAL, tickCount=12),
            ),
            color=alt.Color("kind:N", scale=colours, legend=legend),
            shape=alt.Shape(
                "kind:N", legend=legend, scale=alt.Scale(domain=["predicted", "measured"], range=["diamond", "circle"])
            ),
            tooltip=[
                alt.Tooltip("variant:N"),
                alt.Tooltip("kind:N"),
                alt.Tooltip("change_pct:Q", title="change of perplexity (%)", format="+.2f"),
                alt.Tooltip("low_pct:Q", title="from", format="+.2f"),
                alt.Tooltip("high_pct:Q", title="to", format="+.2f"),
            ],
        )
    )
    # Beside its point and above the line of its interval, on the side that has room.
    values = alt.Chart(frame).encode(y=y, yOffset=offset, x=alt.X("change_pct:Q", scale=x_scale), text="text:N")
    right = f"datum.change_pct < {bottom + 0.6 * (top - bottom)!r}"
    side = {"align": alt.expr(f"{right} ? 'left' : 'right'"), "dx": alt.expr(f"{right} ? 8 : -8")}
    said = parts.text(values, dark, **side, dy=-4, baseline="bottom")
    marks = parts.rule(poor, f"{poor:g} %: poor", dark, dashed=True, after=True)
    return alt.layer(band, *marks, lines, points, *said, height=70 * len(variants) + 100)
