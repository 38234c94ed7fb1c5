"""What pages ask of scores again and again, worked out once: plans, fronts, simple plans, what giving back wins.

Answers are kept by the scores' key and the request, for all readers of the process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import pandas as pd
import streamlit as st

from advisor import knowledge, pipeline
from advisor.types import Budget, FeasibleRange, Front, Plan, PlanRequest, ProfileSummary, SensitivityProfile
from advisor.ui import frames

FRONT_POINTS = 48


# Nouns are frozen, so sessions may share them: no copy is made as st.cache_data would.
def solve(summary: ProfileSummary, profile: SensitivityProfile, request: PlanRequest) -> Plan:
    """The plan for a request, solved again only when the request or the scores have changed."""
    return _solve(summary.scores_key, request.model_dump_json(), profile)


@st.cache_resource(show_spinner=False, max_entries=32)
def _solve(scores_key: tuple[str, int, int, int], request_json: str, _profile: SensitivityProfile) -> Plan:
    return pipeline.make_plan(_profile, PlanRequest.model_validate_json(request_json))


def remarks(summary: ProfileSummary, profile: SensitivityProfile, plan: Plan) -> tuple[str, ...]:
    """What to know beside the solved plan of its request, worked out once."""
    return _remarks(summary.scores_key, plan.request.model_dump_json(), profile, plan)


@st.cache_resource(show_spinner=False, max_entries=32)
def _remarks(
    scores_key: tuple[str, int, int, int], request_json: str, _profile: SensitivityProfile, _plan: Plan
) -> tuple[str, ...]:
    return pipeline.remarks_on(_plan, _profile)


def without_limit(request: PlanRequest) -> PlanRequest:
    """The request with all the room there is, in the measure of its own limit: what stays while a limit is moved.

    The memory of the device for a limit of memory, more bytes than any model has for one of the weights, else 16 bits.
    """
    budget = request.budget
    room: dict[str, float] = {"weight_bits": 16.0}
    if budget.vram_bytes is not None:
        room = {"vram_bytes": knowledge.find_hardware(request.hardware).memory_bytes}
    elif budget.weight_bytes is not None:
        room = {"weight_bytes": 2**60}
    load = budget.model_dump(include={"context", "sequences", "kv_bits", "gpus"})
    return request.model_copy(update={"budget": Budget(**load, **room)})


def possible(summary: ProfileSummary, profile: SensitivityProfile, request: PlanRequest) -> FeasibleRange:
    """The smallest and the most precise plan, whatever the limit: the ends of the front, which is drawn anyway.

    Raises PlanError and KnowledgeError.
    """
    found = front(summary, profile, request)
    return FeasibleRange(smallest=found.points[0], largest=found.points[-1], limit_bytes=found.limit_bytes)


def front(summary: ProfileSummary, profile: SensitivityProfile, request: PlanRequest) -> Front:
    """The Pareto front to draw, which moving a limit leaves as it is. Raises PlanError and KnowledgeError."""
    return _front(summary.scores_key, without_limit(request).model_dump_json(), profile)


@st.cache_resource(show_spinner=False, max_entries=16)
def _front(scores_key: tuple[str, int, int, int], request_json: str, _profile: SensitivityProfile) -> Front:
    # The sweep's points alone, which are exact: more than a chart can show, without seconds of solving between them.
    return pipeline.pareto_front(_profile, PlanRequest.model_validate_json(request_json), points=0, most=FRONT_POINTS)


def simple_plans(
    summary: ProfileSummary, profile: SensitivityProfile, request: PlanRequest, formats: Iterable[str]
) -> dict[str, Plan]:
    """Name (`uniform int8`, `role rule`) -> the plan that needs no advisor, where the engine has it; for comparison."""
    # What simple plans ignore is left out of the key: moving a budget's slider does not ask for them again.
    load = Budget(weight_bits=16, **request.budget.model_dump(include={"context", "sequences", "kv_bits", "gpus"}))
    wishes = {"locks": {}, "excluded": (), "formats": ()}
    key = request.model_copy(update={"budget": load, **wishes}).model_dump_json()
    return _simple_plans(summary.scores_key, key, tuple(formats), profile)


@st.cache_resource(show_spinner=False, max_entries=32)
def _simple_plans(
    scores_key: tuple[str, int, int, int], request_json: str, formats: tuple[str, ...], _profile: SensitivityProfile
) -> dict[str, Plan]:
    return pipeline.simple_plans(_profile, PlanRequest.model_validate_json(request_json), formats)


def scores(summary: ProfileSummary, profile: SensitivityProfile) -> pd.DataFrame:
    """What `frames.profile_frame` says, to be read only: it is made again when scores have arrived."""
    return _scores(summary.scores_key, profile)


@st.cache_resource(show_spinner=False, max_entries=8)
def _scores(scores_key: tuple[str, int, int, int], _profile: SensitivityProfile) -> pd.DataFrame:
    return frames.profile_frame(_profile)


def gains(
    summary: ProfileSummary, profile: SensitivityProfile, assignments: Mapping[str, str]
) -> dict[str, tuple[float, float]]:
    """What `frames.gains` says, asked again only when the plan or the scores have changed."""
    return _gains(summary.scores_key, json.dumps(dict(assignments)), profile)


@st.cache_resource(show_spinner=False, max_entries=32)
def _gains(
    scores_key: tuple[str, int, int, int], assignments_json: str, _profile: SensitivityProfile
) -> dict[str, tuple[float, float]]:
    return frames.gains(_profile, json.loads(assignments_json))
