"""What a layer is in the files of an export, as read back from them: every reader under `export/` returns these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stored:
    """One layer's weight as its tensors hold it.

    Attributes:
        format: name of a row in `profiles/formats.toml` whose codes these are: kind, bits, symmetry and what becomes of
            activations. An engine with groups of its own may store several of our formats alike: any of them will do.
        group_size: weights that share a scale in the files, along the input axis; None is one scale per output
            channel, or none.
        bytes: codes, scales and zero points together, as they are in the files.
    """

    format: str
    group_size: int | None
    bytes: int
