"""Light and dark: the server chooses the inks of charts, and draws anew when the reader's page turns."""

from __future__ import annotations

import streamlit as st

_TURNED = "theme_turned"
# Streamlit's own page follows the system at once, but tells the server only with the next choice that is made.
_FOLLOW = f"""<style>.st-key-{_TURNED} {{display: none}}</style>
<script>
    window.systemTheme ??= matchMedia("(prefers-color-scheme: dark)");
    window.systemTheme.onchange = () =>
        setTimeout(() => document.querySelector(".st-key-{_TURNED} button")?.click(), 300);
</script>"""


def dark() -> bool:
    """Whether this reader's page is dark."""
    return st.context.theme.type == "dark"


def follow() -> None:
    """Draw the page again when the system turns from light to dark or back."""
    st.html(_FOLLOW, unsafe_allow_javascript=True)
    st.button("Draw again", key=_TURNED)
