"""What a group of layers can be, as numbers, and what they measure: the words that every search for a plan shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Measure = Literal["loss", "cost", "side_loss", "time"]
MEASURES: tuple[Measure, ...] = ("cost", "loss", "side_loss", "time")
# Sums of floats that differ by less than this share count as equal.
EQUAL = 1e-12


@dataclass(frozen=True)
class Candidate:
    """One thing that a group can be: its loss (any unit), its cost (bytes), and two more measures that may be bounded.

    `side_loss` is a second loss; `time` counts whole ticks of any length.
    """

    key: str
    loss: float
    cost: int
    side_loss: float = 0.0
    time: int = 0
