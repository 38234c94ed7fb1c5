"""Page 6: everything that is stored: reopen it, or delete it."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import streamlit as st

from advisor import jobs, units
from advisor.types import BlindTestSummary, Job, PlanSummary, ProfileSummary
from advisor.ui import blind, common, job_panel, wording

# The first page lives at the root.
JOB_PAGES = {
    "inspect": "",
    "preview": "",
    "profile": "",
    "refine": "plan",
    "apply": "apply",
    "zip": "apply",
    "answers": "blind",
}


@common.guarded
def render() -> None:
    """The whole page."""
    common.page_head("History")
    store = common.store()
    runs, profiles, plans = jobs.list_jobs(store), store.profiles(), store.plans()
    if not (runs or profiles or plans):
        common.empty_state(
            "**Nothing stored yet.** Jobs, sensitivity profiles, plans and evaluations are listed here.",
            "model",
            "Start with a model",
        )
        return
    evaluations, blind_tests = store.evaluations(), store.blind_tests()
    tabs = st.tabs(
        [
            f"Sensitivity profiles ({len(profiles)})",
            f"Plans ({len(plans)})",
            f"Evaluations ({len(evaluations)})",
            f"Blind tests ({len(blind_tests)})",
            f"Jobs ({len(runs)})",
        ]
    )
    with tabs[0]:
        _profiles(profiles)
    with tabs[1]:
        _plans(plans)
    with tabs[2]:
        _table([_evaluation_row(evaluation) for evaluation in reversed(evaluations)], "No evaluation yet.")
    with tabs[3]:
        _blind_tests(blind_tests)
    with tabs[4]:
        _table([_job_row(job) for job in runs], "No job yet.", "Open")


def _profiles(profiles: list[ProfileSummary]) -> None:
    _table([_profile_row(profile) for profile in profiles], "No sensitivity profile yet.", "Scores", "Plan")
    _rename("profile", {p.id: common.profile_label(p) for p in profiles}, common.store().rename_profile)
    _delete(
        "profile",
        "its scores, the plans made from it, their evaluations and blind tests",
        {profile.id: common.profile_label(profile) for profile in profiles},
        common.store().delete_profile,
    )


def _plans(plans: list[PlanSummary]) -> None:
    _table([_plan_row(plan) for plan in plans], "No plan yet.", "Plan", "Results")
    _rename("plan", {plan.id: common.plan_label(plan) for plan in plans}, common.store().rename_plan)
    _delete(
        "plan",
        "its evaluations and blind tests; the folder of the quantized model stays",
        {plan.id: common.plan_label(plan) for plan in plans},
        common.store().delete_plan,
    )


def _blind_tests(tests: list[BlindTestSummary]) -> None:
    _table([_blind_test_row(test) for test in tests], "No blind test yet.", "Open")
    _delete(
        "blind test",
        "its answers and votes",
        {test.id: f"{test.model_name} · {blind.test_label(test)}" for test in tests},
        common.store().delete_blind_test,
    )


def _table(rows: list[dict[str, object]], empty: str, *links: str) -> None:
    if not rows:
        st.caption(empty)
        return
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        column_config={name: st.column_config.LinkColumn(name, display_text="open", width="small") for name in links},
    )


def _rename(noun: str, labels: dict[str, str], rename: Callable[[str, str], None]) -> None:
    if not labels:
        return
    with st.expander(f"Rename a {noun}", icon=":material/edit:"), st.form(f"rename_{noun}", border=False):
        chosen = st.selectbox(
            f"Which {noun}",
            list(labels),
            format_func=lambda name: labels.get(name, name),
            key=f"renamed_{noun}",
            help="Newest first.",
        )
        name = st.text_input(
            "New name", max_chars=200, key=f"new_name_{noun}", help="Shown in lists; empty takes the name away."
        )
        if st.form_submit_button(f"Rename this {noun}"):
            rename(chosen, name.strip())
            st.rerun()


def _delete(noun: str, also: str, labels: dict[str, str], delete: Callable[[str], None]) -> None:
    if not labels:
        return
    with st.expander(f"Delete a {noun}", icon=":material/delete:"):
        chosen = st.selectbox(
            f"Which {noun}",
            list(labels),
            None,
            format_func=lambda name: labels.get(name, name),
            placeholder=f"choose a {noun}",
            key=f"delete_{noun}",
            help="Nothing happens until you confirm.",
        )
        if chosen is None:
            return
        st.warning(f"This deletes {labels[chosen]}, {also}. It cannot be undone.")
        if st.button(f"Delete this {noun}", type="primary", key=f"confirm_{noun}"):
            delete(chosen)
            st.rerun()


def _profile_row(profile: ProfileSummary) -> dict[str, object]:
    return {
        "Model": profile.model_name,
        "Name": profile.name,
        "Formats": ", ".join(profile.formats),
        "Scores": f"sensitivity?profile={profile.id}",
        "Plan": "" if profile.around else f"plan?profile={profile.id}",
        "Method": wording.method(profile),
        "Measurements": profile.measured,
        "Text": profile.text,
        "Tokens": profile.samples * profile.seq_len,
        "Created": wording.moment(profile.created),
    }


def _plan_row(plan: PlanSummary) -> dict[str, object]:
    reopen = f"plan?profile={plan.profile_id}&plan={plan.id}" if plan.profile_id else ""
    return {
        "Model": plan.model_name,
        "Name": plan.name,
        "Device": plan.hardware,
        "Engine": plan.engine,
        "Plan": reopen,
        "Results": f"apply?plan={plan.id}",
        "Average bits": f"{plan.decided_bits:.2f}",
        "Memory in use": wording.size(plan.total_bytes),
        "Predicted perplexity": wording.number(plan.perplexity, 4),
        "Created": wording.moment(plan.created),
    }


def _evaluation_row(evaluation: object) -> dict[str, object]:
    return {
        "Model": evaluation.model.name,
        "Variant": evaluation.variant,
        "Text": evaluation.text.text,
        "Tokens": evaluation.text.tokens,
        "Perplexity": wording.with_error(evaluation.perplexity, evaluation.perplexity_stderr),
        "Size": wording.size(evaluation.weights_bytes) if evaluation.weights_bytes else "not known",
        "Created": wording.moment(evaluation.created),
    }


def _blind_test_row(test: BlindTestSummary) -> dict[str, object]:
    return {
        "Model": test.model_name,
        "Open": f"blind?plan={test.plan_id}&test={test.id}",
        "Prompts": test.prompts,
        "Answers": f"{test.answers} of {2 * test.prompts}",
        "Votes": test.votes,
        "Result": "shown" if test.revealed else "not shown",
        "Created": wording.moment(test.created),
    }


def _job_row(job: Job) -> dict[str, object]:
    subjects = {
        "plan": job.params.get("plan_id"),
        "profile": job.params.get("profile_id"),
        "test": job.params.get("test_id"),
    }
    more = "".join(f"&{name}={identifier}" for name, identifier in subjects.items() if identifier)
    took = units.duration((job.finished - job.started).total_seconds()) if job.finished and job.started else "–"
    return {
        "What": job_panel.title(job),
        "State": job.status.value,
        "Open": f"./{JOB_PAGES[job.kind]}?job={job.id}{more}",
        "Submitted": wording.moment(job.created),
        "Took": took,
        "Error": job.error,
    }


if __name__ == "__main__":
    render()
