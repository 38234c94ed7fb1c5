"""What streamlit leaves to the browser, in `browser.html`: inks of light and dark, Back, and where signing in ends."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

_SCRIPT = Path(__file__).with_suffix(".html")


def dark() -> bool:
    """Whether this reader's page is dark."""
    return st.context.theme.type == "dark"


def prepare() -> None:
    """Let this page be drawn again when the system turns light or dark, be one step of the browser's history, and be
    where people are after signing in at it.
    """
    st.html(_SCRIPT, unsafe_allow_javascript=True)
    st.button("Draw again", key="theme_turned")
