"""The model card of an export: the plan, what it predicts, what was measured, how to serve it, and what wrote it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from advisor.knowledge import find_engine, find_format, find_hardware, find_target
from advisor.marks import errors_said
from advisor.methods import codes_notes, holds_other_codes
from advisor.types import (
    PREDICTED_FOR,
    CalibrationSpec,
    Catalogue,
    Evaluation,
    ExportRecord,
    Plan,
    Target,
    relative_change,
)
from advisor.units import number, plural, size


def model_card(
    plan: Plan, catalogue: Catalogue, record: ExportRecord, file: str = "", evaluations: Sequence[Evaluation] = ()
) -> str:
    """Markdown with the front matter of a model hub; pure text of what the nouns say.

    Args:
        file: the name of the one file that an engine loads, where it is no folder.
        evaluations: the latest of each variant on one text; the card says how to measure where there are none.
    """
    memory = plan.memory
    return "\n\n".join(
        [
            _front_matter(plan, record),
            f"# {plan.model.name} in {size(record.bytes)}",
            f"Mixed precision, planned for {find_engine(plan.request.engine).label} on "
            f"{find_hardware(plan.request.hardware).label} at {memory.decided_bits:.2f} bits on average and written as "
            f"{find_target(record.target).label}{_bits(record)}: "
            f"{plural(len(plan.assignments), 'layer')} decided by measured sensitivity, {_size(plan, record)}.",
            *_beside_the_plan(record),
            "## Formats",
            _counts(plan),
            _formats_by_role(plan, catalogue),
            *_otherwise(record),
            *_method(plan, record),
            "## Prediction",
            _prediction(plan),
            "## Measurements",
            _measurements(evaluations, record),
            *_verified(record),
            "## Serving",
            _serving(record, file),
            "## Software",
            _table(("package", "version"), sorted(record.versions.items())),
            f"The plan is `plan.json`, how it was written `export.json`. Written {record.created:%Y-%m-%d}.",
        ]
    )


def _bits(record: ExportRecord) -> str:
    """What the plan's layers take in these files, scales and zero points as the target stores them."""
    if record.decided_bits is None or not find_target(record.target).packed:
        return ""
    return f", which stores these layers in {record.decided_bits:.2f}"


def _beside_the_plan(record: ExportRecord) -> list[str]:
    """How the size differs from the planned one; of values that are not packed, the size says it already."""
    notes = (record.size_note, record.over_limit) if find_target(record.target).packed else ()
    return [f"{note[0].upper()}{note[1:]}." for note in notes if note]


def _size(plan: Plan, record: ExportRecord) -> str:
    """What the files take, and instead of what."""
    if find_target(record.target).packed:
        return f"weights of {size(record.bytes)} instead of {size(plan.memory.original_weights_bytes)}"
    return (
        f"as values that are no longer packed: {size(record.bytes)} that stand for "
        f"{size(plan.memory.model_weights_bytes)} of packed weights"
    )


def _front_matter(plan: Plan, record: ExportRecord) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=record.base_model or plan.model.name,
        base_model_relation="quantized",
        license=record.license or "other",
        license_name=None if record.license else "see-base-model",
        pipeline_tag="text-generation",
        tags=["mixed-precision", "quantized", record.target],
    )
    return f"---\n{data.to_yaml()}\n---"


def _counts(plan: Plan) -> str:
    counts = Counter(plan.assignments.values())
    listed = ", ".join(f"{plural(count, 'layer')} in {name}" for name, count in counts.most_common())
    return f"{listed}. All other weights keep the dtype that the engine gives them."


def _formats_by_role(plan: Plan, catalogue: Catalogue) -> str:
    """Layers by role and planned format; the formats with the fewest bits first."""
    layers, roles = catalogue.by_name(), defaultdict(Counter)
    for name, fmt in plan.assignments.items():
        roles[layers[name].role.value][fmt] += 1
    formats = sorted(set(plan.assignments.values()), key=lambda name: (find_format(name).bits, name))
    rows = [(role, *(str(counts[fmt] or "") for fmt in formats)) for role, counts in roles.items()]
    return _table(("role (layers)", *formats), rows)


def _otherwise(record: ExportRecord) -> list[str]:
    reasons = Counter(record.otherwise.values())
    return ["\n".join(f"- {plural(count, 'layer')} {reason}" for reason, count in reasons.items())] if reasons else []


def _method(plan: Plan, record: ExportRecord) -> list[str]:
    notes = [f"{note[0].upper()}{note[1:]}." for note in codes_notes(plan)]
    other = holds_other_codes(plan) or find_target(record.target).own_codes
    return [*notes, "The prediction is of rounding to nearest, as it was measured."] if other else notes


def _prediction(plan: Plan) -> str:
    predicted = plan.own_prediction
    if predicted is None:
        return f"Not known: what the plan states is of {plan.provenance[PREDICTED_FOR]}."
    how = "Measured on text that took no part in the plan" if predicted.measured else _added_up(plan)
    return (
        f"Perplexity {predicted.perplexity:.2f} ({predicted.perplexity_low:.2f} to {predicted.perplexity_high:.2f}) "
        f"against {predicted.base_perplexity:.2f} unquantized, {predicted.delta_ppl_pct:+.2f} %; KL "
        f"{predicted.kl:.4f} ± {predicted.kl_stderr:.4f} nats per token. {how}."
    )


def _added_up(plan: Plan) -> str:
    stated = plan.provenance.get("calibration")
    if not stated:
        return "Added up from scores of layers"
    spec = CalibrationSpec.model_validate(stated)
    return f"Added up from scores of layers on {spec.samples} x {spec.seq_len} tokens of {spec.text}"


def _measurements(evaluations: Sequence[Evaluation], record: ExportRecord) -> str:
    if not evaluations and record.left:
        return "None yet: the file is still to be made, as *Serving* says."
    if not evaluations:
        return "None yet: `python -m advisor evaluate` measures this folder on text held out from calibration."
    rows = [
        (
            found.variant,
            f"{found.perplexity:.3f} ± {found.perplexity_stderr:.3f}",
            "" if found.delta_nll is None else f"{100 * relative_change(found.delta_nll):+.2f} %",
            "" if found.kl_to_original is None else f"{found.kl_to_original:.4f} ± {found.kl_stderr or 0:.4f}",
            "" if found.same_top1 is None else f"{100 * found.same_top1:.1f} %",
            "" if found.weights_bytes is None else _sizes(found.weights_bytes, found.file_bytes),
        )
        for found in evaluations
    ]
    text = evaluations[0].text
    heads = ("variant", "perplexity", "change", "KL to the original", "same top-1", "weights")
    said = f"On {text.tokens:,} held-out tokens of {text.text} in sequences of {text.seq_len}; {errors_said(text)}."
    note = find_target(record.target).note
    return "\n\n".join([_table(heads, rows), said, *([f"The plan: {note}."] if note else [])])


def _sizes(count: int, on_disk: int | None) -> str:
    """A size, and that of the files where another layout makes it another one."""
    other = on_disk is not None and size(on_disk) != size(count)
    return f"{size(count)} ({size(on_disk)} on disk)" if other else size(count)


def _verified(record: ExportRecord) -> list[str]:
    found = record.verified
    if found is None:
        return []
    return [
        f"Read back after writing: formats, group sizes and bytes of {found.layers:,} weights, norms among them, are "
        f"as the plan has them in this target ({size(found.bytes)}), values are within {100 * found.row_tolerance:g} % "
        f"of a row's norm, and KL to the simulated plan is {number(found.kl, 2)} nats per token "
        f"({number(found.kl_tolerance, 1)} is tolerated)."
    ]


def _serving(record: ExportRecord, file: str) -> str:
    target = find_target(record.target)
    command = target.serve.format(folder=".", file=file)
    engines = [f"{find_engine(name).label}: {find_engine(name).versions}" for name in target.engines]
    layout = f"The layout is that of {'; '.join(engines)}." if engines else "Any tool that loads safetensors serves it."
    left = f"    {record.left}\n" if record.left else ""
    return f"In this folder:\n\n{left}    {command}\n\n{_alone(target)}{layout}"


def _alone(target: Target) -> str:
    """How others' packages load the folder where the command is of this product."""
    packages = " and ".join((*target.packages, "transformers"))
    said = f"In Python, with {packages} alone:\n\n```python\n{target.snippet}```\n\n"
    return said if target.snippet else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
