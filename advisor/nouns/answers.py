"""The nouns of a blind test: prompts, the answers of the original and of a plan, votes, and what the votes say."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from advisor.nouns.base import FiniteNoun, Noun, now

MOST_PROMPTS = 500

Variant = Literal["original", "plan"]
Choice = Literal["left", "right", "equal"]
Preferred = Literal["original", "plan", "equal"]
Rater = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]


class AnswersRequest(FiniteNoun):
    """What the original and a stored plan are asked.

    Attributes:
        tokens: the most tokens of one answer.
        temperature: 0 takes the likeliest token every time.
        folder: an export of the plan that answers for it; empty simulates the plan on the model in memory.
    """

    plan_id: str
    prompts: tuple[str, ...] = Field(min_length=1, max_length=MOST_PROMPTS)
    tokens: int = Field(default=128, ge=1, le=4096)
    temperature: float = Field(default=0.0, ge=0, le=2)
    seed: int = Field(default=0, ge=0, lt=2**31)
    folder: str = ""


class Answer(Noun):
    """What one variant of the model says to the prompt of this number.

    Attributes:
        key: a hash of everything that the answer depends on; equal keys need no second generation.
        cut: whether it was cut off at the most tokens.
    """

    number: int
    variant: Variant
    key: str
    text: str
    cut: bool
    seconds: float


class Vote(Noun):
    """What one rater prefers of the pair of this number, and on which side the plan's answer stood."""

    number: int
    rater: Rater
    choice: Choice
    plan_left: bool
    created: datetime = Field(default_factory=now)

    @property
    def preferred(self) -> Preferred:
        if self.choice == "equal":
            return "equal"
        return "plan" if (self.choice == "left") == self.plan_left else "original"


class BlindTest(Noun):
    """Prompts, answers and votes; nobody votes once the result was revealed.

    Attributes:
        shuffle: what the sides are drawn from.
    """

    id: str
    request: AnswersRequest
    shuffle: str
    answers: tuple[Answer, ...] = ()
    votes: tuple[Vote, ...] = ()
    created: datetime
    revealed: datetime | None = None

    @cached_property
    def _by_place(self) -> dict[tuple[int, Variant], Answer]:
        return {(answer.number, answer.variant): answer for answer in self.answers}

    def answer(self, number: int, variant: Variant) -> Answer | None:
        """What this variant says to the prompt of this number, None where it is not generated yet."""
        return self._by_place.get((number, variant))

    @property
    def complete(self) -> bool:
        """Whether both answers to all prompts are there."""
        return len(self.answers) == 2 * len(self.request.prompts)


class BlindTestSummary(Noun):
    """A blind test as lists show it."""

    id: str
    plan_id: str
    model_name: str
    prompts: int
    answers: int
    votes: int
    created: datetime
    revealed: datetime | None


class RaterVotes(Noun):
    """How often one rater preferred what."""

    rater: str
    original: int
    plan: int
    equal: int


class PreferenceResult(FiniteNoun):
    """What the votes say; every pair counts once, for the side that more of its raters preferred.

    Attributes:
        prompts: pairs in all = original + plan + equal + identical + unvoted.
        identical: pairs of equal text, which nobody was asked about; unvoted: those that were asked about in vain.
        p_value: of the exact two-sided sign test over the pairs with a preference.
        share: of the plan among the pairs with a preference, with its 95 % interval; None where there is no such pair.
    """

    prompts: int
    original: int
    plan: int
    equal: int
    identical: int
    unvoted: int
    p_value: float
    share: float | None
    share_low: float | None
    share_high: float | None
    raters: tuple[RaterVotes, ...]

    @property
    def decided(self) -> int:
        """Pairs with a preference."""
        return self.original + self.plan
