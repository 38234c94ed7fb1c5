"""Calibration and evaluation text as token windows; the two never share a passage."""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from advisor.conversations import first_question, python_conversations, rendered
from advisor.errors import TextError
from advisor.paths import absolute
from advisor.text_sources import HUB_TEXTS, READERS, Document, Purpose, file_documents, hub_documents, python_documents
from advisor.types import Method

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

BUILT_IN = {
    "python-docs": "Python's reference prose, in every CPython: no download (465 KB)",
    "python-chat": "The same prose as questions and answers in the model's chat template: no download",
    "mix": "Half python-docs, half python-chat, documents and instructions: no download",
    "wikitext2": "WikiText-2 from the hub: train split for calibration, test split for evaluation",
    "c4": "C4 English from the hub: train split for calibration, validation split for evaluation",
    "ultrachat": "UltraChat conversations from the hub, in the model's chat template: train and test splits",
    "random": "Random tokens: a bad example, to see what useless calibration text does; not for evaluation",
}
_MIXES = {"mix": ("python-docs", "python-chat")}
_FROM_PYTHON = ("python-docs", "python-chat")  # made of the same documents: in a mix they take passages in turn
_PASSAGE_CHARACTERS = 2_000
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_EVALUATION_EVERY = 4  # every fourth passage is held out for evaluation


def check_source(source: str, purpose: Purpose = "calibration") -> str:
    """Say early, before any model is loaded, that `source` cannot be read.

    Args:
        source: a built-in name, the path of a file, or several of them joined by `+`.

    Returns:
        The same with built-in names as they are and files by their absolute paths.

    Raises:
        TextError: a part is no built-in name and no readable .txt, .jsonl or .parquet file, is named twice, or is no
            text to evaluate on.
    """
    parts = _parts(source)
    if purpose == "evaluation" and "random" in parts:
        raise TextError(
            "`random` is noise, on which no model can be judged: evaluate on `python-docs` or your own text."
        )
    return source if source in BUILT_IN else "+".join(parts)


def check_readable(source: str, purpose: Purpose = "calibration") -> None:
    """What `check_source` says, and that the files in `source` can be read as text: before any model is loaded.

    Raises TextError.
    """
    for part in _parts(check_source(source, purpose)):
        if part not in BUILT_IN:
            file_documents(Path(part))


def default_samples(method: Method, device: str) -> int:
    """Sequences where a request names no number: few on a CPU, where minutes count, more on an accelerator."""
    if device != "cpu":
        return 128
    return 8 if method == "exact" else 16


def token_windows(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    purpose: Purpose,
    windows: int,
    length: int,
    seed: int = 0,
    stride: int | None = None,
) -> torch.Tensor:
    """`(windows, length)` token ids, int64, each window a run of consecutive tokens that no other window shares.

    With a `stride` windows of one running text overlap: each begins `stride` tokens after the one before it.

    Calibration takes passages in an order shuffled by `seed`; evaluation takes them in their own order and gives fewer
    windows when the held-out text ends earlier. Where a model's tokenizer starts text with a BOS token, every window
    starts with it. The parts of a mix take turns, window by window: the first windows of a mix are a mix.

    Raises:
        TextError: the source cannot be read, has too little text, or cannot be read with this stride.
    """
    import torch

    parts = _parts(check_source(source, purpose))
    check_stride(source, stride, length)
    shares = [windows // len(parts) + (i < windows % len(parts)) for i in range(len(parts))]
    found = []
    for part, share in zip(parts, shares, strict=True):
        if share == 0:
            continue
        if part == "random":
            found.append(_random_windows(tokenizer, share, length, seed))
        else:
            passages = _passages(part, purpose, parts)
            found.append(_windows(part, passages, tokenizer, purpose, share, length, seed, stride))
    return torch.tensor(list(_in_turn(found)))


def check_stride(source: str, stride: int | None, length: int) -> None:
    """Refuse overlapping windows of a mix, or with a stride that leaves tokens out; raises TextError."""
    if stride is None:
        return
    if stride >= length:
        raise TextError(
            f"A stride of {stride} leaves out tokens of windows of {length}: give one below {length}, half of it is "
            "usual."
        )
    if len(_parts(source)) > 1:
        raise TextError(f"{source} is several texts, and windows overlap in one running text: name one of them.")


def check_vocabulary(windows: torch.Tensor, vocabulary: int) -> None:
    """Refuse tokens that the model has no embedding for; raises TextError."""
    largest = int(windows.max())
    if largest >= vocabulary:
        raise TextError(
            f"The tokenizer gives token {largest}, the model knows {vocabulary}: use the tokenizer that belongs to it."
        )


def text_sha256(windows: torch.Tensor) -> str:
    """Identifies exactly which tokens a measurement saw."""
    return hashlib.sha256(windows.cpu().numpy().tobytes()).hexdigest()[:16]


def _parts(source: str) -> list[str]:
    """The texts that `source` joins by `+`: built-in names and absolute paths. Raises TextError."""
    pieces = source.split("+")
    parts: list[str] = []
    while pieces:
        # The longest run of pieces that names something: a path may hold a `+` of its own.
        length = next((n for n in range(len(pieces), 0, -1) if _found("+".join(pieces[:n]))), 1)
        part = _checked("+".join(pieces[:length]))
        parts += _MIXES.get(part, (part,))
        pieces = pieces[length:]
    if len({os.path.realpath(part) for part in parts}) < len(parts):
        raise TextError(f"{source} holds a text twice: name every text once.")
    return parts


def _found(name: str) -> str | None:
    """The built-in name or the absolute path of the file that `name` is, spaces around it left out where need be."""
    for candidate in (name, name.strip()):
        path = absolute(candidate)
        if candidate in BUILT_IN or (path is not None and path.is_file()):
            return candidate if candidate in BUILT_IN else str(path)
    return None


def _checked(name: str) -> str:
    found = _found(name)
    if found is None:
        raise TextError(
            f"There is no text {name!r}: give {', '.join(BUILT_IN)}, a .txt, .jsonl or .parquet file, or several "
            "joined by `+`."
        )
    if found not in BUILT_IN and Path(found).suffix.lower() not in READERS:
        raise TextError(f"{Path(found).name} is not text that can be read here: give a .txt, .jsonl or .parquet file.")
    return found


def _windows(
    part: str,
    passages: list[Document],
    tokenizer: PreTrainedTokenizerBase,
    purpose: Purpose,
    windows: int,
    length: int,
    seed: int,
    stride: int | None,
) -> list[list[int]]:
    if purpose == "calibration":
        random.Random(seed).shuffle(passages)
    start = _start_tokens(tokenizer)
    body = length - len(start)
    step = stride or body
    tokens: list[int] = []
    for passage in passages:
        tokens += _tokens(passage, tokenizer, start)
        if len(tokens) >= (windows - 1) * step + body:
            break
    if passages and not tokens:
        raise TextError("The tokenizer makes no tokens of text: put the model's own tokenizer files into its folder.")
    found = min(windows, (len(tokens) - body) // step + 1) if len(tokens) >= body else 0
    if found == 0 or (purpose == "calibration" and found < windows):
        raise TextError(
            f"{part} has too little {purpose} text: {len(tokens):,} tokens where {windows} x {length} are needed. "
            "Use fewer or shorter samples, or a longer text (a quarter of every text is held out for evaluation)."
        )
    return [start + tokens[i * step : i * step + body] for i in range(found)]


def _tokens(passage: Document, tokenizer: PreTrainedTokenizerBase, start: list[int]) -> list[int]:
    if isinstance(passage, str):
        return tokenizer(passage, add_special_tokens=False).input_ids
    tokens = tokenizer(rendered(passage, tokenizer), add_special_tokens=False).input_ids
    # Many templates write the BOS token, which every window has already.
    return tokens[len(start) :] if tokens[: len(start)] == start else tokens


def _random_windows(tokenizer: PreTrainedTokenizerBase, windows: int, length: int, seed: int) -> list[list[int]]:
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    ordinary = sorted(set(tokenizer.get_vocab().values()) - special - set(tokenizer.all_special_ids))
    start = _start_tokens(tokenizer)
    draw = random.Random(seed)
    return [start + draw.choices(ordinary, k=length - len(start)) for _ in range(windows)]


def _in_turn(parts: list[list[list[int]]]) -> Iterator[list[int]]:
    """The first window of every part, the second of every part, ... up to the first one that is not there."""
    for turn in range(max(map(len, parts))):
        for part in parts:
            if turn >= len(part):
                return
            yield part[turn]


def _start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = tokenizer("a").input_ids
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def _passages(part: str, purpose: Purpose, parts: Iterable[str]) -> list[Document]:
    """The passages and conversations of `part` for this purpose, less those that other `parts` take."""
    if part in HUB_TEXTS:  # these bring splits of their own
        return list(_split(hub_documents(part, purpose)))
    documents = list(_without_repeats(python_documents() if part in _FROM_PYTHON else file_documents(Path(part))))
    passages = list(_split(documents))
    contents = python_conversations(documents, passages) if part == "python-chat" else [[p] for p in passages]
    held_out = set(range(_EVALUATION_EVERY - 1, len(passages), _EVALUATION_EVERY))
    found = [content for i, content in enumerate(contents) if (i in held_out) == (purpose == "evaluation")]
    sharing = [other for other in parts if other in _FROM_PYTHON] if part in _FROM_PYTHON else [part]
    return [p for content in found[sharing.index(part) :: len(sharing)] for p in content]


def _without_repeats(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents without paragraphs that stood earlier: a repeated one would stand on both sides of the split.

    Where a document has no blank lines, its lines are its paragraphs. A conversation is left out when its first
    question was asked earlier: files often hold a conversation once for each of its turns, or with several answers.
    """
    seen: set[str] = set()
    for document in documents:
        if not isinstance(document, str):
            question = " ".join(first_question(document).split())
            if question not in seen:
                seen.add(question)
                yield document
            continue
        kept = []
        paragraphs = _PARAGRAPH_END.split(document.strip())
        for paragraph in paragraphs if len(paragraphs) > 1 else document.split("\n"):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                kept.append(paragraph)
        if kept:
            yield ("\n\n" if len(paragraphs) > 1 else "\n").join(kept)


def _split(documents: Iterable[Document]) -> Iterator[Document]:
    """Passages of about 2,000 characters, cut at line ends; short documents are joined, endless lines are cut.

    A conversation is a passage of its own.
    """
    passage = ""
    for document in documents:
        if not isinstance(document, str):
            yield document
            continue
        for line in (document.rstrip("\n") + "\n").splitlines(keepends=True):
            for start in range(0, len(line), _PASSAGE_CHARACTERS):
                passage += line[start : start + _PASSAGE_CHARACTERS]
                if len(passage) >= _PASSAGE_CHARACTERS:
                    yield passage
                    passage = ""
    if passage.strip():
        yield passage
