"""Refining on the plan page: the job that improves a plan on its model, and a refined plan as it is stored."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from advisor import pipeline, units
from advisor.knowledge import find_format
from advisor.types import (
    Contender,
    Job,
    Plan,
    PlanRequest,
    ProfileSummary,
    Refinement,
    RefineRequest,
    SensitivityProfile,
)
from advisor.ui import (
    browser,
    common,
    comparison_charts,
    drawing,
    fields,
    job_panel,
    plan_compare,
    plan_download,
    plan_table,
    verdict,
    wording,
)

PROGRESS = "refining"  # where the page shows the job, far above the button that starts it
_MOST_ROUNDS = 10
# In forward passes over the profile's own text, of which the held-back parts are twice as long each.
_PASSES_BEFORE, _PASSES_PER_ROUND = 30, 28
_FISHER_PASSES, _FISHER_PASSES_PER_DRAW = 2.5, 1.1


# ---------------------------------------------------------------------------------------------- ask


def offer(profile: SensitivityProfile, plan: Plan, job: Job | None) -> None:
    """What refining does, needs and takes, and the button that starts it.

    Args:
        job: the refinement that the page shows, if any.
    """
    calibration = profile.calibration
    part, tokens = calibration.refining_samples, calibration.seq_len
    st.markdown(
        "Scores say what quantizing one layer alone does. Refining runs the model with **the whole plan in place**: it "
        "takes gradients there, solves for a better plan within the same size, and keeps it only if it loses less on "
        "text that no gradient saw. The plan by scores and every simple plan that fits compete on that text, and the "
        "best of all is what comes out."
    )
    st.markdown(
        f"It needs the model (`{profile.catalogue.model.source}`) and {3 * part:,} sequences of {tokens:,} tokens of "
        f"`{calibration.text}`: {part:,} for gradients, those of this profile among them, {part:,} more to choose by "
        f"and {part:,} more to tell what the chosen plan loses. Plans by scores that weigh KL otherwise compete too."
    )
    rounds_column, button_column = st.columns([1, 2], vertical_alignment="bottom")
    fields.keep_within("rounds", 1, _MOST_ROUNDS)
    rounds = fields.number(
        "rounds",
        rounds_column.number_input,
        "Rounds",
        1,
        _MOST_ROUNDS,
        RefineRequest.model_fields["rounds"].default,
        help="Each takes gradients around the best plan so far and tries several steps from it. It ends early when "
        "none of them is better.",
    )
    running = job is not None and not job.status.ended
    quantized = any(find_format(name).quantized for name in plan.assignments.values())
    if button_column.button(
        "Refine",
        type="primary",
        icon=":material/tune:",
        disabled=not quantized or running,
        help="Runs in the background and stores the result as a plan of its own; closing the page loses nothing.",
    ):
        _submit(profile, plan, rounds)
    if running:
        st.markdown(f":material/progress_activity: {job_panel.title(job)}: [see its progress](#{PROGRESS}).")
    took = expected_seconds(profile, rounds)
    if took:
        st.caption(f"About {units.duration(took)}, by the pace at which this profile was measured.")


def _submit(profile: SensitivityProfile, plan: Plan, rounds: int) -> None:
    pipeline.check_source(profile.catalogue.model.source)
    pipeline.check_text(profile.calibration.text)
    name = st.session_state.get("plan_name", "").strip()
    job_panel.start("refine", RefineRequest(profile_id=profile.id, plan=plan.request, rounds=rounds, name=name))


def expected_seconds(profile: SensitivityProfile, rounds: int) -> float | None:
    """What refining may take on the machine that measured the profile; None where its times are not stored."""
    forward = _forward_seconds(profile)
    return (_PASSES_BEFORE + rounds * _PASSES_PER_ROUND) * forward if forward else None


def _forward_seconds(profile: SensitivityProfile) -> float:
    """Of one pass over the profile's text, from what its scores took."""
    estimated = [m.seconds for m in profile.measurements if m.method == "fisher"]
    if estimated:  # all were estimated in one walk, whose time is shared among them
        passes = _FISHER_PASSES + _FISHER_PASSES_PER_DRAW * (1 + profile.calibration.draws)
        return sum(estimated) / len(estimated) * len(profile.measurements) / passes
    # Exactly measured layers run what comes after them: from the first block, the whole model.
    return max((m.seconds for m in profile.measurements), default=0.0)


def when_done(job: Job) -> None:
    """The way to the plan of a finished refinement."""
    st.success("Refined and stored.")
    if st.button("See the refined plan", type="primary", icon=":material/arrow_forward:"):
        common.go("plan", profile=job.params.get("profile_id", ""), plan=(job.result or {}).get("plan_id", ""))


# ------------------------------------------------------------------------------------------- result


def asked_for(summary: ProfileSummary) -> tuple[str, Plan] | None:
    """The id and the refined plan that the link shows (`?plan=ID`); None where planning is live.

    A refined plan is not what the solver gives for its request, so it is shown as it is stored. `&live=yes` asks for
    its request's settings instead, as the link to any other plan does.
    """
    plan_id = st.query_params.get("plan")
    if not plan_id or st.query_params.get("live"):
        return None
    if plan_id not in {plan.id for plan in common.store().plans(summary.id)}:
        return None
    plan = plan_compare.stored_plan(plan_id)
    return (plan_id, plan) if plan is not None and plan.refinement is not None else None


def head(summary: ProfileSummary, plan_id: str, request: PlanRequest) -> None:
    """What is shown, and the way back to live planning."""
    said, back = st.columns([3, 1], vertical_alignment="center")
    said.info(
        "**A refined plan, as it was stored.** Its formats come from running the whole plan, not from scores alone: "
        "nothing here is solved again."
    )
    limits = wording.limits(request.budget)
    if back.button(
        "Back to live planning",
        width="stretch",
        icon=":material/arrow_back:",
        help=f"Takes up this plan's device, engine, locks and its limit, {limits}, in place of what the fields said "
        "before; then solves from the scores on every change.",
    ):
        st.session_state.pop("restored_plan", None)  # its settings are taken again, whatever was changed since
        common.go("plan", profile=summary.id, plan=plan_id, live="yes")
    st.caption(
        f"Refined within {limits}, for {wording.engine_label(request.engine)} on "
        f"{wording.device_label(request.hardware)}. Live planning takes up this limit."
    )


def show(summary: ProfileSummary, profile: SensitivityProfile, plan_id: str, plan: Plan) -> None:
    """What can be done with the refined plan, how it was refined, its layers, and another plan beside it."""
    row, store = st.container(horizontal=True), common.store()
    plan_download.button(row, plan)
    plan_download.report_button(row, plan, profile, lambda: store.evaluations(plan_id))
    if row.button(
        "Apply and evaluate", type="primary", help="Quantize the model by this plan and measure it on held-out text."
    ):
        common.go("apply", plan=plan_id)
    names = ["Against simple plans", "Rounds of refinement", "Layers", "Compare with another plan"]
    first = names[-1] if st.query_params.get("against") else names[0]
    # Not the `tab` of live planning, whose tabs are others.
    contest, rounds, layers, other = st.tabs(names, default=first, **common.setting("refined"))
    with contest:
        _contest(plan.refinement)
    with rounds:
        _rounds(plan.refinement)
    with layers:
        plan_table.show_stored(profile, plan)
    with other:
        plan_compare.show(summary, profile, plan, plan_id)


def _contest(found: Refinement) -> None:
    plan_compare.say(verdict.of_refinement(found))
    ranked = sorted(found.contenders, key=lambda one: one.expected_loss)
    drawing.chart(
        comparison_charts.contender_bars(found, browser.dark()),
        alt="; ".join(
            f"{wording.labelled(one.name)}: KL {wording.with_error(one.kl, one.kl_stderr)} nats per token"
            for one in ranked
        ),
    )
    winner = next(one for one in ranked if one.name == found.winner)
    st.dataframe([_contender_row(one, winner) for one in ranked], hide_index=True)
    st.caption(
        f"Measured with each whole plan in place on {found.held_back_tokens:,} tokens of {found.text} that no gradient "
        "saw. Simple plans stand here where they are no larger and keep the request's locks and rules. Bars are KL "
        "with one standard error to each side; all plans read the same tokens, so their differences are surer than "
        "the bars. Diamonds are what plans are ranked by: KL, and of what the change of NLL has beyond it the part "
        "that stands out of its error; where NLL rises by less than KL, that part is negative and the diamond lies "
        "below the end of the bar."
    )


def _contender_row(one: Contender, winner: Contender) -> dict[str, str]:
    behind = one.expected_loss - winner.expected_loss
    share = f" ({wording.percent(100 * behind / winner.expected_loss)})" if winner.expected_loss > 0 else ""
    return {
        "Plan": wording.labelled(one.name) + " (this plan)" * (one is winner),
        "Loses more (nats per token)": "–" if one is winner else f"{wording.signed(behind)}{share}",
        "Ranked by": wording.number(one.expected_loss),
        "KL": wording.with_error(one.kl, one.kl_stderr),
        "Change of NLL": wording.with_error(one.delta_nll, one.delta_nll_stderr),
        "Average bits": f"{one.decided_bits:.2f}",
        "Weights": wording.size(one.weights_bytes),
    }


def _rounds(found: Refinement) -> None:
    st.markdown(verdict.of_rounds(found))
    start = verdict.started_from(found)
    drawing.chart(
        comparison_charts.round_lines(found, start.kl, browser.dark()),
        alt=f"KL by round: {found.calibration_kl_before:.4f} at the start to {found.rounds[-1].calibration_kl:.4f} on "
        f"the text of the gradients, {start.kl:.4f} to {found.rounds[-1].kl:.4f} on held-back text.",
    )
    st.dataframe(round_frame(found), hide_index=True)
    st.caption(
        f"It started from {wording.labelled(start.name)}. Gradients: {found.tokens:,} tokens; held back: "
        f"{found.held_back_tokens:,}. It took {units.duration(found.seconds)}. Damping counts the second order "
        "1 + damping times: the larger, the smaller the step."
    )


def round_frame(found: Refinement) -> pd.DataFrame:
    """One row per round, as the table shows it."""
    return pd.DataFrame(
        [
            {
                "Round": number,
                "Steps tried": one.tried,
                "Taken": "none was better" if one.damping is None else f"damping {one.damping:g}",
                "Groups changed": one.changed,
                "KL, text of the gradients": wording.number(one.calibration_kl),
                "KL, held-back text": wording.number(one.kl),
                "Ranked by": wording.number(one.expected_loss),
            }
            for number, one in enumerate(found.rounds, 1)
        ]
    )
