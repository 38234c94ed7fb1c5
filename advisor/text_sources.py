"""Reads the documents of a text: Python's reference, the hub, or a file of one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from advisor.conversations import Conversation, conversation_of
from advisor.errors import TextError

Purpose = Literal["calibration", "evaluation"]
Document = str | Conversation

HUB_TEXTS = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", {"calibration": "train", "evaluation": "test"}),
    "c4": ("allenai/c4", "en", {"calibration": "train", "evaluation": "validation"}),
    "ultrachat": (
        "HuggingFaceH4/ultrachat_200k",
        "default",
        {"calibration": "train_sft", "evaluation": "test_sft"},
    ),
}
_HUB_CHARACTERS = 20_000_000  # enough for 1,000 windows of 4,096 tokens; C4 is streamed and would never end


def python_documents() -> Iterator[str]:
    """The topics of Python's language reference, as `help()` shows them."""
    from pydoc_data.topics import topics

    return (topics[name] for name in sorted(topics))


def hub_documents(name: str, purpose: Purpose) -> Iterator[Document]:
    """Documents of one of `HUB_TEXTS`, streamed, up to 20 million characters. Raises TextError."""
    from datasets import load_dataset

    dataset, subset, splits = HUB_TEXTS[name]
    try:
        characters = 0
        for number, row in enumerate(load_dataset(dataset, subset, split=splits[purpose], streaming=True), 1):
            document = _document_of(row, f"row {number}")
            yield document
            characters += len(plain(document))
            if characters >= _HUB_CHARACTERS:
                return
    except Exception as error:  # datasets raises its own, the hub's, and plain connection errors
        raise TextError(
            f"{name} could not be fetched from the hub: check the network, or use `python-docs` or a "
            f"file of your own. ({type(error).__name__})"
        ) from error


def file_documents(path: Path) -> list[Document]:
    """Documents of a .txt (one), .jsonl or .parquet file (one per row). Raises TextError."""
    try:
        documents = list(READERS[path.suffix.lower()](path))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TextError(
            f"{path.name} could not be read as text: {reason}. Check that it is UTF-8 and complete."
        ) from error
    if not any(plain(document).strip() for document in documents):
        raise TextError(f"{path.name} is empty: give a file with some thousand words.")
    return documents


def plain(document: Document) -> str:
    """What the document says, without roles."""
    return document if isinstance(document, str) else "\n".join(content for _, content in document)


def _read_txt(path: Path) -> Iterator[str]:
    yield path.read_text(encoding="utf-8")


def _read_jsonl(path: Path) -> Iterator[Document]:
    with path.open(encoding="utf-8") as file:  # not splitlines(): JSON strings may hold other line separators
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _document_of(json.loads(line), f"line {number}")


def _read_parquet(path: Path) -> Iterator[Document]:
    import pyarrow.parquet

    columns = pyarrow.parquet.read_schema(path).names
    if "text" not in columns:
        raise ValueError(f"it has no column `text` (found: {', '.join(columns)})")
    for number, text in enumerate(pyarrow.parquet.read_table(path, columns=["text"])["text"].to_pylist(), 1):
        yield _document_of({"text": text or ""}, f"row {number}")


def _document_of(row: object, where: str) -> Document:
    text = row.get("text") if isinstance(row, dict) else row
    if isinstance(text, str):
        return text
    try:
        conversation = conversation_of(row) if isinstance(row, dict) else None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if conversation is None:
        raise ValueError(
            f"{where} has no string field `text` and no conversation (`messages`, or `prompt` and `completion`, or "
            "`instruction` and `output`)"
        )
    return conversation


READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
