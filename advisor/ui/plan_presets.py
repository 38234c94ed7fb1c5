"""Fills the plan page's fields: from a deployment of the guide, the plan of a link, or a way out of a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from advisor import knowledge
from advisor.errors import WaysOut
from advisor.types import Budget, PlanRequest, Scenario, SensitivityProfile
from advisor.ui import common, plan_limits, plan_load, plan_wishes, wording

_NONE = ""
_TAKEN = "taken_plan"
_LIMITS = {"weight_bits", "weight_bytes", "vram_bytes", "max_ppl_increase"}


def offer(profile: SensitivityProfile) -> None:
    """A choice of the guide's deployments, above the fields that it fills; any of them can be changed afterwards."""
    scenarios = knowledge.scenarios()
    linked = st.query_params.pop("scenario", None)  # the guide's links; what it fills in is in the link from then on
    if linked in scenarios:
        st.session_state["scenario"] = linked
        _take(profile)
    chosen = st.selectbox(
        "Start from a deployment",
        [_NONE, *scenarios],
        format_func=lambda name: scenarios[name].label if name else "choose, or fill in yourself",
        key="scenario",
        persist_state="session",
        on_change=_take,
        args=(profile,),
        help="Fills in device, engine, load, formats and limit as the quantization guide describes the deployment. "
        + " ".join(f"**{row.label}**: {row.description}" for row in scenarios.values()),
    )
    if chosen != _NONE:
        row = scenarios[chosen]
        if _still_holds(request_of(row, profile)):
            st.caption(f"{row.description} The guide: {row.guide} Source: {row.source}.{_left_out(row, profile)}")
        else:
            st.caption("Device, engine or load were changed since.")
            st.button("Fill in again", on_click=_take, args=(profile,), key="fill_again", type="tertiary")


def restore(profile_id: str) -> None:
    """Take the settings of a stored plan that the link asks for (`?plan=ID`), once: from then on the link has them.

    The plan stays in the link where it has more locks than that holds.
    """
    plan_id = st.query_params.get("plan")
    if not plan_id or st.session_state.get("restored_plan") == plan_id:
        return
    st.session_state["restored_plan"] = plan_id
    stored = common.store().plan(plan_id)
    if stored is None:
        st.info("The plan of this link is no longer stored; here is a new one from the same scores.")
        return
    fill(profile_id, stored.request)
    summary = next((one for one in common.store().plans(profile_id) if one.id == plan_id), None)
    st.session_state["plan_name"] = summary.name if summary else ""
    st.session_state[_TAKEN] = (summary, stored.request)
    if plan_wishes.fit_link(profile_id):
        del st.query_params["plan"]


def taken(profile_id: str, asked: PlanRequest) -> None:
    """Say whose settings the fields hold while they are those of the plan that was opened."""
    summary, request = st.session_state.get(_TAKEN, (None, None))
    if summary is not None and (summary.profile_id, request) == (profile_id, asked):
        made = f"{summary.decided_bits:.2f} bits, {wording.moment(summary.created)}"
        called = f"**{wording.verbatim(summary.name)}** ({made})" if summary.name else f"of {made}"
        st.caption(f":material/bookmark: Settings of the stored plan {called}; a change makes a new plan.")


def fill(profile_id: str, wanted: PlanRequest) -> None:
    """Take all of a request into the fields."""
    plan_load.fill(wanted)
    plan_limits.fill(wanted)
    plan_wishes.fill(profile_id, wanted)


def _follow(profile_id: str, asked: PlanRequest, changes: Mapping[str, Any]) -> None:
    """Take a changed request into the fields; into those of the limits where it changes one of these."""
    wanted = asked.changed(changes)
    plan_load.fill(wanted)
    plan_wishes.fill(profile_id, wanted)
    if changes.keys() & _LIMITS:
        plan_limits.fill(wanted)


def ways_out(profile_id: str, asked: PlanRequest, ways: WaysOut) -> None:
    """A button for each change of the request that would do, the first of them the surest."""
    row = st.container(horizontal=True)
    for number, (words, changes) in enumerate(ways.items()):
        row.button(
            wording.labelled(words[0].upper() + words[1:]),
            type="secondary" if number else "primary",
            on_click=_follow,
            args=(profile_id, asked, changes),
            key=f"way_out_{words}",
            help="Changes nothing else.",
        )


def _still_holds(wanted: PlanRequest) -> bool:
    """Whether the fields say what a deployment filled in: device, engine and load."""
    held, budget = st.session_state, wanted.budget
    return (held.get("last_device"), held.get("last_engine")) == (wanted.hardware, wanted.engine) and all(
        held.get(key, getattr(budget, key)) == getattr(budget, key) for key in ("gpus", "sequences", "context")
    )


def request_of(scenario: Scenario, profile: SensitivityProfile) -> PlanRequest:
    """What a scenario asks of this model: its formats as far as they were measured, no context beyond the model's.

    All of the device's memory is the limit; where the guide accepts a rise of perplexity, that is one too.
    """
    return PlanRequest(
        hardware=scenario.hardware,
        engine=scenario.engine,
        budget=Budget(
            vram_bytes=knowledge.find_hardware(scenario.hardware).memory_bytes,
            max_ppl_increase=scenario.max_ppl_increase,
            context=min(scenario.context, profile.catalogue.max_context),
            sequences=scenario.sequences,
            kv_bits=scenario.kv_bits,
            gpus=scenario.gpus,
        ),
        formats=tuple(name for name in scenario.formats if name in profile.formats),
    )


def _take(profile: SensitivityProfile) -> None:
    scenario = knowledge.scenarios().get(st.session_state["scenario"])
    if scenario is not None:
        wanted = request_of(scenario, profile)
        plan_load.fill(wanted)
        plan_limits.fill(wanted)
        plan_wishes.fill_formats(wanted)


def _left_out(scenario: Scenario, profile: SensitivityProfile) -> str:
    """What of a scenario this model or profile cannot have, in words."""
    missing = [name for name in scenario.formats if name not in profile.formats]
    said = f" Not measured here: {wording.format_labels(missing)}." if missing else ""
    if scenario.context > profile.catalogue.max_context:
        said += f" The model's context ends at {profile.catalogue.max_context:,} tokens."
    return said
