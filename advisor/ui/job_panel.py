"""A job as its page shows it: live while it runs, an end with a next step once it has ended."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping

import streamlit as st
from pydantic import ValidationError

from advisor import jobs, units
from advisor.types import Job, JobStatus, PlanSummary, ProfileSummary, Progress, RefineRequest
from advisor.ui import apply_steps, common, live_scores, people, wording

TITLES = {
    "inspect": "Looking inside {model}",
    "preview": "Estimating {model}",
    "profile": "Profiling {model}",
    "refine": "Refining a plan",
    "apply": "Applying and evaluating",
    "zip": "Making a zip file",
    "answers": "Answering prompts",
}
# The page that shows a job of each kind, the first one where none is named.
_PAGES = {"refine": "plan", "apply": "apply", "zip": "apply", "answers": "blind"}
_STATES = {
    JobStatus.QUEUED: ("schedule", "waits for its turn"),
    JobStatus.RUNNING: ("progress_activity", "runs now"),
    JobStatus.DONE: ("check", "done"),
    JobStatus.FAILED: ("error", "failed"),
}
_AROUND = "Profiling {model} around a plan"
_STORING = ("profile", "refine", "apply", "answers")  # kinds whose every step is stored: they can be paused

PACE_AFTER = 4


def start(kind: str, request: object) -> None:
    """Submit a job and put it into the link; the page is drawn again with the job on it."""
    job = jobs.submit(common.store(), kind, request, person=people.person())
    st.query_params["job"] = job.id
    st.rerun()


def current(*kinds: str) -> Job | None:
    """The job of this link if it is of one of these kinds; a job gone from the database is said so."""
    job_id = st.query_params.get("job")
    if not job_id:
        return None
    job = common.store().job(job_id)
    if job is None:
        st.info("The job of this link is no longer stored; the History page lists those that are.")
        return None
    return job if job.kind in kinds else None


def show(job: Job, when_done: Callable[[Job], None]) -> None:
    """Draw the job: progress with Cancel while it lives, error with Resume, or what `when_done` draws."""
    with st.container(border=True):
        st.markdown(f"**{title(job)}**")
        if not job.status.ended:
            st.fragment(run_every=1.0)(_live)(job.id)
            if job.kind == "profile":
                live_scores.show(job.id)
        elif job.status is JobStatus.DONE:
            when_done(job)
        else:
            _ended_badly(job)


def title(job: Job) -> str:
    """What the job does, in words."""
    words = _AROUND if job.params.get("around") else TITLES[job.kind]
    return words.format(model=job.params.get("model", "the model")) + (_within(job) if job.kind == "refine" else "")


def names(plans: Iterable[PlanSummary], profiles: Iterable[ProfileSummary]) -> dict[str, str]:
    """What stored plans and sensitivity profiles are called where a job is about them, by their ids."""
    return {plan.id: _plan_name(plan) for plan in plans} | {one.id: one.name or one.model_name for one in profiles}


def _plan_name(plan: PlanSummary) -> str:
    name = f"{plan.name} · " if plan.name else ""
    return f"{name}{plan.model_name} · {plan.decided_bits:.2f} bits"


def full_title(job: Job, names: Mapping[str, str]) -> str:
    """What the job does and the plan or sensitivity profile that it is about, as far as `names` knows that."""
    made = str((job.result or {}).get("plan_id", ""))  # of a refinement
    known = [names[one] for one in (made, *job.subjects.values()) if one in names]
    return title(job) + (f": {known[0]}" if known else "")


def _within(job: Job) -> str:
    """The limits of what is refined; nothing of a job that an earlier version asked for in another way."""
    try:
        return f" within {wording.limits(RefineRequest(**job.params).plan.budget)}"
    except ValidationError:
        return ""


def state(job: Job, others: Iterable[Job] = ()) -> tuple[str, str]:
    """The icon and the words for how a job stands among these others, alike on every page."""
    if job.status.ended and job.status is not JobStatus.DONE and _taken_up(job, others):
        return "redo", "taken up again"
    if job.status is not JobStatus.CANCELLED:
        return _STATES[job.status]
    return ("pause", "paused") if _paused(job) else ("block", "cancelled")


def place(job: Job) -> tuple[str, dict[str, str]]:
    """The page that shows the job, and what its link names."""
    return _PAGES.get(job.kind, "model"), {"job": job.id} | job.subjects


def _paused(job: Job) -> bool:
    """Whether the job was stopped with something stored to go on from."""
    return job.status is JobStatus.CANCELLED and job.kind in _STORING and job.started is not None


@common.guarded
def _live(job_id: str) -> None:
    store = common.store()
    jobs.reap(store)
    job = store.job(job_id)
    if job is None or job.status.ended:
        st.rerun()
    progress = job.progress or Progress(stage="starting")
    if job.status is JobStatus.QUEUED:
        st.progress(0.0, text=_waiting(store.jobs_before(job.id)))
    else:
        st.progress(_share(progress), text=_progress_text(job, progress))
    if job.kind == "apply":
        st.caption(apply_steps.line(job))
    said, button = st.columns([4, 1], vertical_alignment="center")
    if job.cancel_requested:
        said.caption("Stopping after the current step. *Stop now* does not wait for it; what is stored stays.")
        if button.button(
            "Stop now",
            key=f"stop_{job.id}",
            width="stretch",
            help="Ends the job's process at once. The step it is in is lost, everything before it stays stored.",
        ):
            jobs.cancel(store, job.id, force=True)
            st.rerun()
        _link_to_subject(progress)
        return
    said.caption(
        wording.labelled(progress.message) or "You may close this page: the job runs on, and this link finds it again."
    )
    pausing = job.kind in _STORING and job.status is JobStatus.RUNNING
    if button.button(
        "Pause" if pausing else "Cancel",
        key=f"cancel_{job.id}",
        width="stretch",
        help="Stops after the current step and gives its place to other jobs. "
        + ("What is done stays stored, and Resume continues there." if pausing else "Nothing is kept."),
    ):
        jobs.cancel(store, job.id)
        st.rerun()
    _link_to_subject(progress)


def _ended_badly(job: Job) -> None:
    if (later := _taken_up(job, common.store().jobs(limit=100))) is not None:
        st.info("This was taken up again by a later job.")
        page, query = place(later)
        common.link(page, "See that job", ":material/arrow_forward:", **query)
        return
    if job.status is JobStatus.CANCELLED:
        st.info(
            "Paused. What was done until then is stored; Resume continues from there, today or another day."
            if _paused(job)
            else "Cancelled. Resume repeats it."
        )
    else:
        st.error(wording.labelled(job.error) or "The job failed without a message; its last lines are below.")
        if job.log_tail:
            with st.expander("Last lines of its log"):
                st.code(job.log_tail, language=None, wrap_lines=True)
    row = st.container(horizontal=True)
    if row.button(
        "Resume",
        type="primary",
        key=f"resume_{job.id}",
        help="Runs the same request again; nothing already stored is done twice.",
    ):
        st.query_params["job"] = jobs.resume(common.store(), job.id, person=people.person()).id
        st.rerun()
    if row.button("Put aside", key=f"aside_{job.id}", help="Takes it off this page; the History keeps it."):
        del st.query_params["job"]
        st.rerun()
    _link_to_subject(job.progress)


def _taken_up(job: Job, others: Iterable[Job]) -> Job | None:
    """The newest later job of the same request; `others` come newest first."""
    later = itertools.takewhile(lambda one: one.id != job.id, others)
    return next((one for one in later if _request(one) == _request(job)), None)


def _request(job: Job) -> tuple[str, dict[str, object]]:
    return job.kind, job.params


def _link_to_subject(progress: Progress | None) -> None:
    if progress is not None and progress.subject:
        common.link("sensitivity", "See what is measured so far", ":material/grid_on:", profile=progress.subject)


def _waiting(before: int | None) -> str:
    if not before:
        return "Starting"
    return f"Waiting for its turn: {wording.plural(before, 'job')} before it, each person's in turn"


def _share(progress: Progress) -> float:
    return min(1.0, progress.done / progress.total) if progress.total else 0.0


def _progress_text(job: Job, progress: Progress) -> str:
    parts = [progress.stage.capitalize()]
    if progress.total:
        counted = progress.stage in ("download", "zip")  # bytes; all other stages count pieces of work
        done = wording.size(progress.done) if counted else f"{progress.done:,}"
        total = wording.size(progress.total) if counted else f"{progress.total:,}"
        parts.append(f"{done} of {total}")
    left = _seconds_left(job.id, progress)
    if left is not None:
        parts.append(f"about {units.duration(left)} left")
    return " · ".join(parts)


def _seconds_left(job_id: str, progress: Progress) -> float | None:
    """From the pace of this stage since this page first saw it; None until there is a pace."""
    seen = st.session_state.setdefault("paces", {})
    since, first = seen.setdefault((job_id, progress.stage), (time.monotonic(), progress.done))
    elapsed, advanced = time.monotonic() - since, progress.done - first
    # The first pieces are no pace: they include what is done once.
    if not progress.total or advanced < PACE_AFTER or elapsed < 2:
        return None
    return elapsed * (progress.total - progress.done) / advanced
