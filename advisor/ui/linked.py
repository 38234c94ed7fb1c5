"""What is written into the link, and what it asks for in vain: it may be anybody's, so its words are only quoted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import streamlit as st

NO_CHOICE = "is not among the choices"
_LONGEST = 60  # characters of each thing that is named
_LATER = "link_later"


def begin() -> None:
    """A page is drawn anew: what another one would have written is none of its own."""
    st.session_state[_LATER] = {}


def write(key: str, value: str | Sequence[str]) -> None:
    """Write what the reader chose."""
    st.session_state.get(_LATER, {}).pop(key, None)
    if not _has(key, value):
        st.query_params[key] = value


def write_later(key: str, value: str | Sequence[str]) -> None:
    """Write what the page begins with when all is drawn: one step of the browser's history, not one a field."""
    if not _has(key, value):
        st.session_state.setdefault(_LATER, {})[key] = value


def drawn() -> None:
    """All is drawn, or a part of it that is drawn by itself."""
    if found := st.session_state.get(_LATER):
        st.query_params.update(found)
        st.session_state[_LATER] = {}


def _has(key: str, value: str | Sequence[str]) -> bool:
    return st.query_params.get_all(key) == ([value] if isinstance(value, str) else list(value))


def refused(label: str, asked: Iterable[str], instead: Iterable[str], why: str = NO_CHOICE) -> None:
    """Say that what the link asks for cannot be had, and what is shown instead; nothing where it asks for nothing."""
    if named := ", ".join(map(_quoted, asked)):
        shown = ", ".join(map(_quoted, instead)) or "none"
        st.info(f"*{label}*: the link asks for {named}, which {why}; shown instead: {shown}.")


def _quoted(text: str) -> str:
    """A short piece of code: no Markdown, link, line break or turn of direction works in it."""
    short = text[:_LONGEST] + "…" * (len(text) > _LONGEST)
    return f"`{''.join(one if one.isprintable() and one != '`' else ' ' for one in short)}`"
