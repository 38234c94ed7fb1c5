"""What the votes of a blind test say, once it is revealed: counts, a sign test, every pair, a table to take away."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from advisor import preferences
from advisor.types import BlindTest, PreferenceResult
from advisor.ui import browser, common, drawing, preference_chart, wording

_SAID = {"plan": "plan", "original": "original", "equal": "about equal"}


def show(test: BlindTest) -> None:
    """The whole result."""
    found = preferences.result(test)
    st.subheader("What raters preferred")
    tone = st.info
    if preferences.significant(found):
        tone = st.success if found.plan > found.original else st.warning
    tone(preferences.sentence(found))
    common.metrics(_numbers(found))
    drawing.chart(
        preference_chart.shares(found, browser.dark()),
        alt=", ".join(f"{name} {count}" for name, count in preference_chart.counts(found).items()),
    )
    st.caption(_means(found))
    if len(found.raters) > 1:
        st.dataframe([_rater_row(one) for one in found.raters], hide_index=True)
        st.caption("Votes of each rater. In the test a pair counts once, for whom more of its raters preferred.")
    widths = {"Prompt": "medium", "Preferred": "small", "Original": "medium", "Plan": "medium"}
    st.dataframe(
        _pairs(test),
        hide_index=True,
        column_config={name: st.column_config.TextColumn(width=width) for name, width in widths.items()},
    )
    st.caption(_asked_how(test))
    st.download_button(
        "Download votes and answers (CSV)",
        preferences.to_csv(test),
        f"blind-test-{test.id}.csv",
        "text/csv",
        icon=":material/download:",
        help="One row a vote: prompt, both answers, which side was the plan's, vote, rater and time.",
    )


def _numbers(found: PreferenceResult) -> list[tuple[str, str, str]]:
    share = "–"
    if found.share is not None:
        share = f"{100 * found.share:.0f} % ({100 * found.share_low:.0f} to {100 * found.share_high:.0f})"
    return [
        ("Plan preferred", str(found.plan), "Pairs of which more raters preferred the plan's answer."),
        ("Original preferred", str(found.original), "Pairs of which more raters preferred the original's answer."),
        ("About equal", str(found.equal), "Pairs that raters found equally good, or disagreed about evenly."),
        ("Identical", str(found.identical), "Both answers are the same text, so nobody was asked."),
        ("Plan's share", share, "Of the pairs with a preference, with its 95 % interval by Clopper and Pearson."),
        ("p, two-sided", wording.number(found.p_value, 2), "Exact sign test over the pairs with a preference."),
    ]


def _means(found: PreferenceResult) -> str:
    parts = []
    if found.unvoted:
        parts.append(f"{wording.plural(found.unvoted, 'pair')} without a vote.")
    parts.append(
        "Pairs without a preference are left out of the test. Few pairs show little: a preference of 60 to 40 is seen "
        "in four of five tests only with about 200 pairs that have one."
    )
    return " ".join(parts)


def _rater_row(one: object) -> dict[str, object]:
    return {
        "Rater": one.rater,
        "Plan preferred": one.plan,
        "Original preferred": one.original,
        "About equal": one.equal,
    }


def _pairs(test: BlindTest) -> pd.DataFrame:
    same = set(preferences.identical(test))
    rows = []
    for number, prompt in enumerate(test.request.prompts):
        votes = [f"{_SAID[vote.preferred]} ({vote.rater})" for vote in test.votes if vote.number == number]
        rows.append(
            {
                "Prompt": prompt,
                "Preferred": "identical" if number in same else ", ".join(votes) or "no vote",
                "Original": test.answer(number, "original").text,
                "Plan": test.answer(number, "plan").text,
            }
        )
    return pd.DataFrame(rows)


def _asked_how(test: BlindTest) -> str:
    request = test.request
    drawn = f"temperature {request.temperature:g}, seed {request.seed}" if request.temperature else "likeliest tokens"
    plan = f"its export in {request.folder}" if request.folder else "the plan simulated in memory"
    return (
        f"Answers of at most {wording.plural(request.tokens, 'token')}, {drawn}; the plan's come from {plan}. Result "
        f"shown {wording.moment(test.revealed)}."
    )
