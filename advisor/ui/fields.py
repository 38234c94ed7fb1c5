"""Bounds of number fields that take what a stored plan or a link asks for, however far that lies."""

from __future__ import annotations

import math
from typing import TypeVar

import streamlit as st

# Beyond this a browser cannot tell whole numbers apart, and streamlit refuses the field.
LARGEST = 2**53 - 1

Number = TypeVar("Number", int, float)


def reach(key: str, low: Number, high: Number) -> tuple[Number, Number]:
    """The bounds of a field, widened to what a stored plan or the link asks of it: streamlit refuses values outside.

    They stay as wide for the session, since a field whose bounds change is a new field.
    """
    held = held_number(key)
    reaches = st.session_state.setdefault("reaches", {})
    low, high = min(low, reaches.get(key, (low, high))[0]), max(high, reaches.get(key, (low, high))[1])
    if held is not None:
        low, high = min(low, type(low)(held)), max(high, type(high)(held))
    reaches[key] = low, high
    return low, high


def held_number(key: str) -> float | None:
    """The number that this session, or else the link, holds for a field; None where that is none to plan with."""
    try:
        held = float(st.session_state.get(key) or st.query_params.get(key) or math.nan)
    except ValueError:
        return None
    return held if 0 < held <= LARGEST else None
