"""What every page shares: the store, the guard against tracebacks, links between pages and choices kept in the link."""

from __future__ import annotations

import functools
import gc
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import streamlit as st
from altair.utils import schemapi

from advisor import knowledge, pipeline, texts
from advisor.errors import AdvisorError
from advisor.types import (
    Catalogue,
    ProfileSummary,
    SensitivityProfile,
)
from advisor.ui import browser, fields, linked, people, wording
from storage.repository import Repository

logger = logging.getLogger(__name__)
P = ParamSpec("P")

# Paths as st.navigation knows them, relative to app.py.
PAGES = {
    name: f"advisor/ui/{name}.py" for name in ("model", "sensitivity", "plan", "apply", "blind", "history", "guide")
}

OWN_TEXT = "own"
LONGEST_NAME = 200
NOT_STORED = "is no longer stored"
UNEXPECTED = "Something went wrong here and was written to the server's log; reload the page to try again."


def guarded(body: Callable[P, None]) -> Callable[P, None]:
    """A page or fragment that answers a refusal with its sentence and anything unexpected with a short one."""

    @functools.wraps(body)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            # Altair would validate every part of a chart as it is made; the tests of charts do that once for all.
            with schemapi.debug_mode(False):
                body(*args, **kwargs)
            linked.drawn()
        except AdvisorError as refusal:
            refuse(refusal)
        except Exception:
            logger.exception("page %s", body.__module__)
            st.error(UNEXPECTED)

    return wrapper


def refuse(refusal: AdvisorError) -> None:
    """What is not possible, in the words of the page."""
    st.error(wording.labelled(str(refusal)))


def store() -> Repository:
    """The repository, opened once per process and place."""
    place = (os.environ.get("ADVISOR_DATABASE_URL", ""), str(pipeline.data_dir()))
    return _store(place)


@st.cache_resource(show_spinner=False)
def _store(place: tuple[str, str]) -> Repository:
    return pipeline.open_store()


def load_profile(summary: ProfileSummary) -> SensitivityProfile | None:
    """The sensitivity profile, read again only when its scores have changed."""
    return _load_profile(store().url, summary.scores_key)


@st.cache_resource(show_spinner=False, max_entries=8)
def _load_profile(url: str, scores_key: tuple[str, int, int, int]) -> SensitivityProfile | None:
    found = store().profile(scores_key[0])
    _settle()
    return found


@st.cache_resource(show_spinner=False)
def _settle() -> None:
    """Look for garbage less often: otherwise that takes a tenth of every answer, and a third of one now and then."""
    gc.freeze()  # libraries and scores stay as long as the process
    gc.set_threshold(20_000, 20, 20)


def page_head(title: str) -> None:
    """The page's title, and style that the theme leaves out: small gaps, whole numbers, where the keyboard is."""
    st.html(
        "<style>.stMainBlockContainer {padding-top: 4.25rem; padding-bottom: 3rem}"
        # Where it is narrow, numbers are scrolled to rather than broken.
        " [class*=st-key-numbers] :is(td, td *) {white-space: nowrap !important}"
        " .stMarkdown table {display: block; overflow-x: auto}"
        # Sentences that end a row keep a width to be read in.
        " [class*=st-key-why] td:last-child {min-width: 14rem}"
        # Tabs stand in several rows there: what is beyond the edge is not looked for.
        " [role=tablist] {flex-wrap: wrap; row-gap: 0}"
        # Links that the keyboard reached look like the others without.
        " a:focus-visible {outline: 2px solid currentColor !important; outline-offset: 1px}</style>"
    )
    linked.begin()
    browser.prepare()
    people.sign_in()
    st.title(title)


def go(page: str, **query: str) -> None:
    """Leave for another page, its choices in the link."""
    st.switch_page(PAGES[page], query_params=_with_tour(query))


def link(page: str, label: str, icon: str | None = None, **query: str) -> None:
    """A link to another page, its choices in the link."""
    st.page_link(PAGES[page], label=label, icon=icon, query_params=_with_tour(query) or None)


def _with_tour(query: Mapping[str, str]) -> dict[str, str]:
    """A guided tour goes on wherever the page's own buttons and links lead."""
    stop = st.query_params.get("tour")
    return dict(query) if stop is None else {"tour": stop, **query}


def guide_link(*topics: str, **query: str) -> None:
    """Links to what the guide says of these topics, side by side."""
    with st.container(horizontal=True, gap="small"):
        for topic in topics:
            label = f"Guide: {knowledge.guide()[topic].label.lower()}"
            link("guide", label, ":material/menu_book:", topic=topic, **query)


def empty_state(sentence: str, page: str, label: str, **query: str) -> None:
    """What a page shows while it has nothing to show: why, and the way to change that."""
    with st.container(border=True):
        st.markdown(sentence)
        link(page, label, icon=":material/arrow_forward:", **query)


def choose(
    key: str,
    label: str,
    options: Mapping[str, str],
    help: str,
    default: str | None = None,
    widget: Callable[..., object] | None = None,
    missing: str = linked.NO_CHOICE,
    **more: Any,
) -> str:
    """A choice (id -> label) that lives in the link as `?key=id`; `default` is the first option.

    The link is the truth: it is read before the widget is drawn and written when another is chosen, so that a link sent
    to somebody else shows the same thing, or says that it cannot. (Streamlit's own binding would write labels, which
    may change, into links.)

    Args:
        widget: what to draw it with, `st.selectbox` by default; it takes what that takes.
        missing: said of what a link asks for and is none of the options.
    """
    asked, held = st.query_params.get(key), st.session_state.get(f"last_{key}")
    wanted = asked or held
    value = wanted if wanted in options else default if default in options else next(iter(options))
    name = f"choose_{key}"
    st.session_state[name] = value
    draw = widget or st.selectbox
    draw(
        label,
        list(options),
        format_func=lambda option: options.get(option, option),
        key=name,
        help=help,
        on_change=lambda: set_choice(key, st.session_state[name]),
        **more,
    )
    # What this session chose was an option then: another choice of the reader's took it away, which needs no words.
    if asked and asked not in options and asked != held:
        linked.refused(label, [asked], [options[value]], missing)
    st.session_state[f"last_{key}"] = value
    if value or asked:
        linked.write_later(key, value)
    return value


def set_choice(key: str, value: str | None) -> None:
    """Choose for the reader: the next `choose(key, ...)` of this session takes `value`."""
    st.session_state[f"last_{key}"] = value
    if value is not None and value != st.query_params.get(key, ""):
        linked.write(key, value)


def choose_several(
    key: str, label: str, options: Mapping[str, str], help: str, default: Sequence[str]
) -> tuple[str, ...]:
    """Choices (id -> label) that live in the link as `?key=id&key=id`, none as `?key=`; what `choose` is for one."""
    asked, held = st.query_params.get_all(key), st.session_state.get(f"last_{key}", default)
    name = f"choose_{key}"
    st.session_state[name] = [one for one in asked or held if one in options]
    chosen = st.multiselect(
        label,
        list(options),
        format_func=lambda option: options.get(option, option),
        key=name,
        help=help,
        on_change=lambda: set_choices(key, st.session_state[name]),
    )
    unknown = [one for one in asked if one and one not in options and one not in held]
    linked.refused(label, unknown, [options[one] for one in chosen])
    st.session_state[f"last_{key}"] = list(chosen)
    linked.write_later(key, list(chosen) or "")
    return tuple(chosen)


def set_choices(key: str, values: Sequence[str]) -> None:
    """Choose for the reader: the next `choose_several(key, ...)` of this session takes `values`."""
    st.session_state[f"last_{key}"] = list(values)
    linked.write(key, list(values) or "")


def choose_stored(key: str, label: str, options: Mapping[str, str], help: str, default: str | None = None) -> str:
    """Like `choose`, among stored things, which somebody may delete while they are shown."""
    if st.session_state.get(f"last_{key}") not in options:
        st.session_state.pop(f"last_{key}", None)
    return choose(key, label, options, help, default, missing=NOT_STORED)


def choose_text(label: str, help: str, evaluation: bool = False, key: str = "text", own: str = "") -> str:
    """A built-in text or the path of a file, empty while no path is given; lives in the link as `key` and its path.

    Random tokens judge no model: they are no evaluation text, and the last of the calibration texts.

    Args:
        own: label of a first choice, `OWN_TEXT`, that there is instead of all these.
    """
    options = {OWN_TEXT: own} if own else {}
    options |= {name: f"{name} · {said}" for name, said in texts.BUILT_IN.items() if name != "random"}
    options["file"] = "A file of mine, or a mix of texts"
    if not evaluation:
        options["random"] = f"random · {texts.BUILT_IN['random']}"
    choice = choose(key, label, options, help)
    if choice != "file":
        return choice
    path = st.text_input(
        f"Path of the {label.lower()}",
        placeholder="/data/support-tickets.jsonl, python-docs+wikitext2",
        help="A .txt, .jsonl or .parquet file on the machine that runs this page. Conversations in a .jsonl "
        "(`messages`, `prompt` and `completion`, or `instruction` and `output` in every line) are written in the "
        "model's chat template. Several texts joined by `+` give equal shares.",
        **setting("path" if key == "text" else f"{key}_path"),
    )
    return (path or "").strip()


def choose_profile(for_plans: bool = False) -> tuple[ProfileSummary, SensitivityProfile] | None:
    """The stored sensitivity profile to look at; draws the empty state and returns None where there is none.

    Args:
        for_plans: leave out profiles measured around a plan, from which none can be made.
    """
    summaries = {summary.id: summary for summary in store().profiles()}
    if for_plans:
        wanted = summaries.get(st.query_params.get("profile", ""))
        if wanted is not None and wanted.around:
            del st.query_params["profile"]
            st.info(
                "No plan is made from the profile of this link: it was measured around a plan and says what giving a "
                "layer back wins, not what quantizing it alone costs."
            )
        summaries = {identifier: summary for identifier, summary in summaries.items() if not summary.around}
    if not summaries:
        if asked := st.query_params.get("profile"):
            linked.refused("Sensitivity profile", [asked], [], NOT_STORED)
        running = next((job for job in store().jobs(active_only=True) if job.kind == "profile"), None)
        if running is not None:
            empty_state(
                "**Being measured.** Open this page again when the first scores are there.",
                "model",
                "See its progress",
                job=running.id,
            )
            return None
        empty_state(
            "**No sensitivity profile yet.** Measure a model first; the demo model takes a minute or two.",
            "model",
            "Profile a model",
        )
        return None
    labels = {identifier: wording.profile_label(summary) for identifier, summary in summaries.items()}
    summary = summaries[
        choose_stored(
            "profile",
            "Sensitivity profile",
            labels,
            "Measured once and stored; plans are made from it as often as you like.",
            default=next((summary.id for summary in summaries.values() if summary.measured), None),
        )
    ]
    profile = load_profile(summary)
    if profile is None:
        st.info("This sensitivity profile was deleted meanwhile; reload the page to choose another.")
        return None
    return summary, profile


def metrics(values: Sequence[tuple[str, str, str]]) -> None:
    """A row of headline numbers, two where it is narrow: (label, value, help)."""
    with st.container(horizontal=True, gap="medium"):
        for label, value, explanation in values:
            st.metric(label, value, help=explanation or None, width="content")


def sequence_length(column: Any, key: str, catalogue: Catalogue | None) -> int:
    """A field for tokens per sequence in the link as `key`, no longer than the model's context where that is known."""
    longest = min(32768, catalogue.max_context) if catalogue else 32768
    longest = max(8, longest)
    fields.keep_within(key, 8, longest)
    return fields.number(
        key,
        column.number_input,
        "Sequence length (tokens)",
        8,
        longest,
        min(256, longest),
        help=f"Tokens per sequence, {longest:,} at most" + (", the model's context." if catalogue else "."),
    )


def setting(name: str, **defaults: Any) -> dict[str, Any]:
    """Arguments of a widget whose value lives in the link under `name`."""
    return {"key": name, "bind": "query-params", **defaults}
