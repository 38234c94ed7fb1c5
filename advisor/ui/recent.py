"""Recent work to go on with, for a person who comes back: the newest jobs, profiles and plans, each with its way on."""

from __future__ import annotations

import streamlit as st

from advisor import jobs
from advisor.types import Job, JobStatus
from advisor.ui import common, job_panel, wording

_CARDS = 3


def show() -> None:
    """A row of cards; nothing where nothing is stored."""
    cards = [*_unfinished(), *_made()][:_CARDS]
    if not cards:
        return
    st.caption("Go on with")
    for column, (title, said, page, label, query) in zip(st.columns(_CARDS), cards, strict=False):
        with column.container(border=True, height="stretch"):
            st.markdown(f"**{title}**")
            st.caption(said)
            common.link(page, label, ":material/arrow_forward:", **query)


Card = tuple[str, str, str, str, dict[str, str]]


def _unfinished() -> list[Card]:
    """The newest job where somebody waits for it or would take it up again."""
    jobs.reap(common.store())
    return [_job(job) for job in common.store().jobs(limit=1) if job.status is not JobStatus.DONE]


def _job(job: Job) -> Card:
    (icon, state), (page, query) = job_panel.state(job), job_panel.place(job)
    said = f":material/{icon}: {state} · {wording.moment(job.created)}"
    names = job_panel.names(common.store().plans(), common.store().profiles())
    return wording.verbatim(job_panel.full_title(job, names)), said, page, "Open", query


def _made() -> list[Card]:
    """The newest plan and the newest profiles."""
    store = common.store()
    cards: list[Card] = []
    for plan in store.plans()[:1]:
        engine = wording.engine_label(plan.engine)
        said = f"Plan of {plan.decided_bits:.2f} bits for {engine} · {wording.moment(plan.created)}"
        cards.append(
            (wording.verbatim(plan.name or plan.model_name), said, "apply", "Apply and evaluate", {"plan": plan.id})
        )
    for profile in [profile for profile in store.profiles() if profile.measured][:2]:
        scores = wording.plural(profile.measured, "score")
        tokens = f"{profile.samples * profile.seq_len:,} tokens"
        said = f"{scores} in {wording.format_labels(profile.formats)} on {tokens} · {wording.moment(profile.created)}"
        query = {"profile": profile.id}
        page, label = ("sensitivity", "See the sensitivity") if profile.around else ("plan", "Make a plan")
        cards.append((wording.verbatim(profile.name or profile.model_name), said, page, label, query))
    return cards
