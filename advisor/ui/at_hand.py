"""The plan that this session is making and may not have saved, for the pages that explain layers beside it."""

from __future__ import annotations

import streamlit as st

from advisor.errors import AdvisorError
from advisor.types import Plan, ProfileSummary, SensitivityProfile
from advisor.ui import answers

_REQUESTS = "requests_at_hand"  # profile id -> what was last planned from it


def remember(profile_id: str, plan: Plan) -> None:
    """The plan page shows this one."""
    st.session_state.setdefault(_REQUESTS, {})[profile_id] = plan.request


def there_is(profile_id: str) -> bool:
    """Whether a plan from this profile was made in this session."""
    return profile_id in st.session_state.get(_REQUESTS, {})


def plan(summary: ProfileSummary, profile: SensitivityProfile) -> Plan | None:
    """The plan as the plan page shows it; None where none was made, or scores that came since leave none."""
    request = st.session_state.get(_REQUESTS, {}).get(summary.id)
    try:
        return answers.solve(summary, profile, request) if request is not None else None
    except AdvisorError:
        return None
