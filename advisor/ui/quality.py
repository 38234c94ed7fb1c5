"""The calibration text as its numbers and warnings show it: on the model page before a run, with the scores after."""

from __future__ import annotations

import streamlit as st

from advisor.types import TextQuality
from advisor.ui import common, wording


def warn(quality: TextQuality) -> None:
    """What is wrong with the text, and what to do about it."""
    for warning in quality.warnings:
        st.warning(warning)


def show(quality: TextQuality) -> None:
    """The numbers, each with what it means."""
    numbers = [
        ("Tokens", f"{quality.tokens:,}", "More tokens make the error bars smaller."),
        (
            "Distinct tokens",
            f"{quality.distinct_tokens:,}",
            f"Different tokens among them; the model knows {quality.vocabulary:,}.",
        ),
        (
            "Repeated",
            f"{100 * quality.repetition:.1f} %",
            "Share of the runs of 8 tokens that stood in the text before: a text that repeats itself says little new.",
        ),
        (
            "Perplexity",
            _number(quality.perplexity),
            "The unquantized model's own on this text; that of random text is near the size of the vocabulary.",
        ),
        (
            "Distance from evaluation text",
            f"{quality.divergence:.2f} bits" if quality.divergence is not None else "not known",
            "Jensen-Shannon divergence between how often each token occurs in this text and in the part of it that is "
            "held out for evaluation: 0 is the same, 1 no token in common.",
        ),
        (
            "By chance alone",
            f"{quality.expected_divergence:.2f} bits" if quality.expected_divergence is not None else "not known",
            "The distance that two samples of these sizes show when both come from one and the same text.",
        ),
    ]
    common.metrics(numbers)


def _number(value: float | None) -> str:
    return "not known" if value is None else wording.number(value, 4)
