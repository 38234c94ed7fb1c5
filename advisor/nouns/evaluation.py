"""The nouns of confirming: the held-out text, and what was measured on it."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from advisor.nouns.base import Noun, now
from advisor.nouns.expectation import LatencyEstimate
from advisor.nouns.model import ModelRef


class TextSpec(Noun):
    """Text that an evaluation read: held out from the calibration text of the plan that it judges."""

    text: str
    tokens: int
    seq_len: int
    text_sha256: str = ""


class Evaluation(Noun):
    """What was measured on held-out text, for one variant of a model.

    Attributes:
        variant: `original`, `plan`, `uniform int4_g64`, ... or a folder's name.
        kl_to_original, same_top1: against the unquantized model, where it was at hand.
        weights_bytes: bytes of all weights in the layout of the plan's engine, so that variants compare.
        file_bytes: bytes of all tensors in the files that were written for this variant, None where none were.
        ms_per_token: median time of one decoding step at batch 1 on `device`; None where the weights that would run
            on it are only simulated.
        latency: the speed of the plan at its own load, corrected by `ms_per_token`; None where the plan is for another
            device or engine than this ran on.
    """

    variant: str
    model: ModelRef
    text: TextSpec
    nll: float
    nll_stderr: float
    perplexity: float
    perplexity_stderr: float
    delta_nll: float | None = None
    delta_nll_stderr: float | None = None
    kl_to_original: float | None = None
    kl_stderr: float | None = None
    same_top1: float | None = None
    weights_bytes: int | None = None
    file_bytes: int | None = None
    ms_per_token: float | None = None
    latency: LatencyEstimate | None = None
    device: str = "cpu"
    seconds: float = 0.0
    created: datetime = Field(default_factory=now)
    notes: tuple[str, ...] = ()
