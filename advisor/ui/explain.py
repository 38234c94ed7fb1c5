"""What a score, its bar and its method mean, in sentences for people. Pure text, no streamlit."""

from __future__ import annotations

from collections import Counter

from advisor.knowledge import find_format
from advisor.types import SensitivityProfile
from advisor.ui import wording


def scores(profile: SensitivityProfile, won: bool = False) -> str:
    """Two sentences: what a score means and how it was found; what its bar means.

    Args:
        won: the scores are of giving layers back, be it that they were measured so or that estimates say so.
    """
    if won:
        how = (
            "the model was run for every layer" if profile.around else "this is estimated from the profile's gradients"
        )
        return (
            "A score says how much closer to the original the model's predictions come, per token of the text, when "
            f"this layer alone gets its weights back and the rest of the plan stays quantized; {how}. {_bar()}, and a "
            "score below zero is chance, or an error that cancels those of other layers."
        )
    return (
        "A score says how far the model's predictions move, per token of the text, when this layer alone is quantized; "
        f"{_how_alone(profile)}. {_bar(', from sequences and drawn labels' if profile.method == 'fisher' else '')}."
    )


def around(profile: SensitivityProfile) -> str:
    """Which plan the profile was measured around: its formats, counted."""
    counts = Counter(fmt for fmt in profile.around.values() if find_format(fmt).quantized)
    said = ", ".join(f"{wording.plural(count, 'layer')} in {fmt}" for fmt, count in counts.most_common())
    return f"Measured around a plan with {said}."


def _how_alone(profile: SensitivityProfile) -> str:
    if profile.method == "exact":
        return "the model was run for every layer and format"
    draws = wording.plural(profile.calibration.draws, "label")
    estimated = f"this is estimated from a few backward passes, with {draws} drawn per token"
    if profile.method == "fisher":
        return estimated
    return f"{estimated}, and measured by running the model where the estimates leave a choice open"


def _bar(source: str = "") -> str:
    return (
        f"Its bar is one standard error to each side{source}: two layers whose bars overlap are not told apart by this "
        "text"
    )
