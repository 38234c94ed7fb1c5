"""Fisher projections packed into measurements and read again: scores of single layers and of any set of them. Pure.

A projection is s / sqrt(2 T): s = <gradient, dW> of one sequence of T predictions, so that kl is the mean square of the
projections with drawn labels. Projections of several layers add up before they are squared. Each is kept in 16 bits:
2.7 bytes of text for every sequence and draw, 224 layers x 4 formats x 16 sequences x 9 passes are 340 KB.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from advisor.types import Measurement

Array = TypeVar("Array", float, np.ndarray)

# A power of two that lifts the projections of INT8 layers (in root nats) out of fp16's subnormal range. What lies
# beyond 64, a layer that ruins the model, is held there.
_SCALE = 1024.0
_LARGEST = 65504.0

# KL is of second order in dW, the next term of third: as a share of the score it grows like the root of the score. The
# factors are what exact scores of single layers and of whole plans showed; over many layers third orders cancel.
_HIGHER_ORDERS = 0.75
_HIGHER_ORDERS_OF_SETS = 0.2

DAMPING = 1.0
# Fewer labels, sequences times draws, do not tell how the errors of layers meet.
_FEWEST_LABELS = 16
LEAST_SHARE = 0.05

# Now and then a text sits where the model changes abruptly: its slopes are a hundred times those of other texts, while
# the true change stays a few times as large. Second order says nothing there, so a sequence counts for this many times
# the median one at most; ordinary sequences stay far below.
_STEEPEST = 4.0


def pack(projections: np.ndarray) -> str:
    """`(sequences, passes)` as base64 of little-endian fp16, row by row."""
    return base64.b64encode(np.clip(projections * _SCALE, -_LARGEST, _LARGEST).astype("<f2").tobytes()).decode()


def unpack(measurement: Measurement, draws: int) -> np.ndarray:
    """`(sequences, 1 + draws)` in fp64: the first column is of the text's own labels. Empty where nothing was kept."""
    return _unpacked(measurement.projections, 1 + draws)


def _unpacked(text: str, passes: int) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(text), "<f2").astype(np.float64) / _SCALE
    return values.reshape(-1, passes)


def fisher_measurement(
    layer: str, fmt: str, projections: np.ndarray, predicted: int, seconds: float = 0.0
) -> Measurement:
    """What the projections `(sequences, 1 + draws)` of sequences of `predicted` tokens each say of a layer.

    The standard error comes from the spread over sequences, and is never less than that of as many squared normal
    numbers, whose relative variance is 2: few sequences can agree by chance. What second order leaves out is added.
    """
    packed = pack(projections)
    kept = _unpacked(packed, projections.shape[1])  # what a resumed run will read
    sequences, draws = len(kept), kept.shape[1] - 1
    by_sequence = kl_by_sequence(kept[:, 1:])
    kl = by_sequence.mean()
    kl_stderr = max(standard_error(by_sequence), kl * math.sqrt(2 / (sequences * draws)))
    kl_stderr = math.hypot(kl_stderr, _HIGHER_ORDERS * kl**1.5)
    first = _held(first_order(kept, predicted))
    return Measurement(
        layer=layer,
        format=fmt,
        delta_nll=float(first.mean() + kl),
        delta_nll_stderr=math.hypot(standard_error(first), kl_stderr),
        kl=float(kl),
        kl_stderr=float(kl_stderr),
        tokens=sequences * predicted,
        delta_nll_by_sequence=tuple((first + kl).tolist()),
        method="fisher",
        seconds=seconds,
        projections=packed,
    )


def first_order(projections: np.ndarray, predicted: int) -> np.ndarray:
    """<gradient on the text's own labels, dW> / T of each sequence, nats per token."""
    return projections[:, 0] * math.sqrt(2 / predicted)


def set_kl(measurements: Sequence[Measurement], draws: int) -> tuple[float, float]:
    """KL of all these layers quantized together, interactions included, and its standard error; nats per token."""
    kl, stderr = kl_of_sum(sum(unpack(m, draws)[:, 1:] for m in measurements))
    return float(kl), float(stderr)


def too_few_to_meet(sequences: int, draws: int) -> bool:
    """Whether chance alone says how the errors of layers meet, so that their KL is better added up.

    KL of a set has a relative error of sqrt(2 / labels); that of a sum of many layers has far less ("Few labels" in
    benchmarks/README.md).
    """
    return sequences * draws < _FEWEST_LABELS


def kl_by_sequence(total: np.ndarray) -> np.ndarray:
    """Second order of projections with drawn labels, `(..., sequences, draws)` -> `(..., sequences)`, in nats."""
    return _held(np.square(total).mean(-1))


def kl_of_sum(total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`set_kl` of projections with drawn labels that were added up already, `(..., sequences, draws)`."""
    return kl_of_sequences(kl_by_sequence(total), total.shape[-1])


def kl_of_sequences(by_sequence: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """KL of many layers and its standard error from that of each sequence, `(..., sequences)`."""
    kl, sequences = by_sequence.mean(-1), by_sequence.shape[-1]
    stderr = np.maximum(standard_errors(by_sequence), kl * math.sqrt(2 / (sequences * draws)))
    return kl, np.hypot(stderr, _HIGHER_ORDERS_OF_SETS * kl**1.5)


def believed_first_order(first: np.ndarray) -> np.ndarray:
    """What to believe of scores' delta_nll - kl once a plan was chosen by them; `(..., sequences)` in and out.

    The layers of a plan are those that the scores flatter. The factor that shrinks every other sequence therefore comes
    from the sequences between them (cross-fitting): what chance gave the ones is not found again in the others.
    """
    believed = np.zeros_like(first)
    for part, other in ((0, 1), (1, 0)):
        own = first[..., other::2]
        if own.shape[-1]:
            factor = shrink_factor(own.mean(-1, keepdims=True), standard_errors(own)[..., None])
            believed[..., part::2] = first[..., part::2] * factor
    return believed


def give_back(measurements: Sequence[Measurement], draws: int) -> dict[str, tuple[float, float]]:
    """Layer -> KL won by giving it back while all the others stay quantized, with its standard error."""
    parts = {m.layer: unpack(m, draws)[:, 1:] for m in measurements}
    total = sum(parts.values())
    found = {}
    for layer, part in parts.items():
        won = kl_by_sequence(total) - kl_by_sequence(total - part)
        found[layer] = float(won.mean()), standard_error(won)
    return found


def with_projections(exact: Measurement, estimated: Measurement, draws: int) -> Measurement:
    """An exact measurement that keeps the estimate's projections, scaled to its own KL, so that sets can be scored."""
    projections = unpack(estimated, draws).copy()
    projections[:, 1:] *= math.sqrt(max(exact.kl, 0.0) / estimated.kl) if estimated.kl > 0 else 0.0
    return exact.model_copy(update={"projections": pack(projections)})


def expected_loss(measurement: Measurement) -> float:
    """The loss to expect on other text, nats per token: KL, and of the first-order term what stands out of its error.

    delta_nll - kl is how far the text itself would have the weights move; on little text it is part chance. The
    positive-part James-Stein factor 1 - (stderr / value)^2 removes what a value of that error would show by itself.
    """
    first = measurement.delta_nll - measurement.kl
    return measurement.kl + first * shrink_factor(first, first_order_stderr(measurement))


def damped_loss(expected: Array, kl: Array, damping: float = DAMPING) -> Array:
    """The loss to rank by where many layers are quantized together: as expected, but KL counts 1 + damping times.

    Taken alone, the largest errors look too cheap: the second order leaves the third out, and what a layer wins at
    first order holds near the original weights only. Damping the second order is what Levenberg and Marquardt do.
    However good the text makes a change look, it costs a share of its KL: where memory is to spare, less is changed.

    Args:
        expected: `expected_loss` of the measurement whose `kl` it is.
    """
    return np.maximum(expected + damping * kl, LEAST_SHARE * kl)


def first_order_stderr(measurement: Measurement) -> float:
    """Standard error of delta_nll - kl over the sequences."""
    return standard_error(np.array(measurement.delta_nll_by_sequence) - measurement.kl)


def difference_stderr(some: Sequence[Measurement], others: Sequence[Measurement], draws: int) -> float:
    """Standard error of sum(damped_loss of others) - sum(damped_loss of some): what tells two formats apart.

    Estimates saw the same sequences and draws, so their losses are subtracted sequence by sequence before the spread is
    taken: what a hard text does to both goes away. Never less than the spread of as many chi-squares; what second order
    leaves out is added for each. Everything else counts as independent. Shrink factors are taken as they are.
    """
    measured = [*some, *others]
    if {m.method for m in measured} != {"fisher"} or len({len(m.projections) for m in measured}) > 1:
        return math.hypot(*map(_loss_stderr, measured))
    difference = sum(_loss_by_sequence(m, draws) for m in others) - sum(_loss_by_sequence(m, draws) for m in some)
    kl = math.fsum(m.kl for m in others) - math.fsum(m.kl for m in some)
    chance = (1 + DAMPING) * abs(kl) * math.sqrt(2 / (len(difference) * max(draws, 1)))
    left_out = (_HIGHER_ORDERS * m.kl**1.5 for m in measured)
    return math.hypot(max(standard_error(difference), chance), *left_out)


def _loss_by_sequence(measurement: Measurement, draws: int) -> np.ndarray:
    kl = kl_by_sequence(unpack(measurement, draws)[:, 1:])
    first = np.array(measurement.delta_nll_by_sequence) - measurement.kl
    return (1 + DAMPING) * kl + first * shrink_factor(float(first.mean()), standard_error(first))


def _loss_stderr(measurement: Measurement) -> float:
    """Of `damped_loss`, or of KL alone where a score has no projections."""
    if not measurement.projections:
        return measurement.kl_stderr
    first, stderr = measurement.delta_nll - measurement.kl, first_order_stderr(measurement)
    return math.hypot((1 + DAMPING) * measurement.kl_stderr, shrink_factor(first, stderr) * stderr)


def shrink_factor(value: Array, stderr: Array) -> Array:
    """Which part of a value with this standard error to believe: 0 for one within its error, near 1 far outside."""
    if isinstance(value, np.ndarray):
        return np.maximum(0.0, 1.0 - np.divide(stderr, value, out=np.full_like(value, np.inf), where=value != 0) ** 2)
    return max(0.0, 1.0 - (stderr / value) ** 2) if value else 0.0


# ------------------------------------------------------------------------------- around a whole plan


@dataclass(frozen=True)
class Losses:
    """What a whole plan does to each sequence of a text, nats per token: `(sequences,)` each."""

    kl: np.ndarray
    delta_nll: np.ndarray

    @property
    def expected(self) -> float:
        """The loss to expect on other text: KL, and of what likelihood says beyond it what stands out of its error."""
        excess = self.delta_nll - self.kl
        mean = float(excess.mean())
        return float(self.kl.mean()) + mean * shrink_factor(mean, standard_error(excess))

    def improves(self, other: Losses) -> bool:
        """Whether KL falls, and the expected loss falls by more than the standard error of KL's change."""
        difference = Losses(self.kl - other.kl, self.delta_nll - other.delta_nll)
        change = self.expected - other.expected
        return difference.kl.mean() < 0 and change < -standard_error(difference.kl)


@dataclass(frozen=True)
class Change:
    """What another format for some layers would do to a plan, from gradients taken with the plan in place.

    Attributes:
        kl, text: the first-order change of KL and of the text's own negative log-likelihood, `(sequences,)`, nats per
            token.
        projections: `(sequences, draws)`, as in a measurement: their mean square is the second-order change of both.
    """

    kl: np.ndarray
    text: np.ndarray
    projections: np.ndarray

    def loss(self, damping: float) -> float:
        """The expected change of the plan's loss, its second order taken (1 + damping) times."""
        return float(self.by_sequence(damping).mean())

    def by_sequence(self, damping: float) -> np.ndarray:
        """The same for each sequence; of the text beyond KL, the part to believe."""
        excess = self.text - self.kl
        believed = shrink_factor(float(excess.mean()), standard_error(excess))
        return self.kl + believed * excess + (1 + damping) * kl_by_sequence(self.projections)


def together(changes: Sequence[Change]) -> Change:
    """Several changes at once, their interactions included."""
    return Change(*(sum(getattr(change, field) for change in changes) for field in ("kl", "text", "projections")))


def _held(values: np.ndarray) -> np.ndarray:
    """`(..., sequences)`, those of abrupt texts held at `_STEEPEST` times the median size."""
    sizes, middle = np.sort(np.abs(values), axis=-1), values.shape[-1] // 2  # np.median takes five times as long
    median = (sizes[..., middle] + sizes[..., (values.shape[-1] - 1) // 2]) / 2
    limit = _STEEPEST * median[..., None]
    return np.minimum(np.maximum(values, -limit), limit)


def standard_error(values: np.ndarray) -> float:
    """Standard error of a mean; of a single value nothing is known, and it is taken to be all error."""
    found, count = values.tolist(), len(values)  # of the few sequences of a score numpy would take ten times as long
    if count < 2:
        return abs(found[0])
    mean = math.fsum(found) / count
    return math.sqrt(math.fsum((value - mean) ** 2 for value in found) / (count - 1) / count)


def standard_errors(values: np.ndarray) -> np.ndarray:
    """`standard_error` of every `(sequences,)` along the last axis."""
    count = values.shape[-1]
    return values.std(axis=-1, ddof=1) / math.sqrt(count) if count > 1 else np.abs(values[..., 0])
