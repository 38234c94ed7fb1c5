"""Number fields that live in the link; their bounds take what a stored plan or a link asks for, however far it lies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import streamlit as st

from advisor.ui import linked

# Beyond this a browser cannot tell whole numbers apart, and streamlit refuses the field.
LARGEST = 2**53 - 1

Number = TypeVar("Number", int, float)


def number(name: str, draw: Callable[..., Any], label: str, *bounds: Any, **more: Any) -> Any:
    """A field for a number that lives in the link under `name`; says so where the link has one that it does not take.

    Args:
        draw: what draws it, such as `st.number_input`, which takes `bounds` and `more` after the label.
    """
    asked = None if name in st.session_state else st.query_params.get(name)
    if asked and _is_infinite(asked):  # streamlit fails on it
        value = draw(label, *bounds, **more, key=name)
        del st.query_params[name]
    else:
        value = draw(label, *bounds, **more, key=name, bind="query-params")
    if asked and not _says(asked, value):
        linked.refused(label, [asked], [] if value is None else [_said(value)], "is no number that it takes")
    return value


def always_linked(
    name: str, draw: Callable[..., Any], label: str, *options: Any, value: Any, known: bool, **more: Any
) -> Any:
    """A field for a number that the link has under `name` even where the reader never moved it.

    Its default depends on what else is chosen: a link without it would mean another number elsewhere.

    Args:
        value: what the field shows: `linked_number`, or a default.
        known: whether the link is to keep it; not so what stands there while nothing says what is possible.
    """
    asked = st.query_params.get(name)
    st.session_state[name] = value
    value = draw(label, *options, key=name, on_change=lambda: link_number(name, st.session_state[name]), **more)
    if asked and linked_number(name) is None:
        linked.refused(label, [asked], [_said(value)], "is no number that it takes")
    if known:
        st.session_state[f"last_{name}"] = value
        linked.write_later(name, _said(value))
    return value


def link_number(name: str, value: float) -> None:
    """Put a number into the link, and keep it for the page's next visit without one."""
    st.session_state[f"last_{name}"] = value
    linked.write(name, _said(value))


def linked_number(name: str) -> float | None:
    """The number of the link, or else the last that the field showed; None where that is none to plan with."""
    return _to_plan_with(st.query_params.get(name) or st.session_state.get(f"last_{name}"))


def _to_plan_with(held: str | float | None) -> float | None:
    try:
        found = float(held or math.nan)
    except ValueError:
        return None
    return found if 0 < found <= LARGEST else None


def _said(value: float) -> str:
    return f"{value:.10g}"


def _is_infinite(text: str) -> bool:
    try:
        return not math.isfinite(float(text))
    except ValueError:
        return False


def _says(text: str, value: float | None) -> bool:
    try:
        return float(text) == value
    except ValueError:
        return False


def keep_within(key: str, low: int, high: int) -> None:
    """Bring what this session holds for a widget into its range, which may depend on what else is chosen.

    Streamlit refuses a held value outside of a widget's range, and with it the whole page.
    """
    held = st.session_state.get(key)
    if held is not None and not low <= held <= high:
        st.session_state[key] = min(max(held, low), high)


def reach(key: str, low: Number, high: Number) -> tuple[Number, Number]:
    """The bounds of a field, widened to what a stored plan or the link asks of it: streamlit refuses values outside.

    They stay as wide for the session, since a field whose bounds change is a new field.
    """
    held = _to_plan_with(st.session_state.get(key) or st.query_params.get(key))
    reaches = st.session_state.setdefault("reaches", {})
    low, high = min(low, reaches.get(key, (low, high))[0]), max(high, reaches.get(key, (low, high))[1])
    if held is not None:
        low, high = min(low, type(low)(held)), max(high, type(high)(held))
    reaches[key] = low, high
    return low, high
