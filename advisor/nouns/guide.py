"""The nouns of the guide: topics in sections of sourced statements, and the loss that is expected of each family."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from advisor.nouns.base import Noun
from advisor.nouns.knowledge import Sourced


class Statement(Noun):
    """One thing that the guide says, and where that was read.

    Attributes:
        title: what it is about, where the section has several subjects.
        says: one or a few sentences. Numbers stand in it as `{...}` and are taken from the tables as it is read.
        topic: where more is said of it.
    """

    title: str = ""
    says: str = Field(min_length=1)
    topic: str = ""
    source: str = Field(min_length=1)
    checked_on: str = Field(pattern=r"^20\d\d-\d\d$")


class GuideSection(Noun):
    """A part of a topic.

    Attributes:
        figure: what the page draws under the title from the tables; empty for statements alone.
        layout: `steps` numbers the statements, which are taken one after another.
    """

    title: str
    figure: str = ""
    layout: Literal["text", "steps"] = "text"
    statements: tuple[Statement, ...] = Field(min_length=1)


class GuideTopic(Noun):
    """One topic of the guide: a row of `profiles/guide.toml`.

    Attributes:
        question: what it answers.
        page: the page of the product where it is needed.
        numbers: by name, numbers of its statements that no other table has.
    """

    name: str
    label: str
    question: str
    page: str
    numbers: dict[str, Sourced] = {}
    sections: tuple[GuideSection, ...]


class ExpectedLoss(Noun):
    """What the quantization guide expects a format family to lose: a row of `profiles/losses.toml`.

    Attributes:
        least_pct, most_pct: of quality, in percent; None where the guide names no such bound.
    """

    family: str
    label: str
    least_pct: float | None = None
    most_pct: float | None = None
    source: str
    checked_on: str
