"""Voting on blind pairs, one at a time, and asking for the result; nothing in here knows whose answer is whose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import streamlit as st

from advisor import preferences
from advisor.types import BlindTest, Choice
from advisor.ui import common, people, wording

_BUTTONS: tuple[tuple[Choice, str, str], ...] = (
    ("left", "Left is better", "Left"),
    ("equal", "About equal", "Down"),
    ("right", "Right is better", "Right"),
)


def show(test: BlindTest) -> None:
    """The next pair of the rater, or the way to the result after the last one."""
    asked = preferences.asked(test)
    if not asked:
        st.info(f"All {wording.plural(len(test.request.prompts), 'pair')} of answers are identical: nothing to ask.")
        _reveal(test, "Show the result")
        return
    name, said, undo = st.columns([2, 5, 2], vertical_alignment="bottom")
    with name:
        rater = _rater()
    if not rater:
        _nameless(test, len(asked))
        return
    pair = preferences.next_pair(test, rater)
    done = len([vote for vote in test.votes if vote.rater == rater])
    said.progress(done / len(asked), text=_progress_text(test, done, len(asked)))
    if undo.button(
        "Undo last vote",
        icon=":material/undo:",
        shortcut="U",
        disabled=not done,
        width="stretch",
        key="undo",
        help="Takes your last vote back and shows its pair again.",
    ):
        common.store().withdraw_vote(test.id, rater)
        st.rerun()
    if pair is None:
        _after_the_last(test, rater)
        return
    _pair(test, rater, pair)
    _early(test, f"You have voted on {done} of {wording.plural(len(asked), 'pair')}.")


def _rater() -> str:
    name = st.text_input(
        "You vote as",
        people.signed_in(),
        max_chars=100,
        placeholder="your name",
        key="rater",
        persist_state="session",
        help="Several people can vote on the same pairs, each under a name of their own and each with sides of their "
        "own. Nobody sees how others voted before the result is shown.",
    )
    return (name or "").strip()


def _nameless(test: BlindTest, asked: int) -> None:
    """Before somebody says who they are: why to, who voted so far, and the way to end it; nothing to vote on."""
    st.info(
        "Say who you are to see a pair of answers. The same name goes on where it stopped, also after a reload or in "
        "another browser."
    )
    so_far = _counts(test, dict.fromkeys(vote.rater for vote in test.votes), asked)
    st.caption(f"Voted so far: {so_far} pairs." if so_far else "Nobody has voted so far.")
    _early(test, f"Not everybody may have voted on all {wording.plural(asked, 'pair')}.")


def _progress_text(test: BlindTest, done: int, asked: int) -> str:
    same = len(preferences.identical(test))
    left_out = f" · {wording.plural(same, 'identical pair')} left out" if same else ""
    return f"{f'Pair {done + 1} of {asked:,}' if done < asked else f'{done:,} of {asked:,} voted on'}{left_out}"


def _pair(test: BlindTest, rater: str, pair: preferences.BlindPair) -> None:
    with st.container(border=True):
        st.caption("Prompt")
        st.text(pair.prompt)
    sides = st.columns(2)
    for column, name, text, cut in (
        (sides[0], "Left", pair.left, pair.left_cut),
        (sides[1], "Right", pair.right, pair.right_cut),
    ):
        with column.container(border=True, height="stretch"):
            st.caption(f"**{name}**")
            st.text(text or "(no answer)")
            if cut:
                st.caption(f"Cut off at {wording.plural(test.request.tokens, 'token')}")
    for column, (choice, label, key) in zip(st.columns(3), _BUTTONS, strict=True):
        # The pair's number in the key: a second click that comes late finds no button, and votes for no other pair.
        if column.button(label, key=f"vote_{choice}_{pair.number}", shortcut=key, width="stretch"):
            common.store().save_vote(test.id, preferences.vote(test, rater, pair.number, choice))
            st.rerun()


def _early(test: BlindTest, missing: str) -> None:
    with st.expander("Show the result now", icon=":material/visibility:"):
        st.warning(
            f"{missing} The result names the sides, and from then on nobody can vote on these pairs any more. It "
            "cannot be undone."
        )
        _reveal(test, "End the voting and show the result", disabled=not test.votes)


def _after_the_last(test: BlindTest, rater: str) -> None:
    asked, others = len(preferences.asked(test)), dict.fromkeys(v.rater for v in test.votes if v.rater != rater)
    counts = _counts(test, others, asked)
    with st.container(border=True):
        st.markdown(
            f"**{wording.verbatim(rater)}, you have voted on every pair.**" + (f" Others: {counts}." if counts else "")
        )
        st.caption(
            "The result names the sides and ends the voting for everybody. If others should vote too, let them do so "
            "first: they write their own name above."
        )
        _reveal(test, "Show the result")


def _counts(test: BlindTest, raters: Iterable[str], asked: int) -> str:
    """How far these are: `ann 3 of 3, bob 1 of 3`; empty where there are none."""
    votes = Counter(vote.rater for vote in test.votes)
    return ", ".join(f"{wording.verbatim(name)} {votes[name]:,} of {asked:,}" for name in raters)


def _reveal(test: BlindTest, label: str, disabled: bool = False) -> None:
    if st.button(label, type="primary", icon=":material/visibility:", disabled=disabled, key="reveal"):
        common.store().reveal(test.id)
        st.rerun()
