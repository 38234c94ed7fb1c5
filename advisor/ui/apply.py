"""Page 4: quantize for real, measure on text that the plan has not seen, and hold the prediction against it."""

from __future__ import annotations

from collections import Counter

import streamlit as st

from advisor import knowledge, marks, pipeline, texts
from advisor.errors import AdvisorError
from advisor.types import (
    ApplyRequest,
    Catalogue,
    Evaluation,
    JobStatus,
    Plan,
    PlanSummary,
    ProfileSummary,
    SensitivityProfile,
    latest_evaluations,
)
from advisor.ui import (
    answers,
    apply_files,
    apply_method,
    apply_recovery,
    apply_results,
    apply_target,
    browser,
    charts,
    common,
    drawing,
    evaluation_options,
    fields,
    job_panel,
    linked,
    plan_download,
    tour,
    verdict,
    wording,
)

_DONE = {
    "apply": "Applied, verified and measured; the results are below.",
    "zip": "The zip file is ready; it is offered with the files below.",
}


@common.guarded
def render() -> None:
    """The whole page."""
    common.page_head("Apply and evaluate")
    tour.panel("apply")
    plans = {plan.id: plan for plan in common.store().plans()}
    if not plans:
        linked.refused("Plan", st.query_params.get_all("plan"), [], common.NOT_STORED)
        common.empty_state(
            "**No plan yet.** Make one from a sensitivity profile; saving it brings it here.", "plan", "Make a plan"
        )
        return
    plan_id = common.choose_stored(
        "plan",
        "Plan",
        {identifier: wording.plan_label(plan) for identifier, plan in plans.items()},
        "Saved plans, newest first.",
    )
    plan = common.store().plan(plan_id)
    if plan is None:
        st.info("This plan was deleted meanwhile; reload the page to choose another.")
        return
    _headline(plan)
    job = job_panel.current("apply", "zip")
    if job is not None and job.params.get("plan_id") != plan_id:
        job = None
    waiting = job is not None and not job.status.ended
    touring = job is not None and "tour" in st.query_params  # it speaks of its own job, which the form does not tell
    if not touring:
        with st.container(border=True):
            st.subheader("Measure it on held-out text")
            _form(plan_id, plan, common.store().catalogue_for_source(plan.model.source), busy=waiting)
    if job is not None and not (touring and job.status is JobStatus.DONE):
        job_panel.show(job, lambda done: st.success(_DONE[done.kind]))
    _results(plan_id, plans[plan_id], plan, waiting)
    folder = apply_files.folder_of(plan_id)
    record = pipeline.record_in(folder) if folder else None
    plan_download.show(plan_id, plan, _profile_of(plans[plan_id]), record, plans[plan_id].name)


def _headline(plan: Plan) -> None:
    counts, measured = Counter(plan.assignments.values()), plan.predicted.measured
    common.metrics(
        [
            (
                "Measured change" if measured else "Predicted change",
                wording.percent(plan.predicted.delta_ppl_pct),
                "Of perplexity, "
                + ("measured on text held back from refining it." if measured else "from the stored scores."),
            ),
            (
                "Weights",
                wording.size(plan.memory.model_weights_bytes),
                f"As {wording.engine_label(plan.request.engine)} stores them; originally "
                f"{wording.size(plan.memory.original_weights_bytes)}.",
            ),
            (
                "Average bits",
                f"{plan.memory.decided_bits:.2f}",
                "Of the layers that the plan decides, scales included.",
            ),
        ]
    )
    st.caption(f"{wording.layers_by_format(dict(counts.most_common()))}.")


def _form(plan_id: str, plan: Plan, catalogue: Catalogue | None, busy: bool) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        to = apply_target.choose(plan)
        method = apply_method.choose(plan, to, catalogue)
        recover = apply_recovery.choose(plan, to)
        calibration = apply_method.choose_calibration(plan, to, method, catalogue, recover)
    text_column, tokens_column, length_column = st.columns([2, 1, 1], vertical_alignment="bottom")
    with text_column:
        text = common.choose_text(
            "Held-out text", "Evaluation never reads the passages that the scores came from.", evaluation=True
        )
    tokens = fields.number(
        "tokens",
        tokens_column.number_input,
        "Tokens",
        256,
        1_000_000,
        4096,
        step=1024,
        help="More tokens make the error smaller and the run longer.",
    )
    length = common.sequence_length(length_column, "eval_seq_len", catalogue)
    options = evaluation_options.choose(length)
    common.guide_link("evaluation", "calibration")
    baselines = _baselines()
    apply_method.explain(plan, to, method, catalogue, calibration)
    apply_recovery.explain(recover)
    fits = apply_target.can_be_written(plan_id, plan, to, catalogue)
    note, button = st.columns([4, 1], vertical_alignment="center")
    note.caption(
        "Measures the original and each uniform plan, writes this plan, holds the files against it, and measures what "
        "was read back from them."
    )
    if button.button(
        "Apply and evaluate",
        type="primary",
        width="stretch",
        disabled=busy or not text or calibration == "" or not fits,
        help="Runs in the background; closing the page loses nothing.",
    ):
        how = {"to": to, "method": method, "calibration": calibration, "recover": recover, "baselines": baselines}
        measured = {"text": text, "tokens": tokens, "seq_len": length} | options.model_dump()
        _submit(ApplyRequest(plan_id=plan_id, **how, **measured))


def _baselines() -> tuple[str, ...]:
    formats = [name for name, fmt in knowledge.formats().items() if fmt.quantized]
    chosen = st.multiselect(
        "Uniform plans beside it",
        formats,
        ["int8", "int4_g64"],
        format_func=wording.format_label,
        key="baselines",
        persist_state="session",
        help="Every layer in one format: what the plan has to beat.",
    )
    return tuple(chosen)


def _submit(request: ApplyRequest) -> None:
    try:
        # Absolute paths: the job runs in another folder.
        text = texts.check_source(request.text, "evaluation")
        calibration = pipeline.check_text(request.calibration) if request.calibration else None
        texts.check_stride(text, request.stride, request.seq_len)
    except AdvisorError as refusal:
        common.refuse(refusal)
    else:
        job_panel.start("apply", request.model_copy(update={"text": text, "calibration": calibration}))


def _results(plan_id: str, summary: PlanSummary, plan: Plan, waiting: bool) -> None:
    evaluations = latest_evaluations(common.store().evaluations(plan_id))
    if not evaluations:
        if not waiting:
            st.caption("Nothing measured yet: press *Apply and evaluate*. The demo model takes a few minutes.")
        return
    st.subheader("Predicted against measured")
    text = next(iter(evaluations.values())).text
    overlap = f", one every {text.stride}" if text.stride else ""
    st.caption(
        f"Measured on {text.tokens:,} held-out tokens of {text.text}, in sequences of {text.seq_len}{overlap}; "
        f"{marks.errors_said(text)}."
    )
    sentence = verdict.sentence(evaluations)
    if sentence is not None:
        {"good": st.success, "fair": st.info, "poor": st.warning}[sentence.tone](sentence.text)
    rows = verdict.change_rows(plan, evaluations, _uniform_predictions(summary, plan, evaluations))
    if rows:
        drawing.chart(
            charts.predicted_against_measured(rows, browser.dark()),
            alt="; ".join(f"{row.variant} {row.kind} {wording.percent(row.change_pct)}" for row in rows),
        )
        st.caption(
            "Predicted from the calibration text. Lines are 95 % intervals; the shade ends at "
            f"{knowledge.perplexity_marks().limit.value:g} %, what is usually accepted."
        )
    apply_results.show(evaluations)
    common.guide_link("evaluation")
    for evaluation in evaluations.values():
        for note in evaluation.notes:
            st.caption(f":material/info: {wording.labelled(f'{evaluation.variant}: {note}')}.")
    st.caption(
        f"*Size*: all weights as {wording.engine_label(plan.request.engine)} stores them, the same measure for every "
        "variant. *On disk*: the tensors in the files that were written, which another layout can make larger or "
        "smaller."
    )
    apply_files.show(plan_id)
    common.link("blind", "Compare answers blind", icon=":material/how_to_vote:", plan=plan_id)


def _uniform_predictions(summary: PlanSummary, plan: Plan, evaluations: dict[str, Evaluation]) -> dict[str, Plan]:
    stored, profile = _stored_profile(summary), _profile_of(summary)
    if profile is None:
        return {}
    wanted = [variant.removeprefix("uniform ") for variant in evaluations if variant.startswith("uniform ")]
    return answers.simple_plans(stored, profile, plan.request, [fmt for fmt in wanted if fmt in profile.formats])


def _profile_of(summary: PlanSummary) -> SensitivityProfile | None:
    stored = _stored_profile(summary)
    return common.load_profile(stored) if stored else None


def _stored_profile(summary: PlanSummary) -> ProfileSummary | None:
    return {profile.id: profile for profile in common.store().profiles()}.get(summary.profile_id or "")


if __name__ == "__main__":
    render()
