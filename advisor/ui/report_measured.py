"""The parts of the report about proof: what was measured of the plan, by which method, and how to make it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from advisor import reproduce
from advisor.knowledge import find_engine, find_hardware, find_target
from advisor.marks import errors_said
from advisor.methods import method_note
from advisor.types import Evaluation, ExportRecord, Plan, SensitivityProfile, Sourced, latest_evaluations
from advisor.ui import charts, result_tables, verdict, wording
from advisor.ui.report_parts import Commands, Figure, Table, Words, figure
from advisor.units import duration

Blocks = list[Words | Table | Figure | Commands]
_METHODS = {
    "fisher": "Every layer was scored in every format from backward passes over the calibration text: KL to second "
    "order from the Fisher information, with error bars from the spread over sequences and drawn labels.",
    "exact": "Every layer was scored in every format by running the model with that one layer quantized.",
    "auto": "Every layer was scored from backward passes, and where error bars left a choice open, by running the "
    "model with that one layer quantized.",
}


def found(plan: Plan, evaluations: Sequence[Evaluation], simple: Mapping[str, Plan]) -> Blocks:
    """Prediction and measurement beside each other, and the tables of everything that was measured."""
    shown = latest_evaluations(evaluations)
    if not shown:
        return [
            Words("Nothing was measured on held-out text yet: apply the plan, evaluate it, and write the report again.")
        ]
    sentence = verdict.sentence(shown)
    blocks: Blocks = [Words(sentence.text, sentence.tone)] if sentence is not None else []
    uniform = {name: other for name, other in simple.items() if name.startswith("uniform ")}
    rows = verdict.change_rows(plan, shown, uniform)
    if rows:
        blocks.append(
            figure(
                lambda dark: charts.predicted_against_measured(rows, dark),
                "; ".join(f"{row.variant} {row.kind} {wording.percent(row.change_pct)}" for row in rows),
                "Predicted from the calibration text, measured on held-out text; lines are 95 % intervals.",
            )
        )
    blocks.append(_table(result_tables.perplexities(shown)))
    if any(one.tasks for one in shown.values()):
        blocks.append(_table(result_tables.tasks(shown), "In brackets the change against the original, paired."))
    if any(one.speed for one in shown.values()):
        blocks.append(_table(result_tables.speeds(shown), "Medians, in brackets the slowest and the fastest run."))
    text = next(iter(shown.values())).text
    overlap = f", one every {text.stride}" if text.stride else ""
    blocks.append(
        Words(f"{text.text}: {text.tokens:,} tokens in sequences of {text.seq_len}{overlap}; {errors_said(text)}.")
    )
    return blocks + [Words(wording.labelled(f"{one.variant}: {note}.")) for one in shown.values() for note in one.notes]


def _table(frame: pd.DataFrame, note: str = "") -> Table:
    rows = [tuple(str(value) for value in row) for row in frame.itertuples(index=False)]
    return Table(tuple(frame.columns), rows, note, numbers=range(1, len(frame.columns)), dense=True)


def method(plan: Plan, profile: SensitivityProfile | None, record: ExportRecord | None) -> Blocks:
    """How the scores, the plan and its files came about, and how the files were checked."""
    blocks: Blocks = [Words(f"Scores. {_METHODS[profile.method]}")] if profile is not None else []
    blocks.append(Words(f"Plan. {_solved(plan)}"))
    blocks += [Words(f"Codes. {wording.sentence(note)}") for note in method_note(plan)]
    if record is None:
        return [*blocks, Words("Files. None were read for this report.")]
    target = find_target(record.target)
    checked = record.verified
    blocks.append(Words(f"Files. Written as {target.label} on {wording.moment(record.created)}."))
    blocks += [Words(f"Size. {wording.sentence(record.size_note)}")] if record.size_note else []
    blocks += [Words(f"Limit. {wording.sentence(record.over_limit)}", "fair")] if record.over_limit else []
    if checked is None:
        return [*blocks, Words("They were not read back: a step is left to be run by hand first.", "fair")]
    return [
        *blocks,
        Words(
            f"Read back after writing: formats, group sizes and bytes of {checked.layers:,} layers are the plan's "
            f"({wording.size(checked.bytes)}), values are within {100 * checked.row_tolerance:g} % of a row's norm "
            f"(largest difference {wording.number(100 * checked.largest_row_difference, 2)} %), and KL to the "
            f"simulated plan is {wording.number(checked.kl, 2)} nats per token on {checked.tokens:,} tokens "
            f"({wording.number(checked.kl_tolerance, 1)} is tolerated).",
            "good",
        ),
    ]


def _solved(plan: Plan) -> str:
    if plan.refinement is not None:
        found = plan.refinement
        return (
            f"Refined in {wording.plural(len(found.rounds), 'round')} ({duration(found.seconds)}): gradients with the "
            f"whole plan in place on {found.tokens:,} tokens, steps kept where they help on {found.held_back_tokens:,} "
            f"tokens held back; {wording.labelled(found.winner)} won."
        )
    solver = "A multiple-choice knapsack over the scores, solved by HiGHS"
    return f"{solver}. {wording.proof(plan)}".strip()


def provenance(plan: Plan, profile: SensitivityProfile | None, record: ExportRecord | None) -> Blocks:
    """Identities, versions, and the sources of what is known about device and engine."""
    rows = [(f"plan: {name.replace('_', ' ')}", _said(value)) for name, value in plan.provenance.items()]
    if profile is not None:
        rows.append(("profile: id", profile.id))
        rows.append(("profile: created", wording.moment(profile.created)))
        rows.append(("profile: SHA-256 of the text's tokens", profile.calibration.text_sha256 or "–"))
        rows += [(f"profile: {name}", value) for name, value in profile.provenance.items()]
    if record is not None:
        rows += [(f"files: {name}", version) for name, version in sorted(record.versions.items())]
        rows += [("files: license", record.license)] if record.license else []
    device, engine = find_hardware(plan.request.hardware), find_engine(plan.request.engine)
    rows += _sourced(f"{device.label}: memory", device.memory_gb, "GB")
    rows += _sourced(f"{device.label}: bandwidth", device.bandwidth_gb_s, "GB/s")
    rows += _sourced(f"{engine.label}: share of memory that it fills", engine.utilisation)
    rows.append((f"{engine.label} {engine.versions}: formats", f"{engine.source} (checked {engine.checked_on})"))
    rows += [("rules that spoke", source) for source in _rule_sources(plan)]
    return [Table(("What", "Value"), rows, dense=True, links=True)]


def _sourced(name: str, number: Sourced | None, unit: str = "") -> list[tuple[str, str]]:
    if number is None:
        return [(name, "not stated")]
    return [(name, f"{number.value:g} {unit}".strip() + f": {number.source} (checked {number.checked_on})")]


def _rule_sources(plan: Plan) -> list[str]:
    verdicts = [verdict for reason in plan.reasons.values() for verdict in reason.verdicts]
    verdicts += [one for reason in plan.reasons.values() for other in reason.alternatives for one in other.verdicts]
    return sorted({source for one in verdicts for source in one.source.split("; ") if source})


def _said(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return str(value)


def again(
    plan: Plan, profile: SensitivityProfile | None, record: ExportRecord | None, evaluations: Sequence[Evaluation]
) -> Blocks:
    """The commands that make profile, plan, files and measurements anew."""
    shown = latest_evaluations(evaluations)
    lines = reproduce.commands(plan, profile, record, next(iter(shown.values()), None))
    return [Words("On the command line, where `pip install -r requirements.txt` was run:"), Commands(lines)]
