"""Calibration and evaluation text as token windows; the two never share a passage."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from advisor.errors import TextError
from advisor.paths import absolute

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Purpose = Literal["calibration", "evaluation"]

BUILT_IN = {
    "python-docs": "Python's reference prose, in every CPython: no download (465 KB)",
    "wikitext2": "WikiText-2 from the hub: train split for calibration, test split for evaluation",
    "c4": "C4 English from the hub: train split for calibration, validation split for evaluation",
}
_HUB_TEXTS = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", {"calibration": "train", "evaluation": "test"}),
    "c4": ("allenai/c4", "en", {"calibration": "train", "evaluation": "validation"}),
}
_HUB_CHARACTERS = 20_000_000  # enough for 1,000 windows of 4,096 tokens; C4 is streamed and would never end
_PASSAGE_CHARACTERS = 2_000
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_EVALUATION_EVERY = 4  # every fourth passage is held out for evaluation


def check_source(source: str) -> str:
    """Say early, before any model is loaded, that `source` cannot be read.

    Returns:
        The built-in name, or the file's absolute path.

    Raises:
        TextError: it is no built-in name and no readable .txt, .jsonl or .parquet file.
    """
    if source in BUILT_IN:
        return source
    path = absolute(source)
    if path is None or not path.is_file():
        raise TextError(f"There is no text {source!r}: give {', '.join(BUILT_IN)}, or a .txt, .jsonl or .parquet file.")
    if path.suffix.lower() not in _READERS:
        raise TextError(f"{path.name} is not text that can be read here: give a .txt, .jsonl or .parquet file.")
    return str(path)


def token_windows(
    source: str, tokenizer: PreTrainedTokenizerBase, purpose: Purpose, windows: int, length: int, seed: int = 0
) -> torch.Tensor:
    """`(windows, length)` token ids, int64, each window a run of consecutive tokens that no other window shares.

    Calibration takes passages in an order shuffled by `seed`; evaluation takes them in their own order and gives fewer
    windows when the held-out text ends earlier. Where a model's tokenizer starts text with a BOS token, every window
    starts with it.

    Raises:
        TextError: the source cannot be read, or has too little text.
    """
    import torch

    passages = _passages(source, purpose)
    if purpose == "calibration":
        random.Random(seed).shuffle(passages)
    start = _start_tokens(tokenizer)
    body = length - len(start)
    tokens: list[int] = []
    for passage in passages:
        tokens += tokenizer(passage, add_special_tokens=False).input_ids
        if len(tokens) >= windows * body:
            break
    if passages and not tokens:
        raise TextError("The tokenizer makes no tokens of text: put the model's own tokenizer files into its folder.")
    found = min(windows, len(tokens) // body)
    if found == 0 or (purpose == "calibration" and found < windows):
        raise TextError(
            f"{source} has too little {purpose} text: {len(tokens):,} tokens where {windows} x {length} are needed. "
            "Use fewer or shorter samples, or a longer text (a quarter of every text is held out for evaluation)."
        )
    return torch.tensor([start + tokens[i * body : (i + 1) * body] for i in range(found)])


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


def _start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = tokenizer("a").input_ids
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def _passages(source: str, purpose: Purpose) -> list[str]:
    check_source(source)
    if source in _HUB_TEXTS:  # these bring splits of their own
        return list(_split(_hub_documents(source, purpose)))
    documents = _python_docs() if source == "python-docs" else _file_documents(absolute(source))
    passages = list(_split(_without_repeats(documents)))
    held_out = set(range(_EVALUATION_EVERY - 1, len(passages), _EVALUATION_EVERY))
    return [p for i, p in enumerate(passages) if (i in held_out) == (purpose == "evaluation")]


def _without_repeats(documents: Iterator[str]) -> Iterator[str]:
    """The documents without paragraphs that stood earlier: a repeated one would stand on both sides of the split.

    Where a document has no blank lines, its lines are its paragraphs.
    """
    seen: set[str] = set()
    for document in documents:
        kept = []
        paragraphs = _PARAGRAPH_END.split(document.strip())
        for paragraph in paragraphs if len(paragraphs) > 1 else document.split("\n"):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                kept.append(paragraph)
        if kept:
            yield ("\n\n" if len(paragraphs) > 1 else "\n").join(kept)


def _split(documents: Iterator[str]) -> Iterator[str]:
    """Passages of about 2,000 characters, cut at line ends; short documents are joined, endless lines are cut."""
    passage = ""
    for document in documents:
        for line in (document.rstrip("\n") + "\n").splitlines(keepends=True):
            for start in range(0, len(line), _PASSAGE_CHARACTERS):
                passage += line[start : start + _PASSAGE_CHARACTERS]
                if len(passage) >= _PASSAGE_CHARACTERS:
                    yield passage
                    passage = ""
    if passage.strip():
        yield passage


def _python_docs() -> Iterator[str]:
    from pydoc_data.topics import topics

    return (topics[name] for name in sorted(topics))


def _hub_documents(source: str, purpose: Purpose) -> Iterator[str]:
    from datasets import load_dataset

    name, subset, splits = _HUB_TEXTS[source]
    try:
        characters = 0
        for row in load_dataset(name, subset, split=splits[purpose], streaming=True):
            yield row["text"]
            characters += len(row["text"])
            if characters >= _HUB_CHARACTERS:
                return
    except Exception as error:  # datasets raises its own, the hub's, and plain connection errors
        raise TextError(
            f"{source} could not be fetched from the hub: check the network, or use `python-docs` or a "
            f"file of your own. ({type(error).__name__})"
        ) from error


def _file_documents(path: Path) -> Iterator[str]:
    try:
        documents = list(_READERS[path.suffix.lower()](path))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TextError(
            f"{path.name} could not be read as text: {reason}. Check that it is UTF-8 and complete."
        ) from error
    if not any(document.strip() for document in documents):
        raise TextError(f"{path.name} is empty: give a file with some thousand words.")
    return iter(documents)


def _read_txt(path: Path) -> Iterator[str]:
    yield path.read_text(encoding="utf-8")


def _read_jsonl(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:  # not splitlines(): JSON strings may hold other line separators
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _text_of(json.loads(line), f"line {number}")


def _read_parquet(path: Path) -> Iterator[str]:
    import pyarrow.parquet

    columns = pyarrow.parquet.read_schema(path).names
    if "text" not in columns:
        raise ValueError(f"it has no column `text` (found: {', '.join(columns)})")
    for number, text in enumerate(pyarrow.parquet.read_table(path, columns=["text"])["text"].to_pylist(), 1):
        yield _text_of({"text": text or ""}, f"row {number}")


def _text_of(row: object, where: str) -> str:
    text = row.get("text") if isinstance(row, dict) else row
    if not isinstance(text, str):
        raise ValueError(f"{where} has no string field `text`")
    return text


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
