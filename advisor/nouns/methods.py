"""The nouns of quantization methods: what each does, when it pays, and which one a plan gets."""

from __future__ import annotations

from typing import Literal

from advisor.nouns.base import Noun
from advisor.nouns.knowledge import Sourced

MethodName = Literal["auto", "rtn", "gptq", "awq", "smoothquant"]


class QuantizationMethod(Noun):
    """One row of `profiles/methods.toml`.

    Attributes:
        approach: after training (`ptq`), or with it (`qat`).
        chosen_by: what brings it in: an option of `apply`, the format of a layer, the target of an export, or training.
        formats: the formats that it serves; targets: the exports, every one where there are none; engines: who loads
            the result.
        calibrates: whether it reads calibration text.
    """

    name: str
    label: str
    approach: Literal["ptq", "qat"]
    chosen_by: Literal["method", "format", "target", "training"]
    does: str
    use_when: str
    needs: str
    time: str
    formats: tuple[str, ...]
    targets: tuple[str, ...] = ()
    engines: tuple[str, ...]
    calibrates: bool = False
    source: str
    checked_on: str


class Approach(Noun):
    """Quantizing a finished model, or training it to be quantized; `int4_perplexity` is the guide's example."""

    name: str
    label: str
    retraining: str
    time: str
    int4_perplexity: Sourced
    used_by: str
    use_when: str
    source: str
    checked_on: str


class MethodChoice(Noun):
    """The method that a plan gets for a target, and why."""

    name: str
    reason: str


class AppliedMethod(Noun):
    """How the codes of an export were chosen.

    Attributes:
        asked: what was asked for, which may be `auto`; method: what was carried out, for this `reason`.
        text, samples, seq_len: what it was calibrated on; None for round-to-nearest.
        kl, nearest_kl: nats per token to the unquantized model, of the method and of rounding to nearest, on `tokens`
            that neither saw.
    """

    asked: MethodName
    method: str
    reason: str
    text: str | None = None
    samples: int | None = None
    seq_len: int | None = None
    kl: float | None = None
    nearest_kl: float | None = None
    tokens: int | None = None
