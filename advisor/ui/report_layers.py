"""The part of the report that says of every layer why it has its format, and why it has no other."""

from __future__ import annotations

from collections import Counter

from advisor.knowledge import find_engine, find_format
from advisor.memory import stored_bytes
from advisor.types import Alternative, Plan, Reason, SensitivityProfile
from advisor.ui import explain, wording
from advisor.ui.report_parts import Commands, Figure, Table, Words

Blocks = list[Words | Table | Figure | Commands]


def reasons(plan: Plan, profile: SensitivityProfile | None) -> Blocks:
    """A row for every layer that the plan decides, and a sentence for those that it leaves alone."""
    if not plan.reasons:
        return [Words("This plan carries no reasons: it was written by hand or by an earlier version.")]
    heads = ("Layer", "Format", "Why", "Why not another")
    said = {name: plan.reasons.get(name) for name in plan.assignments}
    nowhere = set.intersection(*(_unmeasured(reason) for reason in said.values()))
    words = {name: (_why(reason), _others(reason, nowhere)) for name, reason in said.items()}
    rows = [(name, wording.format_label(fmt), *words[name]) for name, fmt in plan.assignments.items()]
    if profile is not None:
        heads = ("Layer", "Format", "Size", "KL", "Why", "Why not another")
        scored = {(m.layer, m.format): wording.with_error(m.kl, m.kl_stderr) for m in profile.measurements}
        engine, layers = find_engine(plan.request.engine), profile.catalogue.by_name()
        rows = [
            (
                name,
                wording.format_label(fmt),
                wording.size(stored_bytes(engine, find_format(fmt), layers[name])),
                scored.get((name, fmt), "–"),
                *words[name],
            )
            for name, fmt in plan.assignments.items()
        ]
    note = (
        "KL in nats per token, in the chosen format, with every other layer as it is. Of another format: the change of "
        "the loss that formats are ranked by, and of size. A close call: with bytes counted at what one is worth in "
        "the plan, the runner-up and the chosen format differ by less than 1.96 standard errors of their scores."
    )
    if profile is not None:
        note = f"{note} {explain.ranking(profile)}"
    numbers = (2, 3) if profile is not None else ()
    missing = (
        [Words(f"Formats that no layer was measured in: {wording.format_labels(sorted(nowhere))}.")] if nowhere else []
    )
    return [*missing, Table(heads, rows, note, numbers, dense=True), *_left_alone(plan)]


def _why(reason: Reason | None) -> tuple[str, ...]:
    if reason is None:
        return ("not said",)
    advice = [verdict.reason for verdict in reason.verdicts if verdict.advice]
    return (reason.text, *advice)


def _unmeasured(reason: Reason | None) -> set[str]:
    """The formats that nothing but a missing measurement forbids."""
    alternatives = reason.alternatives if reason is not None else ()
    return {other.format for other in alternatives if other.delta_loss is None and not _ban(other)}


def _others(reason: Reason | None, nowhere: set[str]) -> tuple[str, ...]:
    if reason is None:
        return ("–",)
    unmeasured = _unmeasured(reason)
    lines = [_other(other) for other in reason.alternatives if other.format not in unmeasured]
    if unmeasured - nowhere:
        lines.append(f"not measured: {wording.format_labels(sorted(unmeasured - nowhere))}")
    return tuple(lines) or ("nothing else was possible",)


def _other(other: Alternative) -> str:
    ban, name = _ban(other), wording.format_label(other.format)
    if ban:
        return f"{name}: not possible, {ban}"
    return f"{name}: {wording.signed(other.delta_loss or 0.0)} nats, {wording.size_change(other.delta_bytes)}"


def _ban(other: Alternative) -> str:
    """Why a format cannot be; that it was not measured is said elsewhere."""
    return "; ".join(
        verdict.reason for verdict in other.verdicts if not verdict.allowed and verdict.rule != "measurement"
    )


def _left_alone(plan: Plan) -> list[Words]:
    """The weights that no plan decides, counted by reason."""
    counts = Counter(reason.text for name, reason in plan.reasons.items() if name not in plan.assignments)
    if not counts:
        return []
    said = " ".join(f"{wording.plural(count, 'weight')}: {text}" for text, count in counts.most_common())
    return [Words(f"Not decided by the plan. {said}")]
