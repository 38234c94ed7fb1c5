"""What the measurements say of a plan, honestly: the rows of the comparison and one sentence. Pure, no streamlit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from advisor.marks import Tone, mark_within
from advisor.planner.comparison import Comparison, LossDifference
from advisor.planner.refine import BY_SCORES, REFINED
from advisor.types import Contender, Evaluation, Plan, Refinement, relative_change
from advisor.ui import wording
from advisor.ui.frames import ChangeRow

_Z95 = 1.96
# Medians of a few runs differ by so much from one time to the next.
_AS_FAST = 0.05


@dataclass(frozen=True)
class Sentence:
    """The verdict and how glad it is."""

    text: str
    tone: Tone


def change_pct(evaluation: Evaluation) -> float:
    """Measured change of perplexity against the original, in percent."""
    return 100 * relative_change(evaluation.delta_nll or 0.0)


def change_rows(plan: Plan, evaluations: Mapping[str, Evaluation], uniform: Mapping[str, Plan]) -> list[ChangeRow]:
    """Predicted and measured change of perplexity with 95 % intervals, the plan first."""
    rows = []
    for variant, evaluation in evaluations.items():
        if evaluation.delta_nll is None or variant == "original":
            continue
        name = wording.labelled(variant)
        prediction = plan if variant == "plan" else uniform.get(variant)
        if prediction is not None:
            predicted = prediction.predicted
            rows.append(_row(name, "predicted", predicted.delta_nll, predicted.delta_nll_stderr))
        rows.append(_row(name, "measured", evaluation.delta_nll, evaluation.delta_nll_stderr or 0.0))
    return rows


def sentence(evaluations: Mapping[str, Evaluation]) -> Sentence | None:
    """Whether the plan is good by the guide's marks, and whether it beat each uniform plan at its size.

    None while the plan itself is not measured.
    """
    plan = evaluations.get("plan")
    if plan is None or plan.delta_nll is None:
        return None
    change = change_pct(plan)
    low, high = (100 * relative_change(plan.delta_nll + sign * _Z95 * (plan.delta_nll_stderr or 0)) for sign in (-1, 1))
    mark, tone = mark_within(change, high)
    interval = f"{wording.percent(low)} to {wording.percent(high)}"
    parts = [f"The plan changes perplexity by {wording.percent(change)} ({interval}): {mark}."]
    others = [e for name, e in evaluations.items() if name.startswith("uniform ") and e.delta_nll is not None]
    parts += [_against(plan, other) for other in others]
    parts += _speed(plan, evaluations.get("original"))
    beaten = any(_dominates(other, plan) for other in others)
    return Sentence(" ".join(parts), "poor" if beaten else tone)


def against_simple(found: Mapping[str, Comparison]) -> Sentence | None:
    """Whether the simple plans (name -> compared with this plan) of no greater size lose more, by more than chance.

    None where there is none of them. A plan is ranked by KL; what perplexity alone says is told as such.
    """
    rivals = {
        wording.labelled(name): one
        for name, one in found.items()
        if one.other.memory.model_weights_bytes <= one.one.memory.model_weights_bytes
    }
    if not rivals:
        return None
    if as_good := [name for name, one in rivals.items() if one.same_formats or _surely(one.kl) < 0]:
        return Sentence(
            f"Predicted as good or better at no greater size: {', '.join(as_good)}. This plan gains nothing over that.",
            "poor",
        )
    if alike := {name: one.kl for name, one in rivals.items() if not _surely(one.kl)}:
        said = [f"{name} {wording.signed(kl.value)} ± {wording.number(kl.stderr, 2)}" for name, kl in alike.items()]
        return Sentence(
            "These scores cannot tell this plan from simple ones of no greater size. KL, nats per token, above this "
            f"plan's: {', '.join(said)}. A profile of more samples can, and so can refining, which measures them all.",
            "fair",
        )
    if lower := [name for name, one in rivals.items() if one.delta_nll.value <= 0]:
        return Sentence(
            f"By perplexity alone, {', '.join(lower)} is predicted as good or better at no greater size; by KL, which "
            "carries less chance and which plans are ranked by, this plan is better.",
            "fair",
        )
    losses = [f"{name} +{wording.number(one.kl.value)}" for name, one in rivals.items()]
    return Sentence(
        f"No simple plan of at most this size is predicted to lose as little. KL, nats per token, above this plan's: "
        f"{', '.join(losses)}.",
        "good",
    )


def _surely(difference: LossDifference) -> int:
    """1 where the other plan loses more by more than chance, -1 where it loses less, 0 where that cannot be told."""
    return 0 if difference.within_error else int(math.copysign(1, difference.value))


def of_comparison(found: Comparison, layers: int, name: str) -> Sentence:
    """How far two plans are apart, and whether that is more than chance.

    Args:
        layers: that can be quantized.
        name: of the other plan.
    """
    if found.same_formats:
        return Sentence(f"Both plans give each of the {layers:,} layers the same format.", "fair")
    differ = f"{len(found.layers):,} of {wording.plural(layers, 'layer')} differ."
    if not found.same_basis:
        return Sentence(
            f"{differ} One loss was measured with the whole plan in place and the other adds up scores of layers, so "
            "their difference says little.",
            "fair",
        )
    if not found.same_text:
        return Sentence(f"{differ} Their losses are for different texts, so their difference says little.", "fair")
    how = "Measured" if found.one.predicted.measured else "Predicted"
    if found.kl.within_error:
        return Sentence(f"{differ} {how} losses cannot tell them apart: they differ by less than their errors.", "fair")
    more = "more" if found.kl.value > 0 else "less"
    amount = wording.with_error(abs(found.kl.value), found.kl.stderr)
    return Sentence(f"{differ} {how} KL of {name} is {amount} nats per token {more}.", "fair")


def of_refinement(found: Refinement) -> Sentence:
    """Who lost the least on the held-back text, and by how much the others lose more."""
    winner = next(one for one in found.contenders if one.name == found.winner)
    others = sorted((one for one in found.contenders if one is not winner), key=lambda one: one.expected_loss)
    more = [
        f"{wording.labelled(one.name)} {wording.number(one.expected_loss - winner.expected_loss)}" for one in others
    ]
    behind = f" Nats per token that others lose more: {', '.join(more)}." if more else ""
    text = f"{found.held_back_tokens:,} tokens held back from the gradients"
    if winner.name == REFINED:
        return Sentence(f"The refined plan loses the least on {text}.{behind}", "good")
    if winner.name.startswith(BY_SCORES):
        stands = "The plan by scores alone stands" if winner.name == BY_SCORES else f"The plan by {winner.name} won"
        return Sentence(f"{stands}: no step away from it loses less on {text}.{behind}", "fair")
    return Sentence(
        f"A simple plan won: {wording.labelled(winner.name)} loses less on {text} than the plan by scores, and no step "
        f"away from it is better.{behind}",
        "poor",
    )


def started_from(found: Refinement) -> Contender:
    """The plan that the first round improved: the best of those that were there before."""
    return min((one for one in found.contenders if one.name != REFINED), key=lambda one: one.expected_loss)


def of_rounds(found: Refinement) -> str:
    """What the rounds did to either text, so that a fit to the gradients' own text is seen."""
    taken = sum(one.damping is not None for one in found.rounds)
    if not taken:
        return "No step was taken: none was better on the held-back text."
    own = wording.percent(_fall(found.calibration_kl_before, found.rounds[-1].calibration_kl))
    held_back = wording.percent(_fall(started_from(found).kl, found.rounds[-1].kl))
    return (
        f"{wording.plural(taken, 'step')} taken. KL changed by {own} on the text of the gradients and by {held_back} "
        "on the held-back text: only the second is a gain, and only it decides. A fall on the first text alone "
        "would be a fit to that text."
    )


def _fall(before: float, after: float) -> float:
    return 100 * (after / before - 1) if before else 0.0


def _row(variant: str, kind: str, delta_nll: float, stderr: float) -> ChangeRow:
    low, high = delta_nll - _Z95 * stderr, delta_nll + _Z95 * stderr
    return ChangeRow(variant, kind, *(100 * relative_change(value) for value in (delta_nll, low, high)))


def _against(plan: Evaluation, other: Evaluation) -> str:
    said = f"{wording.labelled(other.variant)} ({wording.percent(change_pct(other))}){_size_clause(plan, other)}"
    order = _compare(plan, other)
    if order:
        return f"It {'beats' if order < 0 else 'is worse than'} {said}."
    return f"Perplexity cannot tell it from {said} on this much text{_kl_clause(plan, other)}."


def _speed(plan: Evaluation, original: Evaluation | None) -> list[str]:
    """How fast it decodes beside the original; nothing where one of them was not timed, or elsewhere."""
    if original is None or not (plan.ms_per_token and original.ms_per_token) or plan.device != original.device:
        return []
    ratio = plan.ms_per_token / original.ms_per_token
    factor = f"{wording.number(max(ratio, 1 / ratio), 2)} times as"
    said = f"takes {factor} long as" if ratio > 1 else f"is {factor} fast as"
    said = "is as fast as" if abs(ratio - 1) < _AS_FAST else said
    return [f"On the machine that measured it ({plan.device}), decoding {said} the original's."]


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
