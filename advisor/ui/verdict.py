"""What the measurements say of a plan, honestly: the rows of the comparison and one sentence. Pure, no streamlit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from advisor.knowledge import perplexity_marks
from advisor.types import Evaluation, Plan, relative_change
from advisor.ui import wording
from advisor.ui.frames import ChangeRow

_Z95 = 1.96


@dataclass(frozen=True)
class Sentence:
    """The verdict and how glad it is."""

    text: str
    tone: Literal["good", "fair", "poor"]


def latest(evaluations: Iterable[Evaluation]) -> dict[str, Evaluation]:
    """The newest evaluation of each variant that read the same text as the newest of all: original, plan, uniform."""
    evaluations = list(evaluations)
    if not evaluations:
        return {}
    text = evaluations[-1].text
    newest = {evaluation.variant: evaluation for evaluation in evaluations if evaluation.text == text}
    return {variant: newest[variant] for variant in sorted(newest, key=lambda name: (_rank(name), name))}


def change_pct(evaluation: Evaluation) -> float:
    """Measured change of perplexity against the original, in percent."""
    return 100 * relative_change(evaluation.delta_nll or 0.0)


def change_rows(plan: Plan, evaluations: Mapping[str, Evaluation], uniform: Mapping[str, Plan]) -> list[ChangeRow]:
    """Predicted and measured change of perplexity with 95 % intervals, the plan first."""
    rows = []
    for variant, evaluation in evaluations.items():
        if evaluation.delta_nll is None or variant == "original":
            continue
        prediction = plan if variant == "plan" else uniform.get(variant)
        if prediction is not None:
            predicted = prediction.predicted
            rows.append(_row(variant, "predicted", predicted.delta_nll, predicted.delta_nll_stderr))
        rows.append(_row(variant, "measured", evaluation.delta_nll, evaluation.delta_nll_stderr or 0.0))
    return rows


def sentence(evaluations: Mapping[str, Evaluation]) -> Sentence | None:
    """Whether the plan is good by the guide's marks, and whether it beat each uniform plan at its size.

    None while the plan itself is not measured.
    """
    plan = evaluations.get("plan")
    if plan is None or plan.delta_nll is None:
        return None
    change = change_pct(plan)
    mark, tone = _mark(change)
    parts = [f"The plan changes perplexity by {wording.percent(change)}: {mark}."]
    others = [e for name, e in evaluations.items() if name.startswith("uniform ") and e.delta_nll is not None]
    parts += [_against(plan, other) for other in others]
    beaten = any(_dominates(other, plan) for other in others)
    return Sentence(" ".join(parts), "poor" if beaten else tone)


def usual_range() -> str:
    """The rise of perplexity that is usually accepted: `5–10 %`."""
    marks = perplexity_marks()
    return f"{marks.acceptable.value:g}–{marks.limit.value:g} %"


def against_simple(plan: Plan, simple: Mapping[str, Plan]) -> Sentence | None:
    """Which simple plans (name -> plan) of no greater size are predicted to be as good; None where there is none.

    A plan is ranked by KL; what perplexity alone says is told as such.
    """
    most = plan.memory.model_weights_bytes
    rivals = {name: other for name, other in simple.items() if other.memory.model_weights_bytes <= most}
    as_good = [name for name, other in rivals.items() if _at_most(other.predicted.kl, plan.predicted.kl)]
    if as_good:
        return Sentence(
            f"Predicted as good or better at no greater size: {', '.join(as_good)}. This plan gains nothing over that.",
            "poor",
        )
    lower = [n for n, other in rivals.items() if _at_most(other.predicted.delta_nll, plan.predicted.delta_nll)]
    if lower:
        return Sentence(
            f"By perplexity alone, {', '.join(lower)} is predicted as good or better at no greater size; by KL, which "
            "carries less chance and which plans are ranked by, this plan is better.",
            "fair",
        )
    return None


def _at_most(value: float, other: float) -> bool:
    # Sums of the same scores in another order differ in their last digits.
    return value <= other + 1e-9 * abs(other)


def _rank(variant: str) -> int:
    return {"original": 0, "plan": 1}.get(variant, 2)


def _row(variant: str, kind: str, delta_nll: float, stderr: float) -> ChangeRow:
    low, high = delta_nll - _Z95 * stderr, delta_nll + _Z95 * stderr
    return ChangeRow(variant, kind, *(100 * relative_change(value) for value in (delta_nll, low, high)))


def _mark(change: float) -> tuple[str, Literal["good", "fair", "poor"]]:
    marks, usual = perplexity_marks(), usual_range()
    if change <= marks.acceptable.value:
        return f"well within what is usually accepted ({usual})", "good"
    if change <= marks.limit.value:
        return f"within what is usually accepted ({usual})", "good"
    poor = f"{marks.poor.value:g} %"
    if change <= marks.poor.value:
        return f"more than is usually accepted ({usual}), not yet poor ({poor})", "fair"
    return f"poor by the usual mark ({poor}); give it more bits", "poor"


def _against(plan: Evaluation, other: Evaluation) -> str:
    said = f"{other.variant} ({wording.percent(change_pct(other))}){_size_clause(plan, other)}"
    order = _compare(plan, other)
    if order:
        return f"It {'beats' if order < 0 else 'is worse than'} {said}."
    return f"Perplexity cannot tell it from {said} on this much text{_kl_clause(plan, other)}."


def _compare(plan: Evaluation, other: Evaluation) -> int:
    """-1 where the plan's loss is lower, 1 where it is higher, 0 where the difference lies within its error."""
    difference = (plan.delta_nll or 0.0) - (other.delta_nll or 0.0)
    # Both were scored on the same tokens, so their errors are not independent and this sum overstates the error.
    error = math.hypot(plan.delta_nll_stderr or 0.0, other.delta_nll_stderr or 0.0)
    return 0 if abs(difference) <= _Z95 * error else int(math.copysign(1, difference))


def _kl_clause(plan: Evaluation, other: Evaluation) -> str:
    """What KL says, which needs less text than perplexity to tell variants apart; nothing where it cannot either."""
    if plan.kl_to_original is None or other.kl_to_original is None:
        return ""
    error = math.hypot(plan.kl_stderr or 0.0, other.kl_stderr or 0.0)
    if abs(plan.kl_to_original - other.kl_to_original) <= _Z95 * error:
        return ""
    closer = "closer to" if plan.kl_to_original < other.kl_to_original else "farther from"
    return f"; by KL it stays {closer} the original"


def _size_clause(plan: Evaluation, other: Evaluation) -> str:
    if not plan.weights_bytes or not other.weights_bytes:
        return ""
    share = 100 * (plan.weights_bytes / other.weights_bytes - 1)
    if abs(share) < 0.5:
        return " at the same size"
    return f" at {abs(share):.0f} % {'more' if share > 0 else 'less'} size"


def _dominates(other: Evaluation, plan: Evaluation) -> bool:
    """Whether a uniform plan is better and no larger: then the plan was not worth making."""
    if not plan.weights_bytes or not other.weights_bytes:
        return False
    return _compare(plan, other) > 0 and other.weights_bytes <= plan.weights_bytes
