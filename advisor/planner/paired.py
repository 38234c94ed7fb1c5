"""The error of the difference of two predictions from one profile, whose sequences both saw: for the comparison. Pure.

What a hard sequence adds to both losses goes away where they are subtracted sequence by sequence. Layers that both
plans store alike then count for little, where independent errors would count them twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from advisor import estimates
from advisor.errors import PlanError
from advisor.planner.prediction import predict
from advisor.types import Measurement, Plan, Prediction, SensitivityProfile


def paired_errors(profile: SensitivityProfile, one: Plan, other: Plan) -> tuple[float, float] | None:
    """Standard errors of the differences of KL and of delta_nll, nats per token.

    None where the predictions are not of this profile's scores, or scores of different sequences would be subtracted.
    """
    if not all(_predicted_by(profile, plan) for plan in (one, other)):
        return None
    scores = {(m.layer, m.format): m for m in profile.measurements}
    rows = [[scores[key] for key in plan.assignments.items() if key in scores] for plan in (one, other)]
    alike = {(m.layer, m.format) for m in rows[0]} & {(m.layer, m.format) for m in rows[1]}
    differ = [[m for m in own if (m.layer, m.format) not in alike] for own in rows]
    if not any(differ):
        return 0.0, 0.0
    lengths = {(len(m.projections), len(m.delta_nll_by_sequence)) for own in rows for m in own}
    if len(lengths) > 1 or min(lengths)[1] < 2:
        return None
    if min(lengths)[0] == 0:
        return _of_sums(*differ)
    return _of_sets(rows, differ, profile.calibration.draws)


def _predicted_by(profile: SensitivityProfile, plan: Plan) -> bool:
    if plan.predicted.measured:
        return False
    try:
        found = predict(profile, plan.assignments)
    except PlanError:
        return False
    return all(
        math.isclose(getattr(found, name), getattr(plan.predicted, name), rel_tol=1e-6, abs_tol=1e-12)
        for name in Prediction.model_fields
        if name not in ("unmeasured_layers", "measured")
    )


def _of_sums(one: Sequence[Measurement], other: Sequence[Measurement]) -> tuple[float, float]:
    """Where each loss is a sum over layers: those alike cancel; KL's errors add up, which needs no independence."""
    kl = math.fsum(m.kl_stderr for m in (*one, *other))
    return kl, estimates.standard_error(sum(_delta_nll(m) for m in other) - sum(_delta_nll(m) for m in one))


def _delta_nll(measurement: Measurement) -> np.ndarray:
    return np.array(measurement.delta_nll_by_sequence)


def _of_sets(
    rows: Sequence[Sequence[Measurement]], differ: Sequence[Sequence[Measurement]], draws: int
) -> tuple[float, float]:
    """Where KL counts interactions: never less than the spread of as many chi-squares, as for one prediction.

    What second order leaves out is added for the layers that differ, of either plan.
    """
    one_kl, other_kl = (_kl_by_sequence(own, differ, draws) for own in rows)
    kl = other_kl - one_kl
    chance = abs(float(kl.mean())) * math.sqrt(2 / (len(kl) * draws))
    error = max(estimates.standard_error(kl), chance)
    error = math.hypot(error, *(_left_out(own, draws) for own in differ if own))
    first = sum(_first_order(m) for m in differ[1]) - sum(_first_order(m) for m in differ[0])
    return error, math.hypot(estimates.standard_error(first), error)


def _first_order(measurement: Measurement) -> np.ndarray:
    """delta_nll - kl of each sequence, as it is: what to believe of it is no more certain."""
    return _delta_nll(measurement) - measurement.kl


def _kl_by_sequence(rows: Sequence[Measurement], differ: Sequence[Sequence[Measurement]], draws: int) -> np.ndarray:
    """KL of all rows together, `(sequences,)`; without rows nothing changes."""
    some = next(own for own in differ if own)[0]
    none = np.zeros_like(estimates.unpack(some, draws)[:, 1:])
    if estimates.too_few_to_meet(*none.shape):
        return sum((_kl(estimates.unpack(m, draws)[:, 1:]) for m in rows), np.zeros(len(none)))
    return _kl(sum((estimates.unpack(m, draws)[:, 1:] for m in rows), none))


def _kl(total: np.ndarray) -> np.ndarray:
    """The second order of summed projections `(sequences, draws)`, abrupt texts held as in a prediction."""
    nothing = np.zeros(len(total))
    return estimates.Change(kl=nothing, text=nothing, projections=total).by_sequence(damping=0.0)


def _left_out(rows: Sequence[Measurement], draws: int) -> float:
    """What second order leaves out of the KL of these layers: what its error has beyond the spread over sequences."""
    total = sum(estimates.unpack(m, draws)[:, 1:] for m in rows)
    kl, error = map(float, estimates.kl_of_sum(total))
    spread = max(estimates.standard_error(_kl(total)), kl * math.sqrt(2 / total.size))
    return math.sqrt(max(0.0, error**2 - spread**2))
