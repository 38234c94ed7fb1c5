"""The fields of the plan page: its rooms in order, and what all of them say as one PlanRequest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from advisor.errors import AdvisorError
from advisor.types import Budget, Engine, FeasibleRange, Hardware, PlanRequest, ProfileSummary, SensitivityProfile
from advisor.ui import answers, common, plan_limits, plan_load, plan_presets, plan_wishes


@dataclass(frozen=True)
class Setting:
    """Where the plan is to run and what is wished of it, whatever its limits.

    Attributes:
        load: fields of a Budget.
        wishes: fields of a PlanRequest.
    """

    device: Hardware
    engine: Engine
    load: dict[str, Any]
    wishes: dict[str, Any]


@dataclass(frozen=True)
class Controls:
    """What all of the page's fields say.

    Attributes:
        limit: the key of the limit: `bits`, `memory`, `weights`, or `ppl` for a rise of perplexity alone.
    """

    request: PlanRequest
    device: Hardware
    engine: Engine
    limit: str


def setting(summary: ProfileSummary, profile: SensitivityProfile) -> Setting:
    """Draw the fields that stay while limits are moved, and return what they say."""
    plan_presets.restore(summary.id)
    plan_presets.offer(profile)
    common.guide_link("decision")
    device, engine = plan_load.device_and_engine()
    load = plan_load.load(profile, engine)
    return Setting(device, engine, load, plan_wishes.show(summary.id, profile, engine))


def limits(summary: ProfileSummary, profile: SensitivityProfile, given: Setting) -> Controls:
    """Draw the fields of the limits, and return what all of them say."""
    whose = st.container()
    goal, kind = plan_limits.ask()
    device, engine = given.device, given.engine
    wanted = PlanRequest(
        hardware=device.name,
        engine=engine.name,
        budget=plan_limits.measured_in(kind, device, given.load),
        **given.wishes,
    )
    found = plan_limits.draw(goal, kind, profile, device, engine, _possible(summary, profile, wanted))
    request = wanted.model_copy(update={"budget": Budget(**given.load, **found)})
    with whose:
        plan_presets.taken(summary.id, request)
    return Controls(request, device, engine, kind)


def _possible(summary: ProfileSummary, profile: SensitivityProfile, request: PlanRequest) -> FeasibleRange | None:
    try:
        return answers.possible(summary, profile, request)
    except AdvisorError:
        return None  # the plan itself is refused in the same words, where its result would stand
