"""What streamlit leaves to the browser: charts in the inks of a light or dark page, and a Back that leaves a page."""

from __future__ import annotations

import streamlit as st

_TURNED = "theme_turned"
# Streamlit's own page follows the system at once, but tells the server, which chooses the inks, only with the next
# choice that is made. And every choice that the server writes into the link would be a step of its own for Back, those
# that a page begins with among them: it would write them again, and nobody came back past it.
_SCRIPT = f"""<style>.st-key-{_TURNED} {{display: none}}</style>
<script>
    window.advisorTheme ??= matchMedia("(prefers-color-scheme: dark)");
    window.advisorTheme.onchange = () =>
        setTimeout(() => document.querySelector(".st-key-{_TURNED} button")?.click(), 300);
    history.pushState = (state, unused, link) => {{
        const samePage = new URL(link, location).pathname === location.pathname;
        History.prototype[samePage ? "replaceState" : "pushState"].call(history, state, unused, link);
    }};
</script>"""


def dark() -> bool:
    """Whether this reader's page is dark."""
    return st.context.theme.type == "dark"


def prepare() -> None:
    """Let this page be drawn again when the system turns light or dark, and be one step of the browser's history."""
    st.html(_SCRIPT, unsafe_allow_javascript=True)
    st.button("Draw again", key=_TURNED)
