"""Page 3: a device and a budget in, a plan out, solved again on every change."""

from __future__ import annotations

import streamlit as st

from advisor import knowledge
from advisor.errors import AdvisorError, InfeasibleBudget
from advisor.marks import usual_range
from advisor.types import Job, Plan, PlanRequest, ProfileSummary, SensitivityProfile
from advisor.ui import (
    answers,
    at_hand,
    browser,
    charts,
    common,
    drawing,
    job_panel,
    plan_compare,
    plan_controls,
    plan_device,
    plan_download,
    plan_front,
    plan_gains,
    plan_limits,
    plan_presets,
    plan_refine,
    plan_speed,
    plan_table,
    plan_why,
    plan_wishes,
    tour,
    wording,
)
from advisor.ui.plan_controls import Controls, Setting

LAYERS, SIMPLE, COMPARE = "Layers and locks", "Against simple plans", "Compare with another plan"
REFINE, GIVING_BACK = "Refine", "Giving layers back"

# The controls stand above the plan where both side by side would cut their labels; locks read from the left.
_KEY = "plan_columns"
_STYLE = (
    f"<style>@media (max-width: 1100px) {{.st-key-{_KEY} > div > .stHorizontalBlock > .stColumn "
    "{min-width: 100%}} [class*=st-key-free_] p {text-align: left}</style>"
)


@common.guarded
def render() -> None:
    """The whole page."""
    common.page_head("Plan")
    tour.panel("plan")
    chosen = common.choose_profile(for_plans=True)
    if chosen is None:
        return
    summary, profile = chosen
    if not profile.measurements:
        common.empty_state(
            "**Nothing measured yet.** A plan needs scores; they arrive while the profile runs.",
            "model",
            "Back to the model page",
        )
        return
    refined = plan_refine.asked_for(summary)
    if refined is not None:
        _refined(summary, profile, *refined)
        return
    st.html(_STYLE)
    controls, result = st.container(key=_KEY).columns([1, 3], gap="medium")
    with controls:
        given = plan_controls.setting(summary, profile)
    with result:
        job = job_panel.current("profile", "refine")
        if job is not None:
            st.html(f'<span id="{plan_refine.PROGRESS}" style="scroll-margin-top: 4.5rem"></span>')
            job_panel.show(job, plan_refine.when_done if job.kind == "refine" else plan_gains.when_measured)
        _decide(summary, profile, given, job if job is not None and job.kind == "refine" else None)
        plan_device.show(given.device, given.engine, profile)


@st.fragment
@common.guarded
def _decide(summary: ProfileSummary, profile: SensitivityProfile, given: Setting, refining: Job | None) -> None:
    """The limits and the plan within them: what is drawn again while only these are moved."""
    if plan_wishes.changed():
        st.rerun()
    plan = _result(summary, profile, plan_controls.limits(summary, profile, given), refining)
    plan_compare.upload(summary, profile, plan)


def _refined(summary: ProfileSummary, profile: SensitivityProfile, plan_id: str, plan: Plan) -> None:
    plan_refine.head(summary, plan_id, plan.request)
    _headline(plan)
    _memory(plan)
    plan_why.show(profile, plan)
    plan_refine.show(summary, profile, plan_id, plan)
    plan_compare.upload(summary, profile, plan)


def _result(
    summary: ProfileSummary, profile: SensitivityProfile, controls: Controls, refining: Job | None
) -> Plan | None:
    """The plan, drawn with all that belongs to it, or a refusal and None."""
    try:
        plan = answers.solve(summary, profile, controls.request)
    except InfeasibleBudget as refusal:
        _impossible(refusal, summary.id, controls.request)
        plan_front.show(summary, profile, controls, None)
        return None
    except AdvisorError as refusal:
        common.refuse(refusal)
        plan_presets.ways_out(summary.id, controls.request, refusal.ways_out)
        plan_wishes.buttons(summary.id, "after_refusal")
        return None
    tour.solved(summary.id, plan)
    at_hand.remember(summary.id, plan)
    _headline(plan)
    for remark in answers.remarks(summary, profile, plan):
        st.caption(f":material/info: {remark}")
    _memory(plan)
    if not plan.memory.fits:
        whole = {"weight_bits": None, "weight_bytes": None, "vram_bytes": controls.device.memory_bytes}
        plan_presets.ways_out(summary.id, controls.request, {"keep to the device's memory": whole})
    plan_why.show(profile, plan)
    # What takes longest when more than the limit has changed is drawn last.
    front = st.container()
    _actions(profile, plan)
    _open_tab(summary, profile, plan, refining)
    with front:
        plan_front.show(summary, profile, controls, plan)
    return plan


def _open_tab(summary: ProfileSummary, profile: SensitivityProfile, plan: Plan, refining: Job | None) -> None:
    """The tabs below the plan: only the one that is open is worked out, so that moving a limit answers at once."""

    def won() -> dict[str, tuple[float, float]]:
        return answers.gains(summary, profile, plan.assignments)

    draw = {
        LAYERS: lambda: plan_table.show(summary.id, profile, plan, won()),
        SIMPLE: lambda: plan_compare.simple(summary, profile, plan),
        COMPARE: lambda: plan_compare.show(summary, profile, plan),
        REFINE: lambda: plan_refine.offer(profile, plan, refining),
        GIVING_BACK: lambda: plan_gains.show(profile, plan, won()),
    }
    first = COMPARE if st.query_params.get("against") else LAYERS
    for name, tab in zip(draw, st.tabs(list(draw), default=first, **common.setting("tab")), strict=True):
        if tab.open:
            with tab:
                draw[name]()


def _impossible(refusal: InfeasibleBudget, profile_id: str, asked: PlanRequest) -> None:
    common.refuse(refusal)
    smallest, limit = refusal.smallest_bytes, refusal.limit_bytes
    if smallest is not None and limit is not None:
        said = plan_limits.in_measure_of(asked.budget, limit)
        common.metrics(
            [
                ("Smallest possible", said(smallest), "The least that rules, locks and limits leave."),
                ("Your limit", said(limit), "In the same measure: of memory, what the engine may use."),
                ("Missing", said(smallest - limit), "By how much the limit is too small."),
            ]
        )
    plan_presets.ways_out(profile_id, asked, refusal.ways_out)


def _headline(plan: Plan) -> None:
    predicted, memory = plan.predicted, plan.memory
    how, text = (
        ("Measured", "held back from its making") if predicted.measured else ("Predicted", "like the calibration text")
    )
    poor = knowledge.perplexity_marks().poor.value
    engine = wording.engine_label(plan.request.engine)
    common.metrics(
        [
            (
                f"{how} perplexity",
                f"{wording.number(predicted.perplexity, 4)}",
                f"On text {text}: {wording.number(predicted.perplexity_low, 4)} to "
                f"{wording.number(predicted.perplexity_high, 4)}; the unquantized model has "
                f"{wording.number(predicted.base_perplexity, 4)}. *Apply and evaluate* checks it on text held out.",
            ),
            (
                "Change",
                wording.percent(predicted.delta_ppl_pct),
                f"Up to {usual_range()} is usually acceptable, above {poor:g} % is poor.",
            ),
            (
                "Weights",
                wording.size(memory.model_weights_bytes),
                f"As {engine} stores them; originally {wording.size(memory.original_weights_bytes)}.",
            ),
            ("Average bits", f"{memory.decided_bits:.2f}", "Of the layers that the plan decides, scales included."),
            (
                "Memory in use",
                wording.size(memory.total_bytes),
                f"Weights, KV cache, activations and overhead; {engine} may use "
                f"{wording.size(memory.limit_bytes)} of this device.",
            ),
            plan_speed.metric(plan.latency),
        ]
    )
    interval = (
        f"{how} perplexity {wording.number(predicted.perplexity_low, 4)} to "
        f"{wording.number(predicted.perplexity_high, 4)} from {wording.number(predicted.base_perplexity, 4)} "
        f"unquantized."
    )
    if predicted.unmeasured_layers:
        interval += f" {wording.plural(predicted.unmeasured_layers, 'layer')} without scores keep the original format."
    st.caption(f"{interval} {wording.proof(plan)} {plan_speed.sentence(plan.latency)}")


def _memory(plan: Plan) -> None:
    limits = [("device", plan.memory.limit_bytes)]
    if plan.request.budget.weight_bytes:
        limits.append(("weights", plan.request.budget.weight_bytes))
    drawing.chart(
        charts.memory_bar(plan.memory, limits, browser.dark()),
        alt=f"Memory in use {wording.size(plan.memory.total_bytes)} of "
        f"{wording.size(plan.memory.limit_bytes)}, by part.",
    )
    if not plan.memory.fits:
        st.warning(
            f"This does not fit the device: {wording.size(plan.memory.total_bytes)} are needed and "
            f"{wording.size(plan.memory.limit_bytes)} usable."
        )


def _actions(profile: SensitivityProfile, plan: Plan) -> None:
    row = st.container(horizontal=True, vertical_alignment="bottom")
    plan_download.button(row, plan)
    plan_download.report_button(row, plan, profile)
    title = row.text_input(
        "Name of the plan",
        max_chars=common.LONGEST_NAME,
        placeholder="for your own records",
        key="plan_name",
        help="Shown in the History; may stay empty.",
    )
    if row.button("Save plan", help="Keeps the plan; find it again in the History."):
        common.store().save_plan(plan, profile.id, title.strip())
        st.toast("The plan is saved; the History lists it.", icon=":material/check:")
    if row.button(
        "Apply and evaluate",
        type="primary",
        help="Saves the plan and goes on to quantize the model and measure it on held-out text.",
    ):
        common.go("apply", plan=common.store().save_plan(plan, profile.id, title.strip()))


if __name__ == "__main__":
    render()
