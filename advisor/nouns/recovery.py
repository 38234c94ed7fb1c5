"""The noun of a recovery: what a short distillation of a quantized model cost and won."""

from __future__ import annotations

from pydantic import Field

from advisor.nouns.base import FiniteNoun


class Recovery(FiniteNoun):
    """Scales and norms trained so that the quantized model says what the original does; codes and sizes stay.

    Attributes:
        kept: whether the trained values are in the files, which they are only where they lose less on text that took
            no part.
        tokens: of `text` trained on, repeated passes counted.
        held_back: tokens of it that took no part, on which are measured, before and after: `kl`, nats per token to the
            original, and perplexity.
        seconds: of the training, measuring before and after it included.
    """

    steps: int = Field(gt=0)
    kept: bool
    text: str
    tokens: int
    held_back: int
    kl_before: float
    kl: float
    perplexity_before: float
    perplexity: float
    seconds: float
