"""Page 7: the guide, topic by topic, each with an address of its own and drawn from the tables that rules read."""

from __future__ import annotations

import streamlit as st

from advisor import guide, knowledge
from advisor.types import GuideSection, GuideTopic, Statement
from advisor.ui import common, tour
from advisor.ui.guide_figures import FIGURES

_FIND = "guide_find"
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_WHO = (
    "*The guide says* is the word of the quantization guide that this product began with; all else has sources of its "
    "own. Numbers are read from the tables that rules and planner read."
)
_PAGES = {
    "model": ("Choose the text on the model page", ":material/deployed_code:"),
    "sensitivity": ("See what was measured", ":material/grid_on:"),
    "plan": ("Plan with it", ":material/balance:"),
    "apply": ("Apply and evaluate", ":material/verified:"),
}


@common.guarded
def render() -> None:
    """The whole page."""
    common.page_head("Guide")
    tour.panel("guide")
    topics = guide.topics()
    name = common.choose(
        "topic",
        "Topic",
        {name: topic.label for name, topic in topics.items()},
        "Each has an address of its own: copy the link to share it. With the keyboard: Tab to a topic, Enter to read.",
        widget=st.pills,
        required=True,
    )
    st.query_params["topic"] = name  # a link from a page to itself leaves the browser's address as it was
    _find()
    _from_the_top(name)
    topic = topics[name]
    st.markdown(f"*{topic.question}*")
    st.caption(_WHO)
    for section in topic.sections:
        _section(section)
    _way_on(topic)


def _from_the_top(name: str) -> None:
    """Scroll up when another topic is opened: the link to it may have stood at the end of the last one."""
    if st.session_state.setdefault("guide_read", name) != name:
        # The name is in it so that the browser runs it again for the next topic.
        script = f"document.querySelector('[data-testid=stMain]').scrollTo(0, 0) // {name}"
        st.html(f"<script>{script}</script>", unsafe_allow_javascript=True)
    st.session_state["guide_read"] = name


def _find() -> None:
    """A field that finds sections, formats, methods, roles and devices as one types."""
    found = {entry.label: entry.query for entry in guide.entries()}
    st.selectbox(
        "Find",
        list(found),
        index=None,
        key=_FIND,
        width=520,
        placeholder="Type a format, method, role, device or question",
        on_change=_go,
        args=(found,),
        help="Goes to where the guide speaks of it. Type a part of its name, move with the arrows, and press Enter.",
    )


def _go(found: dict[str, dict[str, str]]) -> None:
    for key, value in found.get(st.session_state[_FIND], {}).items():
        common.set_choice(key, value)
    st.session_state[_FIND] = None


def _section(section: GuideSection) -> None:
    st.subheader(section.title)
    sources = list(dict.fromkeys(_source(one) for one in section.statements))
    marks = {source: str(number).translate(_SUPERSCRIPTS) for number, source in enumerate(sources, 1)}
    paragraphs = [one for one in section.statements if not one.title]
    titled = [one for one in section.statements if one.title]
    for one in paragraphs:
        st.markdown(f"{one.says} {marks[_source(one)]}")
    if section.figure:
        FIGURES[section.figure]()
    if section.layout == "steps":
        for number, one in enumerate(titled, 1):
            _step(number, one, marks[_source(one)])
    else:
        columns = st.columns(2) if titled else ()
        for place, one in enumerate(titled):
            with columns[place % 2].container(border=True, gap="small"):
                st.markdown(f"**{one.title}**  \n{one.says} {marks[_source(one)]}")
                _more(one.topic)
    with st.container(horizontal=True):
        for topic in dict.fromkeys(one.topic for one in paragraphs):
            _more(topic)
    st.caption("Sources: " + "; ".join(f"{mark} {source}" for source, mark in marks.items()) + ".")


def _step(number: int, one: Statement, mark: str) -> None:
    with st.container(border=True):
        said, more = st.columns([5, 1], vertical_alignment="center")
        said.markdown(f"**{number}. {one.title}**  \n{one.says} {mark}")
        with more:
            _more(one.topic)


def _more(topic: str) -> None:
    if topic:
        common.link("guide", f"More: {knowledge.guide()[topic].label}", ":material/menu_book:", topic=topic)


def _source(one: Statement) -> str:
    return f"{one.source} ({one.checked_on})"


def _way_on(topic: GuideTopic) -> None:
    st.divider()
    label, icon = _PAGES[topic.page]
    common.link(topic.page, label, icon)


if __name__ == "__main__":
    render()
