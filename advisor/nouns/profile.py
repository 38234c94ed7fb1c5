"""The nouns of measuring: the text, scores of layers, what a run costs, and the sensitivity profile."""

from __future__ import annotations

import binascii
import math
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from advisor.nouns.base import Noun, now, relative_change
from advisor.nouns.model import Catalogue

PROFILE_SCHEMA_VERSION = 1

# Second bytes of little-endian fp16 numbers whose exponent is all ones: infinities, and what is no number.
_LARGEST_BASE = 100.0  # nats per token; guessing among a million tokens loses 14
_LARGEST_LOSS = 1e9  # nats per token; beyond what logits of 32 bits can lose in earnest
_NOT_FINITE = bytes(byte for byte in range(256) if byte & 0x7C == 0x7C)


class TextQuality(Noun):
    """Whether calibration text deserves trust: what its tokens look like, and what is wrong with them.

    Attributes:
        tokens, distinct_tokens: how many tokens the windows have, and how many different ones.
        vocabulary: how many the model knows.
        repetition: share of the runs of 8 tokens inside windows that stood earlier in the same or another window.
        divergence: Jensen-Shannon divergence in bits between how often each token occurs in this text and in the
            evaluation text: 0 the same, 1 no token in common; None without an evaluation text.
        expected_divergence: what two samples of these sizes show when both come from the two texts shuffled together;
            little text diverges from itself, so a divergence means something by how far it lies above this one.
        perplexity, evaluation_perplexity: the model's own on the two texts, None where it was not run.
        warnings: what is wrong, each with what to do next.
    """

    tokens: int
    distinct_tokens: int
    vocabulary: int
    repetition: float
    divergence: float | None = None
    expected_divergence: float | None = None
    perplexity: float | None = None
    evaluation_perplexity: float | None = None
    warnings: tuple[str, ...] = ()


class CalibrationSpec(Noun):
    """Which text a measurement saw: `samples` sequences of `seq_len` tokens of `text`, chosen by `seed`.

    `draws` are the labels that the Fisher method drew per token; 0 where everything was measured exactly.
    """

    text: str
    samples: int = Field(gt=0)
    seq_len: int = Field(ge=8)
    seed: int = 0
    draws: int = Field(default=0, ge=0)
    text_sha256: str = ""
    quality: TextQuality | None = None

    @property
    def refining_samples(self) -> int:
        """Sequences of each of the three parts of text that refining reads: half as many find worse steps."""
        return 2 * self.samples


FormatName = Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=32)]


Method = Literal["exact", "fisher", "auto"]


class Measurement(Noun):
    """What one layer in one format did to the model, everything else untouched; all values per token, in nats.

    Attributes:
        delta_nll: mean change of the negative log-likelihood (change of ln perplexity).
        kl: mean KL(p_full || p_quantized) over the vocabulary.
        delta_nll_stderr, kl_stderr: standard errors: of the paired per-token differences where measured exactly, of
            the spread over sequences and drawn labels where estimated.
        delta_nll_by_sequence: mean delta_nll of each calibration sequence; sums over layers keep their covariance.
        method: `exact` ran the model with the quantized layer; `fisher` estimated from gradients.
        projections: what `fisher` saw in every sequence and draw, packed by `advisor.estimates`; scores sets of layers.
    """

    layer: str
    format: str
    delta_nll: float
    delta_nll_stderr: float
    kl: float
    kl_stderr: float
    tokens: int
    delta_nll_by_sequence: tuple[float, ...] = ()
    method: Literal["exact", "fisher"] = "exact"
    seconds: float = 0.0
    projections: str = ""

    @property
    def delta_ppl_pct(self) -> float:
        """Change of perplexity in percent."""
        return 100 * relative_change(self.delta_nll)


class WorkEstimate(Noun):
    """What a profiling run should take, from the pace of the model on a little of its text.

    Attributes:
        scores: layers times formats.
        forward_passes: the work in units of one forward pass over the whole text, vocabulary head included.
        memory_bytes: at the peak, the model's weights included.
        at_most: True where the work depends on what is found on the way (`auto`).
    """

    scores: int
    tokens: int
    forward_passes: float
    seconds: float
    memory_bytes: int
    at_most: bool = False


class Preview(Noun):
    """What can be said before a profiling run: of its text and of its cost."""

    method: Method
    calibration: CalibrationSpec
    estimate: WorkEstimate


class Baseline(Noun):
    """The unquantized model on the same tokens, and the KL that its dtype's rounding alone causes."""

    nll: float
    nll_stderr: float
    tokens: int
    noise_floor_kl: float | None = None

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll)


class SensitivityProfile(Noun):
    """All measurements of one model on one text: expensive to make, stored, and decided upon many times.

    Attributes:
        method: of the whole profile; `auto` estimates all and measures exactly what leaves decisions open.
        around: empty where every layer was quantized alone. Else the formats of a whole plan, all in place but for the
            measured layer: its scores are what giving that one layer back wins.
    """

    schema_version: Literal[1] = PROFILE_SCHEMA_VERSION
    id: str
    catalogue: Catalogue
    calibration: CalibrationSpec
    method: Method
    around: dict[str, FormatName] = {}
    dtype: Literal["bf16", "fp16", "fp32"]
    baseline: Baseline
    measurements: tuple[Measurement, ...]
    created: datetime = Field(default_factory=now)
    provenance: dict[str, str] = {}

    @model_validator(mode="after")
    def _sound(self) -> SensitivityProfile:
        """Numbers that plans can be made from: a profile may come from a file that was cut off or edited by hand."""
        if not (0 <= self.baseline.nll <= _LARGEST_BASE and math.isfinite(self.baseline.nll_stderr)):
            raise ValueError(f"baseline: the model's own loss is not a number from 0 to {_LARGEST_BASE:g} nats")
        for layer in self.catalogue.quantizable:
            if len(layer.shape) < 2 or min(layer.shape) < 1:
                raise ValueError(f"catalogue.layers: {layer.name} has the shape {layer.shape}, which is no matrix")
        known, seen = {layer.name for layer in self.catalogue.quantizable}, set()
        for number, score in enumerate(self.measurements):
            key, wrong = (score.layer, score.format), _unsound(score, self.calibration.draws)
            if score.layer not in known:
                wrong = "the catalogue has no such quantizable layer"
            if key in seen:
                wrong = "this layer and format are measured twice"
            if wrong:
                raise ValueError(f"measurements.{number} ({score.layer} in {score.format}): {wrong}")
            seen.add(key)
        return self

    @property
    def formats(self) -> tuple[str, ...]:
        """Measured formats, in the order first met."""
        return tuple(dict.fromkeys(m.format for m in self.measurements))

    @property
    def measured_layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(m.layer for m in self.measurements))


def _unsound(score: Measurement, draws: int) -> str:
    """What is wrong with the numbers of a measurement that saw so many drawn labels; empty where nothing is."""
    values = score.delta_nll, score.delta_nll_stderr, score.kl, score.kl_stderr, *score.delta_nll_by_sequence
    if not all(map(math.isfinite, values)):
        return "a number is not finite"
    if score.delta_nll_stderr < 0 or score.kl_stderr < 0:
        return "a standard error is negative"
    if max(map(abs, values)) > _LARGEST_LOSS:
        return f"a loss is beyond {_LARGEST_LOSS:g} nats"
    if not score.projections:
        return ""
    if score.kl < 0:  # without projections it may be: what giving a layer back wins
        return f"KL is {score.kl:g}, and cannot be negative"
    try:
        stored = binascii.a2b_base64(score.projections, strict_mode=True)
    except ValueError:
        return "the projections cannot be read"
    if stored[1::2].translate(None, _NOT_FINITE) != stored[1::2]:
        return "a projection is not finite"
    sequences, rest = divmod(len(stored), 2 * (1 + draws))
    if rest or not draws:
        return f"{len(stored) // 2} projections do not come from {draws} drawn labels a token and the text's own"
    if score.method == "fisher" and sequences != len(score.delta_nll_by_sequence):
        return f"projections of {sequences} sequences stand beside {len(score.delta_nll_by_sequence)} changes of loss"
    return ""
