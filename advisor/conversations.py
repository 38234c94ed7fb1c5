"""Instructions as calibration text: rows of a file or of Python's reference as conversations, in a model's template."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from itertools import accumulate, dropwhile, groupby
from typing import TYPE_CHECKING, Any

from advisor.errors import TextError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = tuple[tuple[str, str], ...]  # (role, content) of each message

_HEADING = re.compile(r'([^\n]+)\n([*=\-~^"])\2{2,}')
_QUESTIONS = (
    "What is this in Python: {}?",
    "Explain this topic of the Python language: {}.",
    "I am learning Python. What do I need to know about the following? {}",
    "How does this work in Python: {}?",
)
_MORE = "Tell me more about this topic of the Python language, part {}: {}."
_ANSWER_CHARACTERS = 200  # a shorter answer would be mostly template
_SOME_DAY = datetime(2025, 1, 1)


def conversation_of(row: dict[str, Any]) -> Conversation | None:
    """The conversation that a row holds, None where it holds none.

    A row has `messages` (each with `role` and `content`), or `prompt` and `completion`, or `instruction`, `output` and
    perhaps `input`.

    Raises:
        ValueError: it should hold one, but a message is missing or is no text.
    """
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise ValueError("`messages` is no list of messages")
        found = tuple((m.get("role"), m.get("content")) for m in messages)
    elif "prompt" in row and "completion" in row:
        found = (("user", row["prompt"]), ("assistant", row["completion"]))
    elif "instruction" in row and "output" in row:
        asked = [part for part in (row["instruction"], row.get("input")) if part]
        if not all(isinstance(part, str) for part in asked):
            raise ValueError("`instruction` or `input` is no text")
        found = (("user", "\n\n".join(asked)), ("assistant", row["output"]))
    else:
        return None
    if not all(isinstance(role, str) and isinstance(content, str) for role, content in found):
        raise ValueError("a message has no text as its `role` and `content`")
    return found


def first_question(conversation: Conversation) -> str:
    """What is said first, apart from a system message: conversations are told apart by it."""
    return next((content for role, content in conversation if role != "system"), conversation[0][1])


def rendered(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, to_answer: bool = False) -> str:
    """The conversation in the tokenizer's chat template, with its special tokens; without a template, in plain words.

    With `to_answer` it ends where the assistant's next message begins.

    Templates that write today's date are given a fixed one: the same text has the same tokens tomorrow.

    Raises:
        TextError: the template refuses the conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        return "".join(f"{role.capitalize()}: {content.strip()}\n\n" for role, content in conversation)
    from jinja2 import TemplateError

    messages = [{"role": role, "content": content} for role, content in conversation]
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=to_answer, strftime_now=_SOME_DAY.strftime
        )
    except (TemplateError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        roles = ", ".join(role for role, _ in conversation)
        raise TextError(
            f"The model's chat template refuses a conversation of {roles} ({reason}): give conversations that the "
            "model knows, most often user and assistant in turn without a system message."
        ) from error


def python_conversations(documents: Iterable[str], passages: Iterable[str]) -> list[list[Conversation]]:
    """For each passage of Python's reference, questions and answers made of the whole paragraphs that lie in it.

    A question names the heading that its answer stands under. A paragraph that runs from one passage into the next is
    in no answer: what is held out of one is never in the other.

    Args:
        documents: the topics, paragraphs set apart by one empty line.
        passages: those documents, each ended by one line end, joined and cut anywhere.
    """
    ends = list(accumulate(map(len, passages)))
    found: list[list[Conversation]] = [[] for _ in ends]
    parts: Counter[str] = Counter()  # of each heading; no question is asked twice
    for (passage, heading), answer in _answers(documents, ends):
        if len(answer) >= _ANSWER_CHARACTERS:
            subject = heading.replace('"', "").replace("*", "")
            parts[subject] += 1
            first = _QUESTIONS[len(parts) % len(_QUESTIONS)].format(subject)
            question = first if parts[subject] == 1 else _MORE.format(parts[subject], subject)
            found[passage].append((("user", question), ("assistant", answer)))
    return found


def _answers(documents: Iterable[str], ends: list[int]) -> Iterable[tuple[tuple[int, str], str]]:
    """((passage, heading), text) for every run of paragraphs with the same two, from its first prose on."""
    start = 0
    for document in documents:
        placed: list[tuple[tuple[int, str] | None, str]] = []
        heading = ""
        for paragraph in document.rstrip("\n").split("\n\n"):
            end = start + len(paragraph)
            if match := _HEADING.fullmatch(paragraph.strip("\n")):
                heading = match[1]
            elif heading:
                passage = bisect_right(ends, start)
                placed.append(((passage, heading) if end <= ends[passage] else None, paragraph))
            start = end + len("\n\n")
        start -= len("\n")  # documents are joined by one line end, paragraphs by two
        for place, run in groupby(placed, key=lambda item: item[0]):
            paragraphs = list(dropwhile(lambda text: not _prose(text), (paragraph for _, paragraph in run)))
            while paragraphs and paragraphs[-1].endswith(":"):  # what it announces does not follow
                paragraphs.pop()
            if place and paragraphs:
                yield place, "\n\n".join(_one_line(text) if _prose(text) else text for text in paragraphs)


def _prose(paragraph: str) -> bool:
    """Neither a list nor a table nor code."""
    return not any(line[:1] in (" ", "*", "|", "+", "=", "-") for line in paragraph.split("\n"))


def _one_line(paragraph: str) -> str:
    return " ".join(paragraph.split("\n"))  # as models write prose
