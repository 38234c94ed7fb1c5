"""Links that lead to a place of a page (`?at=place`), not to its top."""

from __future__ import annotations

import streamlit as st


def asked_for(place: str) -> bool:
    """Whether the link leads to this place of the page (`?at=place`); said once, so that a reader may scroll away."""
    if st.query_params.get("at") != place:
        return False
    del st.query_params["at"]
    return True


def scroll_to(key: str) -> None:
    """Scroll to the container of this key, and again while charts above it take their room, until the reader moves."""
    script = f"""{{
    const go = () => {{
        const place = document.querySelector(".st-key-{key}");
        if (!place) return;
        place.style.scrollMarginTop = "4.5rem";  // the header stays above what scrolls
        place.scrollIntoView({{block: "start"}});
    }};
    const watch = new ResizeObserver(go);
    watch.observe(document.querySelector("[data-testid=stMainBlockContainer]"));
    const stop = () => watch.disconnect();
    setTimeout(stop, 10000);
    for (const kind of ["wheel", "keydown", "pointerdown", "touchstart"])
        addEventListener(kind, stop, {{once: true, capture: true}});
    }}"""
    st.html(f"<script>{script}</script>", unsafe_allow_javascript=True)
