"""Blind tests written by hand, in memory and in a database, for the tests of votes and of their page."""

from __future__ import annotations

from datetime import UTC, datetime

from advisor.types import Answer, AnswersRequest, BlindTest, Vote
from storage.repository import Repository

PAIRS = (("yes", "no"), ("same", "same "), ("red", "blue"), ("one", "two"))


def request(plan_id: str, pairs=PAIRS) -> AnswersRequest:
    return AnswersRequest(plan_id=plan_id, prompts=tuple(f"Question {n}?" for n in range(len(pairs))), tokens=32)


def answers(pairs=PAIRS) -> tuple[Answer, ...]:
    """`pairs` are the texts of the original and of the plan."""
    return tuple(
        Answer(number=number, variant=variant, key=f"{number}{variant}{text}", text=text, cut=False, seconds=0.5)
        for number, pair in enumerate(pairs)
        for variant, text in zip(("original", "plan"), pair, strict=True)
    )


def blind_test(pairs=PAIRS, votes=(), shuffle="a") -> BlindTest:
    return BlindTest(
        id="t",
        request=request("p", pairs),
        shuffle=shuffle,
        answers=answers(pairs),
        votes=tuple(votes),
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )


def voted(*preferred: str, rater: str = "ann", first: int = 0) -> list[Vote]:
    """Votes on pairs from `first` on, that prefer `plan`, `original` or neither (`equal`)."""
    choices = {"plan": "left", "original": "right", "equal": "equal"}
    return [
        Vote(number=first + place, rater=rater, choice=choices[name], plan_left=True)
        for place, name in enumerate(preferred)
    ]


def stored(store: Repository, plan_id: str, pairs=PAIRS) -> str:
    """The id of a complete blind test in the database."""
    test_id = store.open_blind_test(request(plan_id, pairs))
    store.save_answers(test_id, answers(pairs))
    return test_id
