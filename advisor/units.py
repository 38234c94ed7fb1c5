"""Numbers, bytes, seconds and counts as people read them, the same in every sentence, page and table of the product."""

from __future__ import annotations

import math

KIB, MIB, GIB = 2**10, 2**20, 2**30


def number(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits, in powers of ten only where zeros would hide it."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-3:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def size(count: float) -> str:
    """Bytes in the binary unit that reads best, never rounded to nothing: `300 bytes`, `128.00 MiB`, `1.25 GiB`."""
    for unit, factor, decimals in (("GiB", GIB, 2), ("MiB", MIB, 2), ("KiB", KIB, 1)):
        if abs(count) >= factor:
            return f"{count / factor:,.{decimals}f} {unit}"
    return plural(round(count), "byte")


def plural(count: int, noun: str) -> str:
    """`1 layer`, `30 layers`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration(seconds: float) -> str:
    """`48 s`, `3 min 20 s`, `28 min`, `2 h 05 min`."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 10:
        return f"{minutes} min {rest:02d} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def seconds(value: float) -> str:
    """A short time in the unit that people read it in: `2.1 s`, `35 ms`, `410 µs`."""
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if value * factor >= 1:
            return f"{value * factor:,.3g} {unit}" if value * factor < 1000 else f"{value * factor:,.0f} {unit}"
    return f"{value * 1e6:.3g} µs"
