"""The left side of the plan page: its rooms in order, and what all of them say as one PlanRequest."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from advisor.errors import AdvisorError
from advisor.types import Budget, Engine, FeasibleRange, Hardware, PlanRequest, ProfileSummary, SensitivityProfile
from advisor.ui import answers, common, plan_limits, plan_load, plan_presets, plan_wishes


@dataclass(frozen=True)
class Controls:
    """What the left side says.

    Attributes:
        limit: the key of the limit: `bits`, `memory`, `weights`, or `ppl` for a rise of perplexity alone.
    """

    request: PlanRequest
    device: Hardware
    engine: Engine
    limit: str


def draw(summary: ProfileSummary, profile: SensitivityProfile) -> Controls:
    """Draw all fields and return what they say."""
    plan_presets.restore(summary.id)
    plan_presets.offer(profile)
    common.guide_link("decision")
    device, engine = plan_load.device_and_engine()
    # The limits stand above the load and the wishes, but what is possible depends on these.
    limits = st.container()
    load = plan_load.load(profile, engine)
    wishes = plan_wishes.show(summary.id, profile, engine)
    with limits:
        goal, kind = plan_limits.ask()
        wanted = PlanRequest(
            hardware=device.name, engine=engine.name, budget=plan_limits.measured_in(kind, device, load), **wishes
        )
        possible = _possible(summary, profile, wanted)
        found = plan_limits.draw(goal, kind, profile, device, engine, possible)
    request = wanted.model_copy(update={"budget": Budget(**load, **found)})
    return Controls(request, device, engine, kind)


def _possible(summary: ProfileSummary, profile: SensitivityProfile, request: PlanRequest) -> FeasibleRange | None:
    try:
        return answers.possible(summary, profile, request)
    except AdvisorError:
        return None  # the plan itself is refused in the same words, where its result would stand
