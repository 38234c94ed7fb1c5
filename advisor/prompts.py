"""Prompts of a blind test: one a line, and some to begin with where nobody has any of their own."""

from __future__ import annotations

from advisor.errors import TextError
from advisor.types import MOST_PROMPTS

# Short questions with short answers, of the kinds in which a quantized model is seen to slip: facts, sums, exact
# wording, form, code, another language, and text that goes on.
EXAMPLES = (
    "Explain in two sentences why the sky is blue.",
    "What is 17 + 26? Answer with the number only.",
    "List the days of the week in reverse order, separated by commas.",
    "Write a Python function that returns the largest even number in a list, or None.",
    "Name three differences between a list and a tuple in Python.",
    "Translate into French: The train leaves at half past seven tomorrow morning.",
    "Rewrite this sentence more politely: Send me the report now.",
    "A shop sells pens at 3 for 2 euros. What do 12 pens cost? Explain each step.",
    "Which is heavier, a kilogram of iron or a kilogram of feathers, and why?",
    "Give me a recipe for a simple tomato soup, in five short steps.",
    "Summarize in one sentence: Water expands when it freezes, so ice floats on lakes and fish survive below it.",
    "Write the first four sentences of a story about a lighthouse keeper who finds a letter.",
)


def parse(text: str) -> tuple[str, ...]:
    """The prompts in a text, one a line; empty lines and repetitions are left out.

    Raises:
        TextError: there is none, or there are too many.
    """
    found = tuple(dict.fromkeys(line.strip() for line in text.lstrip("\ufeff").splitlines() if line.strip()))
    if not found:
        raise TextError("There is no prompt: write at least one, each on a line of its own.")
    if len(found) > MOST_PROMPTS:
        raise TextError(f"These are {len(found):,} prompts: give at most {MOST_PROMPTS:,}, each on a line of its own.")
    return found


def decoded(content: bytes, name: str) -> str:
    """The text of a file of prompts. Raises TextError where it is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"{name} is not UTF-8 text: save it as such, with one prompt a line.") from error
