"""What a rise of perplexity means by the guide's marks, and what its error is, in words; for commands and pages."""

from __future__ import annotations

from typing import Literal, NamedTuple

from advisor.knowledge import perplexity_marks
from advisor.types import TextSpec

Tone = Literal["good", "fair", "poor"]


class Mark(NamedTuple):
    """The judgement, and how glad it is."""

    text: str
    tone: Tone


def usual_range() -> str:
    """The rise of perplexity that is usually accepted: `5–10 %`."""
    marks = perplexity_marks()
    return f"{marks.acceptable.value:g}–{marks.limit.value:g} %"


def mark_within(change_pct: float, highest_pct: float) -> Mark:
    """How a measured change is judged whose interval ends at `highest_pct`, which may mean something worse."""
    mark, worst = mark_of(change_pct), mark_of(highest_pct)
    if worst.tone == mark.tone:
        return mark
    beyond = "what is poor" if worst.tone == "poor" else "more than that"
    return Mark(f"{mark.text}, though its interval reaches {beyond}", mark.tone)


def mark_of(change_pct: float) -> Mark:
    """How a change of perplexity in percent of the unquantized model's is judged."""
    marks, usual = perplexity_marks(), usual_range()
    if change_pct <= marks.acceptable.value:
        return Mark(f"well within what is usually accepted ({usual})", "good")
    if change_pct <= marks.limit.value:
        return Mark(f"within what is usually accepted ({usual})", "good")
    poor = f"{marks.poor.value:g} %"
    if change_pct <= marks.poor.value:
        return Mark(f"more than is usually accepted ({usual}), not yet poor ({poor})", "fair")
    return Mark(f"poor by the usual mark ({poor}); give it more bits", "poor")


def errors_said(text: TextSpec) -> str:
    """What the ± of an evaluation on this text is."""
    if text.one_sequence:
        return "± takes the tokens of a single sequence for independent, and is less than the standard error"
    return "± is one standard error"
