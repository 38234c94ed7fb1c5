"""The one palette of the charts: a hue per format family, the parts of memory, and inks for light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping

from advisor.types import Format

# From cool (many bits) to warm (few), lightness changing with the hue so that neighbours differ in a grey print and for
# colour-blind eyes. No chart relies on colour alone: cells and legends carry the format's name as well.
FAMILIES = {
    "fp32": "#2b2f77",
    "fp16": "#5b6fb5",
    "bf16": "#41549f",
    "fp8": "#3d8ec2",
    "int8": "#2a9988",
    "int4": "#e3b53f",
    "nf4": "#c5cf73",
    "int3": "#dd7a3e",
    "int2": "#b23a55",
}
MEMORY_PARTS = {"Weights": "#41549f", "KV cache": "#2a9988", "Activations": "#e3b53f", "Overhead": "#8d97a5"}
# A colour and a shape for each role, as `wording.role` names it: neighbours in colour differ in shape.
ROLES = {
    "Embedding": ("#9a6fc0", "diamond"),
    "LM head": ("#b23a55", "cross"),
    "Attention Q/K/V": ("#3d8ec2", "circle"),
    "Attention output": ("#2a9988", "square"),
    "MLP gate/up": ("#e3b53f", "triangle-up"),
    "MLP down": ("#dd7a3e", "triangle-down"),
    "Expert": ("#8fa33b", "triangle-right"),
    "Router": ("#5b6fb5", "triangle-left"),
    "Norm": ("#8d97a5", "stroke"),
    "Other": ("#8d97a5", "wedge"),
}
BAR = FAMILIES["fp8"]
PREDICTED, MEASURED = FAMILIES["int3"], FAMILIES["fp8"]
GOOD, BAD = FAMILIES["int8"], FAMILIES["int2"]


def format_colours(formats: Mapping[str, Format]) -> dict[str, str]:
    """Format name -> colour: the family's hue, each further member of the family a little lighter."""
    seen: dict[str, int] = {}
    colours = {}
    for fmt in formats.values():
        position = seen.setdefault(fmt.family, 0)
        colours[fmt.name] = lighter(FAMILIES[fmt.family], min(0.16 * position, 0.5))
        seen[fmt.family] = position + 1
    return colours


def page(dark: bool) -> str:
    """The colour of the page: a rim in it keeps marks apart that lie on each other."""
    return "#11161d" if dark else "#ffffff"


def ink(dark: bool) -> str:
    """The colour of text and rules that a chart draws on the page itself."""
    return "#c3cad4" if dark else "#4a5463"


def quiet(dark: bool) -> str:
    """The colour of text that is there to be found, not to be seen first."""
    return "#7d8896" if dark else "#8b95a3"


def faint(dark: bool) -> str:
    """The colour of outlines that should be seen last."""
    return "#2d3744" if dark else "#dde2e9"


def diverging(dark: bool) -> list[str]:
    """Below zero, zero, above zero; zero fades into the page."""
    return ["#5aa0e6", "#2b3440", "#f0913c"] if dark else ["#2166ac", "#f1f2f4", "#b35806"]


def ink_on(colour: str) -> str:
    """Black or white, whichever contrasts more with `colour` by WCAG relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in _channels(colour))]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#14181f" if luminance > 0.18 else "#ffffff"


def lighter(colour: str, share: float) -> str:
    """`colour` moved towards white by `share` (0 to 1)."""
    return "#" + "".join(f"{round(c + (255 - c) * share):02x}" for c in _channels(colour))


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
