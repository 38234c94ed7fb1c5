"""The report of a plan: one HTML file with its charts, reasons and sources, for people who open no page. No streamlit.

Everything in it is what the pages show of the same nouns, drawn by the same charts and said in the same words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from advisor import pipeline
from advisor.knowledge import find_engine, find_hardware, perplexity_marks
from advisor.types import Evaluation, ExportRecord, Plan, SensitivityProfile, now
from advisor.ui import report_layers, report_measured, report_plan, report_scores, wording
from advisor.ui.report_parts import Head, Section, Words, page

NEEDS_PROFILE = "the model, the text, scores, maps, the front and simple plans need the sensitivity profile"


def html(
    plan: Plan,
    profile: SensitivityProfile | None = None,
    evaluations: Iterable[Evaluation] = (),
    record: ExportRecord | None = None,
    name: str = "",
) -> str:
    """The report as the text of one file.

    Args:
        profile: that the plan was made from; without it, what only it knows is left out.
        evaluations: of the plan, the original and uniform plans, oldest first.
        record: how the plan was written to a folder, where it was.
        name: of the plan, where it has one.

    Raises:
        PlanError: the profile is of another model.
    """
    return page(_head(plan, name), sections(plan, profile, list(evaluations), record), wording.moment(now()))


def sections(
    plan: Plan,
    profile: SensitivityProfile | None = None,
    evaluations: Sequence[Evaluation] = (),
    record: ExportRecord | None = None,
) -> list[Section]:
    """What the report says, part by part; the parts without anything to say are empty."""
    simple = {}
    if profile is not None:
        pipeline.check_plan_fits(plan, profile.catalogue)
        simple = pipeline.simple_plans(profile, plan.request, profile.formats)
    return [
        Section("verdict", "In short", _verdict(plan, profile, simple)),
        Section("plan", "The plan", report_plan.formats(plan, profile)),
        Section("memory", "Memory and speed", report_plan.memory(plan)),
        Section("front", "What else was possible", report_plan.possible(plan, profile, simple)),
        Section("refinement", "Refined on the model", report_plan.refinement(plan)),
        Section("measured", "Prediction against measurements", report_measured.found(plan, evaluations, simple)),
        Section("sensitivity", "Sensitivity of the layers", report_scores.scores(plan, profile)),
        Section("model", "The model", report_scores.model(plan, profile)),
        Section("text", "Calibration text", report_scores.text(profile)),
        Section("method", "Method and verification", report_measured.method(plan, profile, record)),
        Section("provenance", "Where the numbers come from", report_measured.provenance(plan, profile, record)),
        Section("again", "Make it again", report_measured.again(plan, profile, record, evaluations)),
        Section("reasons", "Why each layer has its format", report_layers.reasons(plan, profile)),
    ]


def _head(plan: Plan, name: str) -> Head:
    predicted, memory = plan.predicted, plan.memory
    how = "Measured" if predicted.measured else "Predicted"
    request = plan.request
    device = find_hardware(request.hardware).label
    where = device if memory.gpus == 1 else f"{memory.gpus} × {device}"
    interval = f"{wording.number(predicted.perplexity_low, 4)} to {wording.number(predicted.perplexity_high, 4)}"
    original = wording.size(memory.original_weights_bytes)
    return Head(
        title=f"{plan.model.name}: a plan of {memory.decided_bits:.2f} bits",
        subtitle=f"{name + ': m' if name else 'M'}ixed precision for {find_engine(request.engine).label} on {where}.",
        numbers=(
            (f"{how} perplexity", wording.number(predicted.perplexity, 4), f"95 %: {interval}"),
            (
                "Change",
                wording.percent(predicted.delta_ppl_pct),
                f"from {wording.number(predicted.base_perplexity, 4)} unquantized",
            ),
            ("Weights", wording.size(memory.model_weights_bytes), f"were {original}"),
            ("Average bits", f"{memory.decided_bits:.2f}", f"over {wording.plural(len(plan.assignments), 'layer')}"),
            (
                "Memory in use",
                wording.size(memory.total_bytes),
                f"of {wording.size(memory.limit_bytes)} usable{' on each GPU' if memory.gpus > 1 else ''}",
            ),
            ("Decoding", wording.speed(plan.latency.tokens_per_s if plan.latency else None), _basis(plan)),
        ),
    )


def _basis(plan: Plan) -> str:
    if plan.latency is None or plan.latency.tokens_per_s is None:
        return ""
    return "corrected by a measurement" if plan.latency.basis == "measured" else "estimated"


def _verdict(plan: Plan, profile: SensitivityProfile | None, simple: dict[str, Plan]) -> list[Words]:
    said = report_plan.verdicts(plan, profile, simple)
    if profile is None:
        said.append(Words(f"Parts are left out: {NEEDS_PROFILE} that the plan was made from.", "fair"))
    elif not plan.predicted.measured:
        said += [Words(remark) for remark in pipeline.remarks_on(plan, profile)]
    marks = perplexity_marks()
    said.append(
        Words(
            f"By the guide, perplexity may rise by {marks.acceptable.value:g} to {marks.limit.value:g} %; above "
            f"{marks.poor.value:g} % is poor."
        )
    )
    return said
