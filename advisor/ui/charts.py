"""Typed results -> altair charts, in one palette: the only module that knows how a result looks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import altair as alt
import pandas as pd

from advisor.types import Catalogue, Format, Layer, MemoryEstimate, SensitivityProfile
from advisor.ui import palette, wording

ROW_HEIGHT = 30


@dataclass(frozen=True)
class Measure:
    """A way to read a measurement: its field, its error, and how it is said."""

    key: str
    label: str
    title: str
    signed: bool


MEASURES = {
    "kl": Measure("kl", "KL divergence", "KL divergence (nats per token)", signed=False),
    "delta_nll": Measure("delta_nll", "Δ NLL", "change of NLL (nats per token)", signed=True),
    "delta_ppl_pct": Measure("delta_ppl_pct", "Δ perplexity", "change of perplexity (%)", signed=True),
}


@dataclass(frozen=True)
class ChangeRow:
    """One point of the comparison of predicted and measured: change of perplexity in percent, with its interval."""

    variant: str
    kind: str
    change_pct: float
    low_pct: float
    high_pct: float


def profile_frame(profile: SensitivityProfile) -> pd.DataFrame:
    """One row per measurement: layer, block, module, role, format, parameters and every measure with its error."""
    layers = profile.catalogue.by_name()
    labels = wording.layer_labels(profile.catalogue)
    modules = wording.module_labels(profile.catalogue.quantizable)
    columns = _columns(profile.catalogue)
    rows = [
        {
            "layer": m.layer,
            "label": labels.get(m.layer, m.layer),
            "block": layers[m.layer].block,
            "column": columns.get(m.layer, ""),
            "module": modules.get(m.layer, m.layer),
            "role": wording.role(layers[m.layer].role),
            "parameters": layers[m.layer].parameters,
            "format": m.format,
            "kl": m.kl,
            "kl_stderr": m.kl_stderr,
            "delta_nll": m.delta_nll,
            "delta_nll_stderr": m.delta_nll_stderr,
            "delta_ppl_pct": m.delta_ppl_pct,
            # First order: the error of exp(x) is exp(x) times the error of x.
            "delta_ppl_pct_stderr": 100 * math.exp(m.delta_nll) * m.delta_nll_stderr,
            "tokens": m.tokens,
        }
        for m in profile.measurements
        if m.layer in layers
    ]
    return pd.DataFrame(rows, columns=None if rows else ["layer", "label", "format", "kl"])


def sensitivity_heatmap(profile: SensitivityProfile, fmt: str, measure: Measure, dark: bool = False) -> alt.LayerChart:
    """Blocks across, modules down, coloured by what `fmt` does there; layers not measured (yet) stay outlined."""
    grid = _grid_frame(profile.catalogue, profile.catalogue.quantizable)
    frame = profile_frame(profile)
    frame = frame[frame["format"] == fmt]
    scale = _signed_scale(frame, measure, dark) if measure.signed else _kl_scale(frame, dark)
    if not measure.signed:
        # A KL of exactly zero has no logarithm: it is drawn at the low end of the scale.
        frame = frame.assign(shown=frame["kl"].clip(lower=scale.domain[0]))
    else:
        frame = frame.assign(shown=frame[measure.key])
    axes = _grid_axes(profile.catalogue, profile.catalogue.quantizable)
    empty = (
        alt.Chart(grid)
        .mark_rect(fill="transparent", stroke=palette.faint(dark), strokeWidth=1)
        .encode(**axes, tooltip=[alt.Tooltip("layer", title="layer"), alt.Tooltip("state", title="state")])
    )
    cells = (
        alt.Chart(frame)
        .mark_rect(cornerRadius=2)
        .encode(
            **axes,
            color=alt.Color(
                "shown:Q",
                scale=scale,
                legend=alt.Legend(title=measure.title, orient="top", gradientLength=280, gradientThickness=10,
                                  titleLimit=400, **_legend_ticks(scale, measure)),
            ),
            tooltip=_measure_tooltips(),
        )
    )
    return alt.layer(empty, cells).properties(height=_grid_height(profile.catalogue.quantizable))


def sensitivity_bars(
    profile: SensitivityProfile, fmt: str, measure: Measure, top: int = 20, dark: bool = False
) -> alt.LayerChart:
    """The `top` most sensitive layers for `fmt`, most sensitive first, with one standard error to each side."""
    frame = profile_frame(profile)
    frame = frame[frame["format"] == fmt].nlargest(top, measure.key)
    error = f"{measure.key}_stderr"
    frame = frame.assign(low=frame[measure.key] - frame[error], high=frame[measure.key] + frame[error])
    y = alt.Y("label:N", sort=list(frame["label"]), title=None, axis=_names_axis())
    bars = (
        alt.Chart(frame)
        .mark_bar(color=palette.BAR, height=alt.RelativeBandSize(0.62), cornerRadiusEnd=2)
        .encode(
            y=y,
            x=alt.X(f"{measure.key}:Q", title=measure.title, axis=alt.Axis(tickCount=6, format="~g")),
            tooltip=_measure_tooltips(),
        )
    )
    errors = _error_bars(frame, y, "low", "high", palette.ink(dark))
    layers = [bars, *errors]
    floor = profile.baseline.noise_floor_kl
    # Where the floor is next to nothing its rule would hide behind the axis.
    if not measure.signed and floor and len(frame) and floor > 0.01 * frame[measure.key].max():
        layers += _rule(floor, "noise floor", dark, dashed=True, after=True)
    return alt.layer(*layers).properties(height=max(90, 21 * len(frame) + 20))


def plan_map(
    catalogue: Catalogue,
    assignments: Mapping[str, str],
    formats: Mapping[str, Format],
    locked: Collection[str] = (),
    dark: bool = False,
) -> alt.LayerChart:
    """Blocks across, modules down, each cell in its format's colour with the format's name in it; locks outlined."""
    layers = [layer for layer in catalogue.quantizable if layer.name in assignments]
    frame = _grid_frame(catalogue, layers)
    colours = palette.format_colours(formats)
    frame["format"] = [assignments[name] for name in frame["layer"]]
    frame["tag"] = [_cell_tag(formats[name], catalogue) for name in frame["format"]]
    frame["ink"] = [palette.ink_on(colours[name]) for name in frame["format"]]
    frame["locked"] = [name in locked for name in frame["layer"]]
    frame["lock"] = ["locked by you" if lock else "chosen by the solver" for lock in frame["locked"]]
    used = [name for name in formats if name in set(frame["format"])]
    axes = _grid_axes(catalogue, layers)
    tooltip = [
        alt.Tooltip("layer", title="layer"),
        alt.Tooltip("format", title="format"),
        alt.Tooltip("role", title="role"),
        alt.Tooltip("parameters:Q", title="parameters", format=",d"),
        alt.Tooltip("lock", title="how"),
    ]
    cells = (
        alt.Chart(frame)
        .mark_rect(cornerRadius=2)
        .encode(
            **axes,
            color=alt.Color(
                "format:N",
                scale=alt.Scale(domain=used, range=[colours[name] for name in used]),
                legend=alt.Legend(title=None, orient="top", symbolType="square", labelLimit=200, columns=6),
            ),
            stroke=alt.condition("datum.locked", alt.value(palette.ink(dark)), alt.value(None)),
            strokeWidth=alt.condition("datum.locked", alt.value(2.5), alt.value(0)),
            tooltip=tooltip,
        )
    )
    names = (
        alt.Chart(frame)
        .mark_text(fontSize=_cell_font(catalogue), lineBreak="\n", baseline="middle", lineHeight=10, dy=-4)
        .encode(**axes, text="tag:N", color=alt.Color("ink:N", scale=None), tooltip=tooltip)
    )
    return alt.layer(cells, names).properties(height=_grid_height(layers))


def memory_bar(
    estimate: MemoryEstimate, limits: Sequence[tuple[str, int]] | None = None, dark: bool = False
) -> alt.LayerChart:
    """Weights, KV cache, activations and overhead stacked, and a rule at each limit (default: the device's).

    A limit far beyond the bar would squeeze it flat: it is then named at the right edge instead of drawn to scale.
    """
    parts = {
        "Weights": estimate.weights_bytes,
        "KV cache": estimate.kv_cache_bytes,
        "Activations": estimate.activation_bytes,
        "Overhead": estimate.overhead_bytes,
    }
    limits = limits if limits is not None else [("device", estimate.limit_bytes)]
    unit, factor = ("GiB", wording.GIB) if estimate.total_bytes >= wording.GIB else ("MiB", wording.MIB)
    frame = pd.DataFrame(_stack(parts, factor))
    far = [(label, limit) for label, limit in limits if limit > 6 * estimate.total_bytes]
    near = [(label, limit) for label, limit in limits if (label, limit) not in far]
    end = 1.06 * max([estimate.total_bytes, *(limit for _, limit in near)]) / factor
    bars = (
        alt.Chart(frame)
        .mark_bar(height=34)
        .encode(
            x=alt.X("start:Q", title=unit, scale=alt.Scale(domain=[0, end], nice=False),
                    axis=alt.Axis(tickCount=8, format="~g", grid=False)),
            x2="end:Q",
            color=alt.Color("part:N", sort=list(parts),
                            scale=alt.Scale(domain=list(parts), range=[palette.MEMORY_PARTS[part] for part in parts]),
                            legend=alt.Legend(title=None, orient="top", symbolType="square", labelLimit=260,
                                              labelExpr=_legend_sizes(parts))),
            tooltip=[alt.Tooltip("part", title="part"), alt.Tooltip("size", title="size"),
                     alt.Tooltip("share", title="of the total")],
        )
    )
    layers = [bars]
    for label, limit in near:
        over = estimate.total_bytes > limit if label == "device" else False
        layers += _rule(limit / factor, f"{label} limit {wording.size(limit)}", dark, over=over)
    for label, limit in far:
        note = pd.DataFrame([{"x": end, "text": f"{label} limit {wording.size(limit)} →"}])
        layers.append(alt.Chart(note).mark_text(align="right", baseline="bottom", dy=-24, color=palette.ink(dark), fontSize=12)
                      .encode(x="x:Q", text="text:N"))
    return alt.layer(*layers).properties(height=96)


def predicted_against_measured(rows: Sequence[ChangeRow], dark: bool = False) -> alt.LayerChart:
    """Change of perplexity by variant, predicted (hollow diamond) beside measured (disc), with their intervals.

    The shaded band ends at 10 % (acceptable), the dashed rule stands at 20 % (poor): the guide's marks.
    """
    frame = pd.DataFrame([row.__dict__ for row in rows])
    variants = list(dict.fromkeys(row.variant for row in rows))
    frame["text"] = [f"{row.change_pct:+.1f} %" for row in rows]
    y = alt.Y("variant:N", sort=variants, title=None, axis=_names_axis())
    offset = alt.YOffset("kind:N", sort=["predicted", "measured"], scale=alt.Scale(paddingInner=0.4, paddingOuter=0.3))
    top = max(22.0, *(row.high_pct for row in rows))
    bottom = min(0.0, *(row.low_pct for row in rows))
    x_scale = alt.Scale(domain=[bottom - 0.02 * (top - bottom), top * 1.12])
    colours = alt.Scale(domain=["predicted", "measured"], range=[palette.PREDICTED, palette.MEASURED])
    band = (
        alt.Chart(pd.DataFrame([{"x": bottom - 0.02 * (top - bottom), "x2": 10.0}]))
        .mark_rect(color=palette.GOOD, opacity=0.10)
        .encode(x=alt.X("x:Q", scale=x_scale, title="change of perplexity (%)"), x2="x2:Q")
    )
    lines = (
        alt.Chart(frame)
        .mark_rule(strokeWidth=2)
        .encode(y=y, yOffset=offset, x=alt.X("low_pct:Q", scale=x_scale), x2="high_pct:Q",
                color=alt.Color("kind:N", scale=colours, legend=None))
    )
    points = (
        alt.Chart(frame)
        .mark_point(size=95, filled=True, opacity=1)
        .encode(
            y=y, yOffset=offset,
            x=alt.X("change_pct:Q", scale=x_scale, title="change of perplexity (%)", axis=alt.Axis(format="~g")),
            color=alt.Color("kind:N", scale=colours, legend=alt.Legend(title=None, orient="top")),
            shape=alt.Shape("kind:N", legend=alt.Legend(title=None, orient="top"),
                            scale=alt.Scale(domain=["predicted", "measured"], range=["diamond", "circle"])),
            tooltip=[alt.Tooltip("variant"), alt.Tooltip("kind"),
                     alt.Tooltip("change_pct:Q", title="change of perplexity (%)", format="+.2f"),
                     alt.Tooltip("low_pct:Q", title="from", format="+.2f"),
                     alt.Tooltip("high_pct:Q", title="to", format="+.2f")],
        )
    )
    values = (
        alt.Chart(frame).mark_text(align="left", dx=8, baseline="middle", color=palette.ink(dark), fontSize=12)
        .encode(y=y, yOffset=offset, x=alt.X("high_pct:Q", scale=x_scale), text="text:N")
    )
    marks = _rule(20.0, "20 %: poor", dark, dashed=True)
    return alt.layer(band, *marks, lines, points, values).properties(height=58 * len(variants) + 40)


# ------------------------------------------------------------------------------------------- pieces


def _columns(catalogue: Catalogue) -> dict[str, str]:
    """Layer name -> its column: the block's number, or `in`/`out` for what stands before or after the blocks."""
    columns, met_block = {}, False
    for layer in catalogue.layers:
        met_block = met_block or layer.block is not None
        columns[layer.name] = str(layer.block) if layer.block is not None else "out" if met_block else "in"
    return columns


def _grid_frame(catalogue: Catalogue, layers: Iterable[Layer]) -> pd.DataFrame:
    layers = list(layers)
    columns, modules = _columns(catalogue), wording.module_labels(layers)
    return pd.DataFrame(
        [
            {"layer": layer.name, "column": columns[layer.name], "module": modules[layer.name],
             "role": wording.role(layer.role), "parameters": layer.parameters, "state": "not measured"}
            for layer in layers
        ]
    )


def _grid_axes(catalogue: Catalogue, layers: Iterable[Layer]) -> dict[str, alt.X | alt.Y]:
    layers = list(layers)
    columns, modules = _columns(catalogue), wording.module_labels(layers)
    used = {columns[layer.name] for layer in layers}
    blocks = sorted((name for name in used if name.isdigit()), key=int)
    order = [name for name in ["in", *blocks, "out"] if name in used]
    rows = list(dict.fromkeys(modules[layer.name] for layer in layers))
    return {
        "x": alt.X("column:N", sort=order, title="block", scale=alt.Scale(domain=order, paddingInner=0.06),
                   axis=alt.Axis(labelAngle=0, grid=False, labelFlush=False, labelPadding=4, titlePadding=6)),
        "y": alt.Y("module:N", sort=rows, title=None, scale=alt.Scale(domain=rows, paddingInner=0.08),
                   axis=alt.Axis(grid=False, labelFlush=False, labelOverlap=False, labelLimit=180, labelPadding=6)),
    }


def _names_axis() -> alt.Axis:
    # The theme drops and shifts labels that it finds crowded; a bar without its name is no use.
    return alt.Axis(labelLimit=240, labelPadding=6, labelOverlap=False, labelFlush=False)


def _grid_height(layers: Iterable[Layer]) -> int:
    rows = len(set(wording.module_labels(layers).values()))
    return ROW_HEIGHT * rows + 92


def _kl_scale(frame: pd.DataFrame, dark: bool) -> alt.Scale:
    positive = frame["kl"][frame["kl"] > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (1e-6, 1e-3)
    # Within one tenth of a decade a logarithmic scale would paint noise in full contrast.
    low = min(low, high / 10)
    # The far end from the page's background is the sensitive end: it stands out in light and in dark.
    return alt.Scale(type="log", scheme="viridis", reverse=not dark, domain=[float(low), float(high)], nice=False)


def _signed_scale(frame: pd.DataFrame, measure: Measure, dark: bool) -> alt.Scale:
    largest = float(frame[measure.key].abs().max()) if len(frame) else 1.0
    # Symmetric around zero; near zero linear, beyond logarithmic, so that one large layer does not flatten the rest.
    return alt.Scale(type="symlog", constant=max(largest / 50, 1e-9), domain=[-largest, largest], nice=False,
                     range=palette.diverging(dark), interpolate="lab")


def _legend_ticks(scale: alt.Scale, measure: Measure) -> dict[str, object]:
    low, high = scale.domain
    if measure.signed:
        return {"values": [low, 0, high], "format": ".2~g"}
    powers = [10.0**exponent for exponent in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    return {"values": powers or [low, high], "format": ".0e"}


def _measure_tooltips() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("layer", title="layer"),
        alt.Tooltip("role", title="role"),
        alt.Tooltip("format", title="format"),
        alt.Tooltip("parameters:Q", title="parameters", format=",d"),
        alt.Tooltip("kl:Q", title="KL (nats/token)", format=".3g"),
        alt.Tooltip("kl_stderr:Q", title="± standard error", format=".2g"),
        alt.Tooltip("delta_nll:Q", title="Δ NLL (nats/token)", format="+.3g"),
        alt.Tooltip("delta_nll_stderr:Q", title="± standard error", format=".2g"),
        alt.Tooltip("delta_ppl_pct:Q", title="Δ perplexity (%)", format="+.3g"),
    ]


def _error_bars(frame: pd.DataFrame, y: alt.Y, low: str, high: str, colour: str) -> list[alt.Chart]:
    base = alt.Chart(frame).encode(y=y)
    return [
        base.mark_rule(color=colour, strokeWidth=1.4).encode(x=f"{low}:Q", x2=f"{high}:Q"),
        base.mark_tick(color=colour, thickness=1.4, size=8).encode(x=f"{low}:Q"),
        base.mark_tick(color=colour, thickness=1.4, size=8).encode(x=f"{high}:Q"),
    ]


def _rule(
    x: float, label: str, dark: bool, dashed: bool = False, over: bool = False, after: bool = False
) -> list[alt.Chart]:
    colour = palette.BAD if over else palette.ink(dark)
    frame = pd.DataFrame([{"x": x, "text": label}])
    rule = alt.Chart(frame).mark_rule(color=colour, strokeWidth=2, strokeDash=[4, 4] if dashed else [1, 0])
    text = alt.Chart(frame).mark_text(
        align="left" if after else "right", baseline="top", dx=6 if after else -6, color=colour, fontSize=12)
    return [rule.encode(x="x:Q", tooltip=alt.value(label)), text.encode(x="x:Q", y=alt.value(2), text="text:N")]


def _stack(parts: Mapping[str, int], factor: float) -> list[dict[str, object]]:
    total, position, rows = sum(parts.values()) or 1, 0, []
    for part, count in parts.items():
        rows.append({"part": part, "start": position / factor, "end": (position + count) / factor,
                     "size": wording.size(count), "share": f"{100 * count / total:.0f} %"})
        position += count
    return rows


def _legend_sizes(parts: Mapping[str, int]) -> str:
    cases = [f"datum.label == '{part}' ? '{part} {wording.size(count)}'" for part, count in parts.items()]
    return " : ".join([*cases, "datum.label"])


def _cell_tag(fmt: Format, catalogue: Catalogue) -> str:
    # Beyond 40 blocks a cell is too narrow for a name: its bits remain, and the legend and tooltip say the rest.
    return "\n".join(wording.format_tag(fmt)) if catalogue.attention.blocks <= 40 else str(fmt.bits)


def _cell_font(catalogue: Catalogue) -> int:
    return 9 if catalogue.attention.blocks > 24 else 10
