"""The guided tour: the whole road on the demo model in about two minutes, every number of it measured on the way.

The stop lives in the link as `?tour=3`, with the ids of what was made so far beside it, so a refresh or another
browser finds the tour where it is. The session keeps the last one, for who left it by the pages' own navigation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st

from advisor import jobs
from advisor.demo import DEMO_SOURCE
from advisor.types import ApplyRequest, Job, Plan, ProfileRequest
from advisor.ui import common, job_panel, people

# Small on purpose: few sequences and draws give wide error bars, which the tour says, and take half a minute.
MEASURE = ProfileRequest(model=DEMO_SOURCE, samples=4, draws=2)
PLAN_LINK = {"device": "rtx-4090", "engine": "transformers", "goal": "loss", "limit": "bits", "bits": "5.5"}
CHECK = {"tokens": 1024, "baselines": ("int4_g64",)}
_BEGUN = "tour_begun"  # in the session: the number of the last stop, its page, and the link that it had
_ENDED = {
    "paused": "Paused: *Resume* below goes on from there.",
    "cancelled": "Cancelled: *Resume* below repeats it.",
    "failed": "It failed: *Resume* below tries again.",
}


@dataclass(frozen=True)
class Stop:
    """A stop of the tour.

    Attributes:
        page: where it is.
        says: what is seen, and why it matters.
        onward: the label of the button to the next stop, and what it does.
        job: the kind of job that must be done before the tour goes on.
        known: whether what that job finds out is there already.
    """

    page: str
    title: str
    says: str
    onward: str
    go: Callable[[], None]
    job: str = ""
    known: Callable[[], bool] = lambda: False


def start() -> None:
    """Begin the tour with a look inside the demo model, which is fetched for it if nobody has used it yet."""
    if _looked_inside():
        common.go("model", tour="1")
    _submit("inspect", {"model": DEMO_SOURCE}, "model", 1)


def begun() -> str:
    """Where the tour of this session stands, `stop 3 of 6`; empty where there is none to go on with."""
    return _numbered(st.session_state[_BEGUN][0]) if _BEGUN in st.session_state else ""


def go_on() -> None:
    """Back to the last stop of this session's tour, as its link was."""
    _, page, query = st.session_state[_BEGUN]
    st.switch_page(common.PAGES[page], query_params=query)


def panel(page: str) -> None:
    """The tour's panel at the top of a page: its stop, what is seen, and the way on; nothing without a tour."""
    asked = st.query_params.get("tour")
    if asked is None:
        return
    number = _number(asked, page)
    st.session_state.pop("tour_apply", None)  # asked for of a page that had no plan
    with st.container(border=True, key="tour_panel"):
        if number is None:
            _elsewhere(_stop_of(asked))
            return
        link = {key: st.query_params.get_all(key) for key in st.query_params}
        st.session_state[_BEGUN] = number, page, link | {"tour": str(number)}
        stop = STOPS[number - 1]
        st.caption(f"Guided tour · {_numbered(number)}")
        st.markdown(f"**{stop.title}.** {stop.says}")
        waits = _waits_for(stop)
        row = st.container(horizontal=True, vertical_alignment="center")
        if row.button(
            stop.onward,
            type="primary",
            icon=":material/arrow_forward:",
            disabled=bool(waits),
            key=f"tour_{number}",
        ):
            stop.go()
        _leave(row)
        if waits:
            row.caption(waits)


def solved(profile_id: str, plan: Plan) -> None:
    """Go on with the plan that the page has just solved, where the tour's button asked for it."""
    if st.session_state.pop("tour_apply", False):
        request = ApplyRequest(plan_id=common.store().save_plan(plan, profile_id, "Guided tour"), **CHECK)
        _submit("apply", request, "apply", 5)


def _number(asked: str, page: str) -> int | None:
    """The stop in the link where it is on this page, else the next one that is: the page's own links lead on too."""
    return next((n for n, stop in enumerate(STOPS, 1) if n >= _stop_of(asked) and stop.page == page), None)


def _stop_of(asked: str) -> int:
    return min(max(int(asked), 1), len(STOPS)) if asked.isdecimal() else 1


def _numbered(number: int) -> str:
    return f"stop {number} of {len(STOPS)}"


def _elsewhere(number: int) -> None:
    """On a page without a stop: the way to the one that the link names, and a beginning for who has none."""
    stop = STOPS[number - 1]
    row = st.container(horizontal=True, vertical_alignment="center")
    row.markdown(f"**Guided tour** · {_numbered(number)}, *{stop.title}*, is on another page.", width="content")
    if row.button(f"Go to stop {number}", type="primary", icon=":material/arrow_forward:", key="tour_there"):
        if begun() == _numbered(number):
            go_on()
        made = {key: st.query_params[key] for key in ("profile", "plan", "job") if key in st.query_params}
        common.go(stop.page, **made, tour=str(number))
    if not begun() and row.button("Begin the tour", key="tour_begin"):
        start()
    _leave(row)


def _waits_for(stop: Stop) -> str:
    if not stop.job or stop.known():
        return ""
    job = _job()
    if job is None or job.kind != stop.job:
        return "The work of this stop is not in this link: leave the tour and take it again."
    if not job.status.ended:
        return "Works in the background; the button is ready when it is done."
    return _ENDED.get(job_panel.state(job)[1], "")


def _looked_inside() -> bool:
    return common.store().catalogue_for_source(DEMO_SOURCE) is not None


def _job() -> Job | None:
    identifier = st.query_params.get("job")
    return common.store().job(identifier) if identifier else None


def _leave(place: st.delta_generator.DeltaGenerator) -> None:
    if place.button("Leave the tour", key="tour_leave", type="tertiary", help="The start page leads back to it."):
        del st.query_params["tour"]
        st.rerun()


def _submit(kind: str, request: ProfileRequest | ApplyRequest | dict[str, str], page: str, stop: int) -> None:
    job = jobs.submit(common.store(), kind, request, person=people.person())
    more = {"plan": request.plan_id, "tokens": str(request.tokens)} if isinstance(request, ApplyRequest) else {}
    common.go(page, tour=str(stop), job=job.id, **more)


def _measure() -> None:
    _submit("profile", MEASURE, "model", 2)


def _scores() -> None:
    job = _job()
    common.go("sensitivity", tour="3", profile=(job.result or {}).get("profile_id", "") if job else "")


def _plan() -> None:
    common.go("plan", tour="4", profile=st.query_params.get("profile", ""), **PLAN_LINK)


def _apply() -> None:
    st.session_state["tour_apply"] = True  # the page solves its plan further down: that one is taken


def _results() -> None:
    st.query_params["tour"] = "6"
    st.rerun()


def _own_model() -> None:
    st.session_state.pop(_BEGUN, None)
    st.switch_page(common.PAGES["model"], query_params={"from": "own"})


STOPS = (
    Stop(
        "model",
        "A model, looked inside",
        "A language model is blocks of large matrices, one after the other: below is how many weights each kind of "
        "matrix holds and how many bytes they take in each format. Storing a weight in 4 bits instead of 16 saves "
        "three quarters of them, and the question is which matrices can bear it.",
        "Measure which ones can",
        _measure,
        "inspect",
        _looked_inside,
    ),
    Stop(
        "model",
        "Measuring every layer",
        "The model reads a little text, and gradients tell what rounding each single matrix to INT8 and INT4 would do "
        "to its predictions. This is a real measurement on four sequences only, so that you need not wait; a serious "
        "one takes sixteen or more.",
        "See what was found",
        _scores,
        "profile",
    ),
    Stop(
        "sensitivity",
        "A few layers hurt, most do not",
        "Each cell is one matrix; the strongest colours mark those whose rounding changes the predictions most, often "
        "thousands of times more than others. The lines on the bars are one standard error: with so little text they "
        "are wide, and the plan will take them into account.",
        "Make a plan from it",
        _plan,
    ),
    Stop(
        "plan",
        "Bits where they matter",
        "The solver gives each layer a format so that the predicted loss is least within the limit of average bits, "
        f"{PLAN_LINK['bits']} to begin with. Move it and see the answer at once, or click a cell of the map for the "
        "reason of any layer; the button takes the plan as you leave it.",
        "Apply it and measure",
        _apply,
    ),
    Stop(
        "apply",
        "From prediction to files",
        "The plan is written as a quantized model, read back from disk and checked value by value. Then it is measured "
        "on text that took no part in its making, beside the original and INT4 everywhere.",
        "Compare with what was predicted",
        _results,
        "apply",
    ),
    Stop(
        "apply",
        "What was promised, and what came",
        "Below, what was predicted stands beside what was measured, with 95 % intervals. A plan is worth it where it "
        "loses clearly less than INT4 everywhere for hardly more bytes; on 1,024 tokens the intervals are wide, so "
        "measure yours on more.",
        "Now with my own model",
        _own_model,
    ),
)
