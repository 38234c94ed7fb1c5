"""What a score, its bar and its method mean, in sentences for people. Pure text, no streamlit."""

from __future__ import annotations

from collections import Counter

from advisor.formats.table import packed_bytes
from advisor.knowledge import find_engine, find_format
from advisor.memory import stored_bytes
from advisor.types import Layer, Plan, SensitivityProfile
from advisor.ui import wording


def ranking(profile: SensitivityProfile) -> str:
    """What the loss is that formats are ranked by, and whose changes reasons and tables tell."""
    if not any(score.projections for score in profile.measurements):
        return "Formats are ranked by KL, in nats per token."
    return (
        "Formats are ranked by twice the KL plus what of Δ NLL − KL stands out of its error, and by no less than a "
        "twentieth of the KL; all in nats per token."
    )


def counted(plan: Plan, layer: Layer) -> str:
    """How the bytes of a layer's other formats are counted where the engine stores it otherwise; else empty."""
    engine = find_engine(plan.request.engine)
    formats = (plan.assignments[layer.name], *(other.format for other in plan.reasons[layer.name].alternatives))
    known = [find_format(name) for name in formats if name in engine.formats]
    if plan.request.budget.weight_bits is None or all(
        stored_bytes(engine, fmt, layer) == packed_bytes(fmt, layer) for fmt in known
    ):
        return ""
    return f"Bytes are those of the formats' own layout, as average bits count them; {engine.label} stores others."


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


def other_direction(profile: SensitivityProfile) -> str:
    """How to see what giving each layer back wins, from where it cannot be told yet."""
    if profile.method == "exact":
        return (
            "Shown is the one direction: only this layer quantized. For the other, all but this one, open a plan and "
            "measure around it (*Giving layers back*): exact scores of single layers do not say how errors add up."
        )
    return (
        "Shown is the one direction: only this layer quantized. For the other, all but this one, save a plan made from "
        "these scores: they tell what giving each of its layers back would win."
    )


def price(mean: float, won: bool = False) -> str:
    """How the chart of loss against size is read, with the mean price of a MiB (nats per token)."""
    what = "giving a MiB back wins" if won else "a MiB saved costs"
    return (
        f"The dashed line is the mean price: {what} {wording.number(mean, 2)} nats per token. Above it "
        "bytes are dear and bits well spent, below it they are cheap to save. Layers of one size stand side by side "
        "from the first block to the last; what is zero or less stands at the lower edge."
    )


def around(profile: SensitivityProfile) -> str:
    """Which plan the profile was measured around: its formats, counted."""
    counts = Counter(fmt for fmt in profile.around.values() if find_format(fmt).quantized)
    return f"Measured around a plan with {wording.layers_by_format(dict(counts.most_common()))}."


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
