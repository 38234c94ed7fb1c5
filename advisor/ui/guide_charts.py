"""Charts of the guide: bits of every format, what devices do with them, floors of roles, what methods win."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise

import altair as alt
import pandas as pd

from advisor import guide
from advisor.knowledge import perplexity_marks
from advisor.types import BatchMarks, RoleAdvice
from advisor.ui import chart_parts as parts
from advisor.ui import palette, wording

# Word and symbol of each status: no cell is told by its colour alone.
STATUS = {
    "native": ("native", "●"),
    "weight_only": ("weights only", "◐"),
    "emulated": ("emulated", "○"),
    "none": ("none", "–"),
}
DIFFERS = "≠"
_LEGEND_COLUMNS = "width < 400 ? 2 : 5"
_CODES, _SCALES, _REST = "codes", "scales", "zero points and the rest"
_LABEL_CHARACTERS = 26
_WORD_WIDTH = 74  # pixels that `weights only ≠` needs


def format_bars(sizes: Sequence[guide.FormatSize], dark: bool = False) -> alt.LayerChart:
    """Bits of one weight in every quantized format, by what they are spent on, with the sum behind each bar."""
    rows, sums = [], []
    for size in sizes:
        edges = [0.0, size.codes, size.codes + size.scales, size.bits]
        for part, (start, end) in zip((_CODES, _SCALES, _REST), pairwise(edges), strict=True):
            if end - start > 1e-9:
                rows.append({"name": _name(size), "part": part, "start": start, "end": end, "bits": end - start})
        sums.append({"name": _name(size), "bits": size.bits, "text": f"{size.bits:.5g}"})
    names = [row["name"] for row in sums]
    y = alt.Y("name:N", sort=names, title=None, axis=parts.names_axis())
    scale = alt.Scale(domain=[0, 1.08 * max(row["bits"] for row in sums)], nice=False)
    used = [part for part in (_CODES, _SCALES, _REST) if any(row["part"] == part for row in rows)]
    colours = {_CODES: palette.BAR, _SCALES: palette.FAMILIES["int4"], _REST: palette.FAMILIES["int3"]}
    bars = (
        alt.Chart(pd.DataFrame(rows))
        .mark_bar(height=alt.RelativeBandSize(0.62))
        .encode(
            y=y,
            x=alt.X("start:Q", title="bits per weight", scale=scale, axis=alt.Axis(tickCount=8, format=parts.DECIMAL)),
            x2=alt.X2("end:Q"),
            color=alt.Color(
                "part:N",
                scale=alt.Scale(domain=used, range=[colours[part] for part in used]),
                legend=alt.Legend(
                    title=None, orient="top", symbolType="square", labelLimit=220, columns=alt.expr(_LEGEND_COLUMNS)
                ),
            ),
            tooltip=[
                alt.Tooltip("name:N", title="format"),
                alt.Tooltip("part:N", title="spent on"),
                alt.Tooltip("bits:Q", title="bits per weight", format=".5~g"),
            ],
        )
    )
    text = (
        alt.Chart(pd.DataFrame(sums))
        .mark_text(align="left", dx=6, color=palette.ink(dark), fontSize=12)
        .encode(y=y, x=alt.X("bits:Q", scale=scale), text="text:N")
    )
    return alt.layer(bars, text, height=24 * len(names) + 30)


def _name(size: guide.FormatSize) -> str:
    own = size.stored_as and size.stored_as.lower() != size.fmt.name
    return f"{size.fmt.label} as {size.stored_as}" if own else size.fmt.label


def support_matrix(kinds: Sequence[guide.DeviceKind], dark: bool = False) -> alt.LayerChart:
    """Devices down, format families across: what the hardware does, in words, in symbols where words have no room.

    Cells in which the guide says another thing have a rim and a sign.
    """
    frame = support_frame(kinds, dark)
    families = [family.upper() for family in guide.families()]
    x = alt.X(
        "family:N",
        sort=families,
        title=None,
        scale=alt.Scale(domain=families, paddingInner=0.06),
        axis=alt.Axis(orient="top", labelAngle=0, grid=False, labelFlush=False, labelOverlap=False, domain=False),
    )
    y = alt.Y(
        "device:N",
        sort=list(frame["device"].unique()),
        title=None,
        scale=alt.Scale(paddingInner=0.1),
        axis=alt.Axis(
            grid=False,
            labelExpr="split(datum.label, '|')",
            labelLimit=230,
            labelOverlap=False,
            labelFlush=False,
            labelPadding=8,
            domain=False,
            ticks=False,
        ),
    )
    tooltip = [
        alt.Tooltip("devices:N", title="devices"),
        alt.Tooltip("family:N", title="format family"),
        alt.Tooltip("word:N", title="hardware"),
        alt.Tooltip("guide:N", title="the guide says"),
        alt.Tooltip("source:N", title="source"),
    ]
    colours = _status_colours(dark)
    words = [word for word, _ in STATUS.values()]
    cells = (
        alt.Chart(frame)
        .mark_rect(cornerRadius=3)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "word:N",
                scale=alt.Scale(domain=words, range=[colours[status] for status in STATUS]),
                legend=alt.Legend(
                    title=None,
                    orient="top",
                    symbolType="square",
                    labelLimit=200,
                    labelExpr=_with_symbols(),
                    columns=alt.expr(_LEGEND_COLUMNS),
                ),
            ),
            stroke=alt.StrokeValue(None, condition={"test": "datum.differs", "value": palette.ink(dark)}),
            strokeWidth=alt.StrokeWidthValue(0, condition={"test": "datum.differs", "value": 2}),
            tooltip=tooltip,
        )
    )
    narrow = f"bandwidth('x') < {_WORD_WIDTH}"
    text = (
        alt.Chart(frame)
        .mark_text(
            text=alt.expr(f"{narrow} ? datum.symbol : datum.text"),
            fontSize=alt.expr(f"{narrow} ? 14 : 11"),
            baseline="middle",
        )
        .encode(x=x, y=y, color=alt.Color("ink:N", scale=None), tooltip=tooltip)
    )
    return alt.layer(cells, text, height=40 * len(kinds) + 40)


def support_frame(kinds: Sequence[guide.DeviceKind], dark: bool = False) -> pd.DataFrame:
    """A row for every kind of device and format family: the words and the ink of its cell."""
    colours, rows = _status_colours(dark), []
    for kind in kinds:
        for family in guide.families():
            status, other = kind.support[family], guide.differs(kind, family)
            word, symbol = STATUS[status]
            sign = f" {DIFFERS}" if other else ""
            rows.append(
                {
                    "device": "|".join(textwrap.wrap(kind.label, _LABEL_CHARACTERS)),
                    "devices": ", ".join(device.label for device in kind.devices[:6])
                    + (f" and {len(kind.devices) - 6} more" if len(kind.devices) > 6 else ""),
                    "family": family.upper(),
                    "word": word,
                    "text": word + sign,
                    "symbol": symbol + sign,
                    "differs": other,
                    "guide": kind.guide.get(family, "nothing of it"),
                    "source": kind.devices[0].support_source,
                    "ink": palette.ink_on(colours[status]) if status != "none" else palette.ink(dark),
                }
            )
    return pd.DataFrame(rows)


def _status_colours(dark: bool) -> dict[str, str]:
    return {
        "native": palette.GOOD,
        "weight_only": palette.FAMILIES["int4"],
        "emulated": palette.FAMILIES["int3"],
        "none": palette.faint(dark),
    }


def _with_symbols() -> str:
    """A Vega expression that writes each word's symbol before it in the legend."""
    cases = [f"datum.label == '{word}' ? '{symbol} {word}'" for word, symbol in STATUS.values()]
    return " : ".join([*cases, "datum.label"])


def role_bars(advice: Sequence[RoleAdvice], dark: bool = False) -> alt.LayerChart:
    """The least bits of every role as bars, with the expected sensitivity in words behind each."""
    frame = pd.DataFrame(
        [
            {
                "role": wording.role(row.role),
                "bits": row.minimum_bits,
                "sensitivity": row.sensitivity,
                "text": f"{row.minimum_bits} bits · sensitivity {row.sensitivity}",
                "advice": row.advice,
            }
            for row in sorted(advice, key=lambda row: -row.minimum_bits)
        ]
    )
    words = ["very high", "high", "medium", "low"]
    found = [*words, *(word for word in frame["sensitivity"].unique() if word not in words)]
    colours = [palette.FAMILIES[name] for name in ("int2", "int3", "int4", "int8")]
    most = int(frame["bits"].max())
    y = alt.Y("role:N", sort=list(frame["role"]), title=None, axis=parts.names_axis())
    x = alt.X(
        "bits:Q",
        title="least bits that the guide recommends",
        scale=alt.Scale(domain=[0, 1.55 * most], nice=False),
        axis=alt.Axis(values=sorted({0, *frame["bits"]}), format="d"),
    )
    bars = (
        alt.Chart(frame)
        .mark_bar(height=alt.RelativeBandSize(0.62), cornerRadiusEnd=2)
        .encode(
            y=y,
            x=x,
            color=alt.Color(
                "sensitivity:N",
                legend=None,
                scale=alt.Scale(domain=found, range=[*colours, *[palette.quiet(dark)] * (len(found) - len(words))]),
            ),
            tooltip=[
                alt.Tooltip("role:N", title="role"),
                alt.Tooltip("bits:Q", title="least bits"),
                alt.Tooltip("sensitivity:N", title="sensitivity"),
                alt.Tooltip("advice:N", title="advice"),
            ],
        )
    )
    text = bars.mark_text(align="left", dx=6, fontSize=12).encode(
        color=alt.ColorValue(palette.ink(dark)), text=alt.Text("text:N")
    )
    return alt.layer(bars, text, height=26 * len(frame) + 30)


def batch_scale(marks: BatchMarks, dark: bool = False) -> alt.LayerChart:
    """How many sequences at once are few, and how many are many, along doublings."""
    small, large = marks.small.value, marks.large.value
    stretches = [(1, small, "weights only"), (small, large, "in between: measure"), (large, 4 * large, "W8A8 too")]
    frame = pd.DataFrame(
        [{"start": start, "end": end, "middle": (start * end) ** 0.5, "name": name} for start, end, name in stretches]
    )
    colours = [palette.FAMILIES["int4"], palette.quiet(dark), palette.FAMILIES["int8"]]
    x = alt.X(
        "start:Q",
        title="sequences decoded at once",
        scale=alt.Scale(type="log", base=2, domain=[1, 4 * large], nice=False),
        axis=alt.Axis(values=[1, small, large, 4 * large], format="d", grid=False),
    )
    bars = (
        alt.Chart(frame)
        .mark_bar(height=30, stroke=palette.page(dark), strokeWidth=2)
        .encode(
            x=x,
            x2=alt.X2("end:Q"),
            color=alt.Color("name:N", legend=None, scale=alt.Scale(domain=list(frame["name"]), range=colours)),
            tooltip=[alt.Tooltip("name:N", title="what pays"), alt.Tooltip("start:Q"), alt.Tooltip("end:Q")],
        )
    )
    inks = [palette.ink_on(colour) for colour in colours]
    text = (
        alt.Chart(frame.assign(ink=inks))
        .mark_text(fontSize=12)
        .encode(x=alt.X("middle:Q"), text="name:N", color=alt.Color("ink:N", scale=None))
    )
    return alt.layer(bars, text, height=96).resolve_scale(color="independent")


def gain_bars(rises: Mapping[tuple[str, str], float], dark: bool = False) -> alt.LayerChart:
    """Rises of perplexity in percent by (format, method), the smallest first, with the guide's marks across them."""
    marks = perplexity_marks()
    frame = pd.DataFrame(
        [
            {"name": f"{fmt}, {method}", "format": fmt, "rise": rise, "text": f"+{rise:g} %"}
            for (fmt, method), rise in sorted(rises.items(), key=lambda row: row[1])
        ]
    )
    y = alt.Y("name:N", sort=list(frame["name"]), title=None, axis=parts.names_axis())
    x = alt.X(
        "rise:Q",
        title="rise of perplexity (%)",
        scale=alt.Scale(domain=[0, 1.15 * max(frame["rise"].max(), marks.poor.value)], nice=False),
        axis=alt.Axis(format="d", tickCount=6),
    )
    bars = (
        alt.Chart(frame)
        .mark_bar(color=palette.BAR, height=alt.RelativeBandSize(0.62), cornerRadiusEnd=2)
        .encode(y=y, x=x, tooltip=[alt.Tooltip("name:N", title="codes by"), alt.Tooltip("text:N", title="perplexity")])
    )
    text = bars.mark_text(align="left", dx=6, fontSize=12).encode(
        color=alt.ColorValue(palette.ink(dark)), text=alt.Text("text:N")
    )
    limit = parts.rule(marks.limit.value, f"{marks.limit.value:g} %: accepted", dark, dashed=True, after=True)
    poor = parts.rule(marks.poor.value, f"{marks.poor.value:g} %: poor", dark, dashed=True, after=True)
    return alt.layer(bars, text, *limit, *poor, height=30 * len(frame) + 50)
