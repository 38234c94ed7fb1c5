"""Options and ways of printing that all commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from advisor.errors import PlanError

MODEL_HELP = "`smollm2` (the demo model), a hub id, a folder of safetensors, or a .gguf file."
TEXT_HELP = (
    "`python-docs`, `python-chat`, `mix` of both, `wikitext2`, `c4`, `ultrachat`, a .txt, .jsonl or .parquet file; "
    "several joined by `+` give equal shares."
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
SeqLen = Annotated[int, typer.Option(min=8, help="Tokens of one sequence.")]
Text = Annotated[str, typer.Option(help=TEXT_HELP)]


def read(path: Path) -> str:
    """The text of a file that a command was given; raises PlanError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or 'it is not text'}): check the path."
        ) from error


def show(found: Any, as_json: bool) -> None:
    """Print what a command found."""
    print(json.dumps(found, indent=2) if as_json else found)
