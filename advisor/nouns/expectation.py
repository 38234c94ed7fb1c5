"""The nouns of what is expected of a plan: loss, memory and speed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from advisor.nouns.base import FiniteNoun, relative_change


class Prediction(FiniteNoun):
    """What the plan should do to the model on text like the calibration text; nats per token.

    `delta_nll_stderr` is the standard error of the summed delta_nll over the sequences. `measured` where the whole plan
    was run on text held back from its making, instead of adding up scores of layers on the calibration text;
    `base_perplexity` is the unquantized model's on the same text.
    """

    delta_nll: float
    delta_nll_stderr: float
    kl: float
    kl_stderr: float
    base_perplexity: float
    perplexity: float
    perplexity_low: float
    perplexity_high: float
    unmeasured_layers: int = 0
    measured: bool = False

    @property
    def delta_ppl_pct(self) -> float:
        return 100 * relative_change(self.delta_nll)


class MemoryEstimate(FiniteNoun):
    """Bytes of one deployment, part by part, against what the engine may use of the device.

    All parts and the limit are those of one GPU; with several, each holds a share of every layer and all need the same.

    Attributes:
        weights_bytes: of the weights that one GPU holds.
        model_weights_bytes, original_weights_bytes: of all weights once, as the engine stores them and unquantized.
        decided_bits: average bits of the layers that the plan decides.
    """

    weights_bytes: int = Field(ge=0)
    kv_cache_bytes: int = Field(ge=0)
    activation_bytes: int = Field(ge=0)
    overhead_bytes: int = Field(ge=0)
    limit_bytes: int = Field(ge=0)
    decided_bits: float = Field(ge=0)
    original_weights_bytes: int = Field(ge=0)
    # Plans of earlier versions are for one GPU, which holds all weights.
    model_weights_bytes: int = Field(default_factory=lambda given: given["weights_bytes"], ge=0)
    gpus: int = Field(default=1, gt=0)

    @property
    def total_bytes(self) -> int:
        """Of one GPU."""
        return self.weights_bytes + self.kv_cache_bytes + self.activation_bytes + self.overhead_bytes

    @property
    def all_gpus_bytes(self) -> int:
        return self.gpus * self.total_bytes

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.limit_bytes


Bound = Literal["memory", "compute", "traffic"]


class LatencyEstimate(FiniteNoun):
    """How fast a deployment should be, by a roofline: an estimate until a measurement corrects it.

    Attributes:
        prefill_s: seconds to read one sequence of the budget's context; None where it cannot be told.
        decode_ms_per_step: milliseconds in which every sequence grows by one token; None where it cannot be told.
        sequences: how many decode at once.
        prefill_bound, decode_bound: what takes most of that time.
        basis: `roofline` of memory and compute, `bandwidth` alone, or `measured`: the decoding time is scaled by what
            a measured run took against its own estimate, on `device`.
        missing: what is not stated, and what cannot be told without it.
        uncounted: what takes time too, but is not stated.
    """

    prefill_s: float | None = None
    decode_ms_per_step: float | None = None
    sequences: int = Field(gt=0)
    prefill_bound: Bound | None = None
    decode_bound: Bound | None = None
    basis: Literal["roofline", "bandwidth", "measured"] = "roofline"
    device: str = ""
    missing: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()

    @property
    def tokens_per_s(self) -> float | None:
        """Of all sequences together, while they decode."""
        return None if self.decode_ms_per_step is None else 1000 * self.sequences / self.decode_ms_per_step

    @property
    def tokens_per_s_per_sequence(self) -> float | None:
        return None if self.decode_ms_per_step is None else 1000 / self.decode_ms_per_step
