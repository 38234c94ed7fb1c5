"""What the scores of a profile say of single layers, kept while the profile is: many plans are made from one. Pure."""

from __future__ import annotations

from typing import NamedTuple

from advisor.estimates import damped_loss, difference_stderr, expected_loss, too_few_to_meet
from advisor.planner.kept import kept
from advisor.types import Measurement, SensitivityProfile

Scored = tuple[str, str]  # names of a layer and a format


class LayerLoss(NamedTuple):
    """Of one layer in one format, nats per token: what formats are chosen by, and the change of likelihood to expect.

    Formats are chosen by KL where the layer was measured alone. Where its score has Fisher projections, by the loss to
    expect on other text in company: `estimates.damped_loss` (benchmarks/plans.py).
    """

    loss: float
    delta_nll: float


class LayerLosses:
    """Scores of single layers as losses, and how surely two of them differ; each worked out when first asked for."""

    def __init__(self, profile: SensitivityProfile):
        self.scores: dict[Scored, Measurement] = {(m.layer, m.format): m for m in profile.measurements}
        self._draws = profile.calibration.draws
        self._losses: dict[Scored, LayerLoss] = {}
        self._parts: dict[Scored, tuple[float, float]] = {}
        self._stderrs: dict[tuple[tuple[Scored, ...], ...], float] = {}

    def __getitem__(self, scored: Scored) -> LayerLoss:
        if scored not in self._losses:
            score, (expected, kl) = self.scores[scored], self.parts(scored)
            self._losses[scored] = (
                LayerLoss(damped_loss(expected, kl), expected)
                if score.projections
                else LayerLoss(expected, score.delta_nll)
            )
        return self._losses[scored]

    def parts(self, scored: Scored) -> tuple[float, float]:
        """Of an estimate, the loss to expect and the KL that is damped; of a layer measured alone, KL and nothing."""
        if scored not in self._parts:
            score = self.scores[scored]
            self._parts[scored] = (expected_loss(score), score.kl) if score.projections else (max(score.kl, 0.0), 0.0)
        return self._parts[scored]

    def difference_stderr(self, some: tuple[Scored, ...], others: tuple[Scored, ...]) -> float:
        """Standard error of the difference of two sums of losses, which saw the same text."""
        if (some, others) not in self._stderrs:
            measured = ([self.scores[scored] for scored in side] for side in (some, others))
            self._stderrs[some, others] = difference_stderr(*measured, self._draws)
        return self._stderrs[some, others]


layer_losses = kept(LayerLosses)


@kept
def adds_up(profile: SensitivityProfile) -> bool:
    """Whether its estimates are of too few labels to tell how errors of layers meet: what is planned adds them up."""
    estimated = [len(score.delta_nll_by_sequence) for score in profile.measurements if score.projections]
    return bool(estimated) and too_few_to_meet(min(estimated), profile.calibration.draws)
