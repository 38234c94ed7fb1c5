"""What assignments should do to the model, from the scores of a sensitivity profile: between profile and plan. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from advisor import estimates
from advisor.errors import PlanError
from advisor.planner.kept import kept
from advisor.types import Prediction, SensitivityProfile, relative_change

# 95 % of a normal distribution lie within this many standard errors.
_CONFIDENCE = 1.96


def predict(profile: SensitivityProfile, assignments: dict[str, str]) -> Prediction:
    """What the assignments should do to the model.

    Where the scores carry Fisher projections, KL counts the layers' interactions, and of the first-order change of
    likelihood what other sequences bear out (`estimates.believed_first_order`); where labels are too few for either
    (`estimates.too_few_to_meet`), KL is summed and is all that is predicted. Else both are sums of what each layer did
    alone, and the KL's error the sum of the layers' errors, an upper bound that needs no independence. Layers in the
    catalogue's dtype count as no change. No plan is predicted to be better than the unquantized model: where a sum says
    so, layers were chosen by what chance added to their scores. Raises PlanError for an assignment that was not
    measured.
    """
    return predictor_of(profile)(assignments)


class Loss(NamedTuple):
    """Of a whole plan, nats per token."""

    delta_nll: float
    delta_nll_stderr: float
    kl: float
    kl_stderr: float


def prediction_of(loss: Loss, base_perplexity: float, unmeasured_layers: int, measured: bool = False) -> Prediction:
    """The loss as perplexity with its 95 % interval; `measured` where the whole plan was run."""

    def perplexity(errors: float) -> float:
        return base_perplexity * (1 + relative_change(loss.delta_nll + errors * loss.delta_nll_stderr))

    return Prediction(
        **loss._asdict(),
        base_perplexity=base_perplexity,
        perplexity=perplexity(0),
        perplexity_low=perplexity(-_CONFIDENCE),
        perplexity_high=perplexity(_CONFIDENCE),
        unmeasured_layers=unmeasured_layers,
        measured=measured,
    )


class Predictor:
    """`predict` for many assignments of one profile: its scores are unpacked once, into arrays with a row for each."""

    def __init__(self, profile: SensitivityProfile):
        self._dtype, self._draws = profile.catalogue.dtype, profile.calibration.draws
        self._base_perplexity = profile.baseline.perplexity
        measured = set(profile.measured_layers)
        self._unmeasured = sum(layer.name not in measured for layer in profile.catalogue.quantizable)
        scores = {(m.layer, m.format): m for m in profile.measurements}
        self._row = {key: row for row, key in enumerate(scores)}
        self._scores = list(scores.values())
        # Of one length: formats that were added later may have seen fewer sequences so far.
        self._lengths = [(len(m.projections), len(m.delta_nll_by_sequence)) for m in self._scores]

    def __call__(self, assignments: dict[str, str]) -> Prediction:
        """Raises PlanError for an assignment that was not measured."""
        return self.of_loss(self.loss(assignments))

    def of_loss(self, loss: Loss) -> Prediction:
        """What to believe of a loss as the scores add up."""
        believed = loss._replace(delta_nll=max(loss.delta_nll, 0.0))
        return prediction_of(believed, self._base_perplexity, self._unmeasured)

    def loss(self, assignments: dict[str, str]) -> Loss:
        """As the scores add up, which may be below zero. Raises PlanError as calling does."""
        return self.losses(np.array([self.rows(assignments)], int))[0]

    def losses(self, plans: np.ndarray) -> list[Loss]:
        """`loss` of many plans at once, for a fraction of the time where neighbours are alike.

        Args:
            plans: `(plans, places)`, the `rows` that each adds up; -1 where there is none.
        """
        used = np.zeros(len(self._scores) + 1, bool)
        used[plans] = True
        lengths = {self._lengths[row] for row in np.flatnonzero(used[:-1]).tolist()}
        if len(lengths) > 1 and len(plans) > 1:
            return [self.losses(plan[None, :])[0] for plan in plans]
        if len(lengths) == 1 and min(lengths)[0] > 0:
            return self._together(plans, lengths.pop())
        return [self._one_by_one(plan[plan >= 0]) for plan in plans]

    def changes(self, plans: np.ndarray) -> list[tuple[float, float]]:
        """By how much more each plan should lose than the first of them, and the standard error of that.

        Both saw the same sequences: what one does to both losses goes away where they are subtracted sequence by
        sequence. Never less than the spread of as many chi-squares, as for one prediction. Empty where the scores of
        the plans are no estimates of the same sequences.

        Args:
            plans: as `losses` takes them.
        """
        used = np.unique(plans[plans >= 0])
        lengths = {self._lengths[row] for row in used.tolist()}
        if len(lengths) != 1 or min(lengths)[0] == 0:
            return []
        own = lengths.pop()
        drawn, first, certain = np.split(self._sums(plans, own), self._columns(own), 1)
        kl = self._kl_by_sequence(drawn, own)
        kl, first, certain = (part[1:] - part[0] for part in (kl, first, certain))
        chance = np.abs(kl.mean(1)) * math.sqrt(2 / (kl.shape[1] * self._draws))
        error = np.hypot(np.maximum(estimates.standard_errors(kl), chance), estimates.standard_errors(first))
        return list(zip((kl.mean(1) + certain[:, 0]).tolist(), error.tolist(), strict=True))

    def rows(self, assignments: dict[str, str]) -> list[int]:
        """The scores that these assignments add up, by their places. Raises PlanError as calling does."""
        changed = [item for item in assignments.items() if item[1] != self._dtype]
        for layer, fmt in changed:
            if (layer, fmt) not in self._row:
                raise PlanError(
                    f"'{layer}' was not measured in {fmt}, so nothing can be predicted; profile it in {fmt}."
                )
        return [self._row[item] for item in changed]

    def _together(self, plans: np.ndarray, lengths: tuple[int, int]) -> list[Loss]:
        drawn, first, certain = np.split(self._sums(plans, lengths), self._columns(lengths), 1)
        kl, kl_stderr = estimates.kl_of_sequences(self._kl_by_sequence(drawn, lengths), self._draws)
        stderr = np.hypot(estimates.standard_errors(first), kl_stderr)
        return [Loss(*found) for found in np.stack([kl + certain[:, 0], stderr, kl, kl_stderr], 1).tolist()]

    def _kl_by_sequence(self, drawn: np.ndarray, lengths: tuple[int, int]) -> np.ndarray:
        """Of sums of the first columns of `_unpacked`, `(plans, sequences)`."""
        return drawn if self._few(lengths) else estimates.kl_by_sequence(drawn.reshape(len(drawn), -1, self._draws))

    def _few(self, lengths: tuple[int, int]) -> bool:
        return estimates.too_few_to_meet(lengths[1], self._draws)

    def _sums(self, plans: np.ndarray, lengths: tuple[int, int]) -> np.ndarray:
        """What the scores of each plan add up to, column by column of `_unpacked`."""
        values = self._unpacked[lengths]
        if len(plans) == 1:
            return values[self._places[plans[plans >= 0]]].sum(0, keepdims=True)
        from scipy.sparse import csr_array  # takes as long to import as a page may take to answer

        # Plans beside each other have most in common: each is the one before it and what it has otherwise.
        before = np.vstack([np.full_like(plans[:1], -1), plans[:-1]])
        number, place = np.nonzero(plans != before)
        steps = csr_array((len(plans), len(values)))
        for rows, sign in ((plans, 1.0), (before, -1.0)):
            row = rows[number, place]
            known = row >= 0
            at = number[known], self._places[row[known]]
            steps = steps + csr_array((np.full(len(at[0]), sign), at), shape=steps.shape)
        sums = (steps @ values).cumsum(0)
        sums[(plans < 0).all(1)] = 0.0  # what rounding leaves of a plan that changes nothing would count as a loss
        return sums

    def _columns(self, lengths: tuple[int, int]) -> list[int]:
        """Where first orders begin in `_unpacked`, and what to believe of their mean."""
        width = self._unpacked[lengths].shape[1]
        return [width - 1 - lengths[1], width - 1]

    @cached_property
    def _places(self) -> np.ndarray:
        """Of each score, its place among those of its lengths."""
        seen: Counter[tuple[int, int]] = Counter()
        places = []
        for lengths in self._lengths:
            places.append(seen[lengths])
            seen[lengths] += 1
        return np.array(places)

    @cached_property
    def _unpacked(self) -> dict[tuple[int, int], np.ndarray]:
        """Lengths -> a row for each score: projections with drawn labels (sequences x draws), first orders (sequences),
        and what to believe of their mean; of few labels KL (sequences), first orders, and no belief in them."""
        found = {}
        for lengths in set(self._lengths):
            scores = [m for m, own in zip(self._scores, self._lengths, strict=True) if own == lengths and m.projections]
            if scores:
                projections = np.stack([estimates.unpack(m, self._draws)[:, 1:] for m in scores])
                first_order = np.stack([np.array(m.delta_nll_by_sequence) - m.kl for m in scores])
                believed = estimates.believed_first_order(first_order).mean(1, keepdims=True)
                if self._few(lengths):
                    projections, believed = estimates.kl_by_sequence(projections), np.zeros_like(believed)
                found[lengths] = np.hstack([projections.reshape(len(scores), -1), first_order, believed])
        return found

    def _one_by_one(self, rows: Sequence[int] | np.ndarray) -> Loss:
        delta_nll, kl, kl_stderr, variance = self._alone[rows].sum(0)
        return Loss(float(delta_nll), self._stderr(rows, float(variance)), float(kl), float(kl_stderr))

    @cached_property
    def _alone(self) -> np.ndarray:
        columns = [(m.delta_nll, max(m.kl, 0.0), m.kl_stderr, m.delta_nll_stderr**2) for m in self._scores]
        return np.array(columns).reshape(-1, 4)

    def _stderr(self, rows: Sequence[int] | np.ndarray, variance: float) -> float:
        """Of the summed delta_nll over the sequences; layers move together, so their sum is what varies."""
        counts = {self._lengths[row][1] for row in rows}
        if len(counts) == 1 and (count := counts.pop()) >= 2:
            return float(self._by_sequence[count][rows].sum(0).std(ddof=1) / math.sqrt(count))
        return math.sqrt(variance)

    @cached_property
    def _by_sequence(self) -> dict[int, np.ndarray]:
        """Number of sequences -> delta_nll `(scores, sequences)`; nothing of scores with another number."""
        counts = {count for _, count in self._lengths}
        return {
            count: np.array(
                [
                    m.delta_nll_by_sequence if len(m.delta_nll_by_sequence) == count else [math.nan] * count
                    for m in self._scores
                ]
            )
            for count in counts
        }


predictor_of = kept(Predictor)
