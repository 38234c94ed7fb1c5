"""The choice of how a plan is written, what its engine loads first; and the nearest plan where this one cannot be."""

from __future__ import annotations

import streamlit as st

from advisor import knowledge, pipeline
from advisor.errors import AdvisorError, UnfitPlan
from advisor.export_checks import refuse_for
from advisor.planner.nearest import changed
from advisor.types import Catalogue, Plan, Target
from advisor.ui import common, wording
from advisor.units import plural, size

_ENGINE = "target_engine"


def choose(plan: Plan) -> str:
    """The name of a target: those that the plan's engine loads come first, the first of them is taken unless told."""
    engine = plan.request.engine
    own = knowledge.targets_for(engine)
    first = knowledge.target_for(engine).name
    if st.session_state.get(_ENGINE, engine) != engine:
        common.set_choice("to", first)  # what was chosen for a plan of another engine says nothing of this one
    st.session_state[_ENGINE] = engine
    ordered = [*own, *(target for target in knowledge.targets().values() if target not in own)]
    return common.choose("to", "Write as", {target.name: _label(target, own) for target in ordered}, _help(ordered))


def _label(target: Target, own: tuple[Target, ...]) -> str:
    return f"{target.label} · recommended" if own and target == own[0] else target.label


def _help(targets: list[Target]) -> str:
    return "\n".join(f"- **{target.label}**: {target.help}" for target in targets)


def can_be_written(plan_id: str, plan: Plan, to: str, catalogue: Catalogue | None) -> bool:
    """Whether the plan can be written so; where not, why, with a button that takes the nearest plan."""
    target = knowledge.find_target(to)
    if catalogue is None or catalogue.model.fingerprint != plan.model.fingerprint:
        return True  # the job finds out
    try:
        refuse_for(catalogue, plan.assignments, target)
        return True
    except UnfitPlan as unfit:
        st.warning(wording.labelled(str(unfit)))
    _offer_nearest(plan_id, plan, to)
    return False


def _offer_nearest(plan_id: str, plan: Plan, to: str) -> None:
    try:
        nearest = pipeline.nearest_plan(plan, to, common.store())
    except AdvisorError as refusal:
        common.refuse(refusal)
        return
    said, button = st.columns([3, 1], vertical_alignment="center")
    said.caption(_what_changes(plan, nearest))
    if button.button(
        "Take the nearest plan",
        width="stretch",
        help="Saves it beside this one and shows it here; this plan stays as it is.",
    ):
        store = common.store()
        given = next((summary for summary in store.plans() if summary.id == plan_id), None)
        named = given.name if given and given.name else plan.model.name
        name = f"{named}, nearest for {knowledge.find_target(to).label}"
        common.go("apply", plan=pipeline.keep_plan(nearest, store, name), to=to)


def _what_changes(plan: Plan, nearest: Plan) -> str:
    told = f"The nearest plan changes {plural(len(changed(plan, nearest.assignments)), 'layer')}"
    weights = size(nearest.memory.model_weights_bytes)
    if nearest.own_prediction is None:
        return f"{told}: {weights} of weights. What it loses is not known here, since its profile is not stored."
    change = wording.percent(nearest.predicted.delta_ppl_pct)
    return f"{told}: {weights} of weights, predicted change of perplexity {change}."
