"""What a link asks for and does not get, said on the page; it may come from anybody, so its words are only quoted."""

from __future__ import annotations

from collections.abc import Iterable

import streamlit as st

NO_CHOICE = "is not among the choices"
_LONGEST = 60  # characters of each thing that is named


def refused(label: str, asked: Iterable[str], instead: Iterable[str], why: str = NO_CHOICE) -> None:
    """Say that what the link asks for cannot be had, and what is shown instead; nothing where it asks for nothing."""
    if named := ", ".join(map(_quoted, asked)):
        shown = ", ".join(map(_quoted, instead)) or "none"
        st.info(f"*{label}*: the link asks for {named}, which {why}; shown instead: {shown}.")


def _quoted(text: str) -> str:
    """A short piece of code: no Markdown, link, line break or turn of direction works in it."""
    short = text[:_LONGEST] + "…" * (len(text) > _LONGEST)
    return f"`{''.join(one if one.isprintable() and one != '`' else ' ' for one in short)}`"
