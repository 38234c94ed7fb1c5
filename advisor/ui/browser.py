"""What streamlit leaves to the browser: charts in the inks of a light or dark page, and a Back that leaves a page."""

from __future__ import annotations

import streamlit as st

_TURNED = "theme_turned"
# Streamlit's own page follows the system at once, but tells the server, which chooses the inks, only with the next
# choice that is made. And it makes a step for Back of every choice that the server writes into the link, those that a
# page begins with among them: it would write them again, and nobody came back past it. The page that comes writes into
# the link of the one that is left, too, which is why that gets back what it had when the reader last did something.
_SCRIPT = f"""<style>.st-key-{_TURNED} {{display: none}}</style>
<script>
    if (!window.advisorPrepared) {{
        window.advisorPrepared = true;
        matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
            setTimeout(() => document.querySelector(".st-key-{_TURNED} button")?.click(), 300));
        let left = location.href;
        for (const kind of ["pointerdown", "keydown"])
            addEventListener(kind, () => {{ left = location.href; }}, true);
        const write = (how, ...entry) => History.prototype[how].apply(history, entry);
        const path = (link) => new URL(link, location).pathname;
        history.pushState = (state, unused, link) => {{
            if (path(link) === location.pathname) return write("replaceState", state, unused, link);
            if (path(left) === location.pathname) write("replaceState", history.state, "", left);
            write("pushState", state, unused, link);
        }};
    }}
</script>"""


def dark() -> bool:
    """Whether this reader's page is dark."""
    return st.context.theme.type == "dark"


def prepare() -> None:
    """Let this page be drawn again when the system turns light or dark, and be one step of the browser's history."""
    st.html(_SCRIPT, unsafe_allow_javascript=True)
    st.button("Draw again", key=_TURNED)
