"""What the report is made of: sections of sentences, tables, charts and commands, and the page that holds them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from altair import LayerChart
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from advisor.ui import palette
from advisor.ui.chart_parts import Picture

_WIDTH = 940  # pixels, as wide as the column of text
# Names are measured as they are drawn with Arial's widths; where it and its twins are missing, there is room to spare.
_FONT = "Arial, 'Liberation Sans', Helvetica, sans-serif"
_ROOM = {"left": 20, "top": 5, "right": 8, "bottom": 5}

Cell = str | tuple[str, ...]


@dataclass(frozen=True)
class Words:
    """A paragraph; `tone` is that of a verdict: good, fair or poor."""

    text: str
    tone: str = ""
    kind: str = "words"


@dataclass(frozen=True)
class Table:
    """Rows under heads, a cell of several lines as a tuple.

    Attributes:
        numbers: the columns that are set to the right.
        links: whether addresses become links.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    numbers: Sequence[int] = ()
    dense: bool = False
    links: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """A chart drawn twice, for light and for dark readers, as images that are part of the page."""

    light: str
    dark: str
    alt: str
    caption: str = ""
    kind: str = "figure"


@dataclass(frozen=True)
class Commands:
    """Lines for a shell."""

    lines: Sequence[str]
    kind: str = "commands"


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    id: str
    title: str
    blocks: Sequence[Words | Table | Figure | Commands]


@dataclass(frozen=True)
class Head:
    """What stands above all sections: the title, what it is of, and the headline numbers (label, value, note)."""

    title: str
    subtitle: str
    numbers: Sequence[tuple[str, str, str]] = field(default_factory=tuple)


def figure(
    draw: Callable[[bool], LayerChart | Picture], alt: str, caption: str = "", own_scale: bool = False
) -> Figure:
    """A chart as an image.

    Args:
        draw: the chart for a light page (False) or a dark one (True).
        alt: what it shows, for those who cannot see it.
        own_scale: the dark chart has a colour scale of its own. Else it is the light one with other inks, which spares
            drawing it again.
    """
    light = _svg(draw(False), False)
    dark = _svg(draw(True), True) if own_scale else _inked(light)
    return Figure(_image(light), _image(dark), alt, caption)


def page(head: Head, sections: Sequence[Section], created: str) -> str:
    """The whole report: one HTML file that fetches nothing. All text is escaped."""
    return _template().render(head=head, sections=[one for one in sections if one.blocks], created=created)


@cache
def _template() -> Template:
    folder = FileSystemLoader(Path(__file__).parent)
    rooms = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return rooms.get_template("report.html.j2")


def _svg(chart: LayerChart | Picture, dark: bool) -> str:
    import vl_convert  # it loads a JavaScript engine, which only a report needs

    specification = chart.to_dict(validate=False) | {
        "width": _WIDTH,
        "padding": _ROOM,
        "autosize": {"type": "fit", "contains": "padding"},
        "config": _config(dark),
    }
    return vl_convert.vegalite_to_svg(specification)


def _inked(svg: str) -> str:
    """A light chart in the inks of a dark page; colours of data are the same in both."""
    for ink in (palette.ink, palette.quiet, palette.faint):
        svg = svg.replace(ink(False), ink(True))
    return svg


def _image(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _config(dark: bool) -> dict[str, object]:
    ink, faint = palette.ink(dark), palette.faint(dark)
    words = {"labelColor": ink, "titleColor": ink, "titleFontWeight": 500, "labelFontSize": 12, "titleFontSize": 12}
    return {
        "aria": False,  # the image's own text says it, and a label on every mark would be most of the file
        "background": None,
        "font": _FONT,
        "view": {"stroke": None},
        "axis": words | {"gridColor": faint, "domainColor": faint, "tickColor": faint},
        "legend": words,
    }
