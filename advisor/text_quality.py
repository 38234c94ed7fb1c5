"""Says whether calibration text deserves trust, by its tokens and by how well the model predicts them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from advisor.types import TextQuality

if TYPE_CHECKING:
    import torch

# Measured with SmolLM2's tokenizer on 512 to 32,768 tokens of Python's reference, conversations made of it, Wikipedia
# and code. Sound text stays below 0.13 of repetition and 0.83 of entropy; a repeated paragraph passes 0.8, random
# tokens 0.99. Above its expected divergence, a text is at most 0.19 bits from its own held-out part and 0.24 from one
# that is half of it; code is 0.21 to 0.37 from Python's reference, Wikipedia 0.30 to 0.47.
FEW_TOKENS = 2_000
REPETITION = 0.3
_ENTROPY_OF_UNIFORM = 0.95
DIVERGENCE_ABOVE_EXPECTED = 0.25
NLL_OF_UNIFORM = 0.6  # in units of ln(vocabulary), the loss of a model that knows nothing

_RUN = 8
_BLOCK = 64  # words come in bursts: samples of single tokens would diverge far less than samples of text do
_SHUFFLES = 16
_FEWEST_FOR_ENTROPY = 256  # below, hardly a word of any text has come twice


def text_quality(
    windows: torch.Tensor,
    evaluation: torch.Tensor | None,
    vocabulary: int,
    perplexity: float | None = None,
    evaluation_perplexity: float | None = None,
) -> TextQuality:
    """What the tokens of the calibration `windows` are like, beside those of the `evaluation` text.

    Args:
        windows, evaluation: `(windows, length)` token ids; the lengths may differ.
        vocabulary: how many tokens the model knows.
        perplexity, evaluation_perplexity: the model's own on the two texts, where it was run.
    """
    tokens = windows.cpu().numpy()
    divergence = expected = None
    if evaluation is not None:
        divergence, expected = _divergence(tokens, evaluation.cpu().numpy())
    quality = TextQuality(
        tokens=tokens.size,
        distinct_tokens=len(np.unique(tokens)),
        vocabulary=vocabulary,
        repetition=_repetition(tokens),
        divergence=divergence,
        expected_divergence=expected,
        perplexity=perplexity,
        evaluation_perplexity=evaluation_perplexity,
    )
    found = (_small(quality), _random(quality, tokens), _repeating(quality), _unlike(quality))
    return quality.model_copy(update={"warnings": tuple(warning for warning in found if warning)})


def _small(quality: TextQuality) -> str | None:
    if quality.tokens >= FEW_TOKENS:
        return None
    return (
        f"{quality.tokens:,} tokens are few, and the scores will be uncertain: use {FEW_TOKENS:,} or more, such as 8 "
        "samples of 256."
    )


def _random(quality: TextQuality, tokens: np.ndarray) -> str | None:
    limit = NLL_OF_UNIFORM * math.log(quality.vocabulary)
    own, other = quality.perplexity, quality.evaluation_perplexity
    if own is not None and math.log(own) > limit:
        if other is not None and math.log(other) > limit:
            return (
                f"The model predicts neither this text nor the evaluation text (perplexity {own:,.0f} and "
                f"{other:,.0f}): check that its weights are whole and that the tokenizer belongs to them."
            )
        return (
            f"The text looks random to the model (perplexity {own:,.0f}, with {quality.vocabulary:,} tokens to choose "
            "from): use text such as the model is going to read."
        )
    if tokens.size >= _FEWEST_FOR_ENTROPY and _entropy_of_uniform(tokens, quality.vocabulary) > _ENTROPY_OF_UNIFORM:
        return (
            "The text looks random, hardly any token comes more often than another: use text such as the model is "
            "going to read."
        )
    return None


def _repeating(quality: TextQuality) -> str | None:
    if quality.repetition <= REPETITION:
        return None
    return (
        f"The text repeats itself ({quality.repetition:.0%} of its runs of {_RUN} tokens came earlier): take the "
        "repeated passages out, or use a text with more in it."
    )


def _unlike(quality: TextQuality) -> str | None:
    divergence, expected = quality.divergence, quality.expected_divergence
    if divergence is None or expected is None or divergence - expected <= DIVERGENCE_ABOVE_EXPECTED:
        return None
    return (
        f"The text is unlike the evaluation text ({divergence:.2f} bits apart, samples of one text would be "
        f"{expected:.2f}): calibrate on what the model is going to read, or mix the two, joined by `+`."
    )


def _repetition(tokens: np.ndarray) -> float:
    if tokens.shape[1] < _RUN:
        return 0.0
    runs = np.lib.stride_tricks.sliding_window_view(tokens, _RUN, axis=1).reshape(-1, _RUN)
    return 1 - len(np.unique(runs, axis=0)) / len(runs)


def _entropy_of_uniform(tokens: np.ndarray, vocabulary: int) -> float:
    """The entropy of how often tokens occur, against that of as many drawn uniformly."""
    uniform = np.random.default_rng(0).integers(vocabulary, size=tokens.size)
    found, most = (_entropy(np.unique(drawn, return_counts=True)[1]) for drawn in (tokens, uniform))
    return found / most if most else 0.0


def _divergence(tokens: np.ndarray, evaluation: np.ndarray) -> tuple[float, float]:
    """(divergence, expected divergence) in bits; see TextQuality."""
    distinct, both = np.unique(np.concatenate([tokens.ravel(), evaluation.ravel()]), return_inverse=True)
    found = _between(both[: tokens.size], both[tokens.size :], len(distinct))
    length = min(_BLOCK, tokens.size, evaluation.size)
    blocks = both[: both.size // length * length].reshape(-1, length)
    own = min(max(round(tokens.size / length), 1), len(blocks) - 1)
    draw = np.random.default_rng(0)
    shuffled = (draw.permutation(blocks) for _ in range(_SHUFFLES))
    return found, float(np.mean([_between(mixed[:own], mixed[own:], len(distinct)) for mixed in shuffled]))


def _between(one: np.ndarray, other: np.ndarray, distinct: int) -> float:
    """The Jensen-Shannon divergence in bits between how often each of `distinct` tokens occurs in the two."""
    p, q = (np.bincount(tokens.ravel(), minlength=distinct) / tokens.size for tokens in (one, other))
    return max(_entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2, 0.0)


def _entropy(weights: np.ndarray) -> float:
    """Entropy in bits of the distribution that `weights`, 0 or more, are in proportion to."""
    p = weights[weights > 0] / weights.sum()
    return float(-(p * np.log2(p)).sum())
