"""The Pareto front on the plan page: every size's least loss, where this plan stands, and a click that takes a size."""

from __future__ import annotations

import streamlit as st

from advisor import pipeline
from advisor.errors import AdvisorError
from advisor.marks import usual_range
from advisor.types import Front, Plan, ProfileSummary, SensitivityProfile
from advisor.ui import answers, browser, drawing, frames, front_chart, plan_limits, wording
from advisor.ui.plan_controls import Controls

KEY = "front"


def show(summary: ProfileSummary, profile: SensitivityProfile, controls: Controls, plan: Plan | None) -> None:
    """Draw the front of the request, whatever its limit; with no plan, so that a limit can be taken from it.

    Where the request is refused for another reason than its limit there is nothing to draw.
    """
    try:
        front = answers.front(summary, profile, controls.request)
    except AdvisorError:
        return
    measure, rise = size_measure(controls.limit), controls.request.budget.max_ppl_increase is not None
    drawing.chart(
        front_chart.pareto_front(
            front.points,
            front.marked_simple,
            front_chart.point_of(plan) if plan is not None else None,
            measure,
            _limit(controls, front),
            browser.dark(),
        ),
        key=KEY,
        on_select=lambda: take(front, controls),
        selection_mode=front_chart.PICK,
        alt=front_chart.sentence(front.points),
    )
    for remark in pipeline.remarks_on_front(front, profile):
        st.caption(f":material/info: {remark}")
    st.caption(
        "The least loss at every size, with its 95 % interval: click a point to take it as the limit. Beside it, with "
        "their intervals, the plans that one gets without an advisor. A rise of "
        f"{usual_range()} is acceptable by the guide. Where each layer was measured by itself, plans are ranked by the "
        "sum of KL, which chance moves less, so perplexity may rise a little along the line. A plan for your own limit "
        "can lie between two points."
        + (
            " A rise that is a limit keeps one standard error to spare: it has to be larger than a point's own."
            if rise
            else ""
        )
    )


def size_measure(limit: str) -> frames.SizeMeasure:
    """How the limit of this kind counts size."""
    return {
        "memory": frames.SizeMeasure("memory in use (GiB)", lambda point: point.bytes / wording.GIB, in_memory=True),
        "weights": frames.SizeMeasure("weights (MiB)", lambda point: point.weights_bytes / wording.MIB),
    }.get(limit, frames.SizeMeasure("bits on average", lambda point: point.decided_bits))


def take(front: Front, controls: Controls) -> None:
    """Make the point that was clicked the limit; nothing where none is selected any more."""
    picked = st.session_state[KEY]["selection"].get(front_chart.PICK, [])
    if picked and front_chart.NUMBER in picked[0]:
        point = front.points[int(picked[0][front_chart.NUMBER])]
        usable = front.limit_bytes if controls.limit == "memory" else None
        fastest = controls.request.budget.fastest
        plan_limits.take(controls.limit, point, controls.device.memory_bytes, usable, fastest)


def _limit(controls: Controls, front: Front) -> float | None:
    """The request's limit on the axis; None where it is no size."""
    budget = controls.request.budget
    if budget.weight_bits is not None:
        return budget.weight_bits
    if budget.weight_bytes is not None:
        return budget.weight_bytes / wording.MIB
    if budget.vram_bytes is not None and front.limit_bytes is not None:
        # The front knows what may be used of the whole device; a part of the device leaves that part of it.
        return front.limit_bytes * budget.vram_bytes / controls.device.memory_bytes / wording.GIB
    return None
