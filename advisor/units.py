"""Bytes as people read them, in binary units; every sentence, page and table of the product says them this way."""

from __future__ import annotations

KIB, MIB, GIB = 2**10, 2**20, 2**30


def size(count: float) -> str:
    """Bytes in the binary unit that reads best, never rounded to nothing: `300 bytes`, `128.00 MiB`, `1.25 GiB`."""
    for unit, factor, decimals in (("GiB", GIB, 2), ("MiB", MIB, 2), ("KiB", KIB, 1)):
        if abs(count) >= factor:
            return f"{count / factor:,.{decimals}f} {unit}"
    return f"{count:,.0f} {'byte' if count == 1 else 'bytes'}"
