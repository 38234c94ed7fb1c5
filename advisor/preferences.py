"""Blind pairs and what votes on them say: who sees what on which side, a sign test, a table to take away. Pure.

Pages draw what `next_pair` returns and hand `vote` a side: which side is the plan's is known in here only.
"""

from __future__ import annotations

import csv
import io
import math
import random
from collections import Counter
from dataclasses import dataclass

from advisor import units
from advisor.types import BlindTest, Choice, PreferenceResult, RaterVotes, Vote

_CONFIDENCE = 0.95
COLUMNS = ("prompt", "original", "plan", "plan_side", "vote", "preferred", "rater", "time")


@dataclass(frozen=True)
class BlindPair:
    """Two answers to a prompt, without a word on whose they are; `cut` ones end where the most tokens were reached."""

    number: int
    prompt: str
    left: str
    right: str
    left_cut: bool
    right_cut: bool


def identical(test: BlindTest) -> list[int]:
    """Numbers of the pairs whose texts are equal: a tie by themselves."""
    return [number for number in range(len(test.request.prompts)) if _same(test, number)]


def asked(test: BlindTest) -> list[int]:
    """Numbers of the pairs that raters are asked about."""
    return [number for number in range(len(test.request.prompts)) if not _same(test, number)]


def next_pair(test: BlindTest, rater: str) -> BlindPair | None:
    """The next pair for this rater to vote on; None after the last one. The test must be complete."""
    voted = {vote.number for vote in test.votes if vote.rater == rater}
    sides = _plan_left(test, rater)
    number = next((number for number in sides if number not in voted), None)
    if number is None:
        return None
    plan, original = test.answer(number, "plan"), test.answer(number, "original")
    left, right = (plan, original) if sides[number] else (original, plan)
    return BlindPair(number, test.request.prompts[number], left.text, right.text, left.cut, right.cut)


def vote(test: BlindTest, rater: str, number: int, choice: Choice) -> Vote:
    """What the rater chose, together with the side on which the plan's answer stood for them."""
    return Vote(number=number, rater=rater, choice=choice, plan_left=_plan_left(test, rater)[number])


def result(test: BlindTest) -> PreferenceResult:
    """What the votes say. A pair counts once: votes of several raters on the same two answers are not independent.

    The sign test leaves out pairs without a preference, and the share's interval is Clopper and Pearson's, which
    excludes one half whenever the test is significant.
    """
    from scipy.stats import binomtest

    verdicts = Counter(_verdict(test, number) for number in asked(test))
    plan, decided = verdicts["plan"], verdicts["plan"] + verdicts["original"]
    tested = binomtest(plan, decided) if decided else None
    interval = tested.proportion_ci(_CONFIDENCE, "exact") if tested else None
    return PreferenceResult(
        prompts=len(test.request.prompts),
        original=verdicts["original"],
        plan=plan,
        equal=verdicts["equal"],
        identical=len(identical(test)),
        unvoted=verdicts["unvoted"],
        p_value=float(tested.pvalue) if tested else 1.0,
        share=plan / decided if decided else None,
        share_low=float(interval.low) if interval else None,
        share_high=float(interval.high) if interval else None,
        raters=tuple(_of_rater(test, rater) for rater in dict.fromkeys(vote.rater for vote in test.votes)),
    )


def significant(found: PreferenceResult) -> bool:
    """Whether the votes tell the two apart at the usual 5 %."""
    return found.p_value < 1 - _CONFIDENCE


def least_decided() -> int:
    """The fewest pairs with a preference that can show anything: 2 x 0.5^n must fall below 5 %."""
    return math.ceil(math.log2(2 / (1 - _CONFIDENCE)))


def sentence(found: PreferenceResult) -> str:
    """What the result means and, where it shows nothing, why that is no proof that there is nothing."""
    if not found.decided:
        said = "No pair has a preference, so there is nothing to test."
        if found.identical == found.prompts:
            return f"{said} All answers are identical."
        return said if found.unvoted else f"{said} Where the answers differ at all, raters found them equally good."
    pairs = f"{found.plan:,} of {found.decided:,} pairs with a preference"
    chance = (
        "If both were equally good, a result at least as one-sided would come up in "
        f"{units.number(100 * found.p_value)} % of such tests (exact two-sided sign test, p = "
        f"{units.number(found.p_value, 2)})"
    )
    if significant(found):
        better = "plan" if found.plan > found.original else "original"
        return (
            f"The plan's answer was preferred in {pairs}. {chance}: on prompts like these, these raters prefer the "
            f"{better}'s answers."
        )
    few = (
        f"fewer than {least_decided()} such pairs cannot show a difference, however they fall"
        if found.decided < least_decided()
        else f"a share of {100 * found.share_low:.0f} % to {100 * found.share_high:.0f} % agrees with these votes"
    )
    return (
        f"The plan's answer was preferred in {pairs}. {chance}: this shows no difference. Nor does it show that there "
        f"is none: {few}."
    )


def to_csv(test: BlindTest) -> str:
    """One row a vote, and one for every pair without any: prompt, both answers, which was which, vote, rater, time."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for number, prompt in enumerate(test.request.prompts):
        answers = [answer.text if answer else "" for answer in (test.answer(number, v) for v in ("original", "plan"))]
        votes = [one for one in test.votes if one.number == number]
        for one in votes:
            side = "left" if one.plan_left else "right"
            moment = one.created.isoformat()
            table.writerow([prompt, *answers, side, one.choice, one.preferred, one.rater, moment])
        if not votes:
            same = _same(test, number)
            table.writerow([prompt, *answers, "", "identical" if same else "", "equal" if same else "", "", ""])
    return text.getvalue()


def _same(test: BlindTest, number: int) -> bool:
    plan, original = test.answer(number, "plan"), test.answer(number, "original")
    return plan is not None and original is not None and plan.text.strip() == original.text.strip()


def _plan_left(test: BlindTest, rater: str) -> dict[int, bool]:
    """Number of a pair -> whether the plan's answer stands on the left for this rater, in this rater's order.

    As many on either side, give or take one: who always prefers one side prefers neither variant.
    """
    chance = random.Random(f"{test.shuffle}/{rater}")
    numbers = asked(test)
    first = chance.random() < 0.5
    sides = [(place % 2 == 0) == first for place in range(len(numbers))]
    chance.shuffle(numbers)
    chance.shuffle(sides)
    return dict(zip(numbers, sides, strict=True))


def _verdict(test: BlindTest, number: int) -> str:
    votes = [one.preferred for one in test.votes if one.number == number]
    lead = votes.count("plan") - votes.count("original")
    return "unvoted" if not votes else "plan" if lead > 0 else "original" if lead < 0 else "equal"


def _of_rater(test: BlindTest, rater: str) -> RaterVotes:
    counts = Counter(vote.preferred for vote in test.votes if vote.rater == rater)
    return RaterVotes(rater=rater, **{name: counts[name] for name in ("original", "plan", "equal")})
