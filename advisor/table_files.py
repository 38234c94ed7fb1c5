"""Reads the TOML files of `profiles/`, and of a folder of one's own, as validated rows; knows no table by name."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from advisor.errors import KnowledgeError
from advisor.types import Noun

BUILT_IN = Path(__file__).resolve().parent.parent / "profiles"

Row = TypeVar("Row", bound=Noun)


def folders() -> tuple[Path, ...]:
    """The folders of tables: the product's own, then the one that `ADVISOR_PROFILES` names, whose rows win."""
    own = os.environ.get("ADVISOR_PROFILES")
    if not own:
        return (BUILT_IN,)
    folder = Path(own).expanduser().resolve()
    if not folder.is_dir():
        raise KnowledgeError(f"ADVISOR_PROFILES names {folder}, which is no folder; create it or unset the variable.")
    return (BUILT_IN, folder)


@cache
def only_table(places: tuple[Path, ...], file_name: str, name: str, noun: type[Row]) -> Row:
    """The one table of a file; that of the last folder wins."""
    files = [place / file_name for place in places]
    tables = [(file, _read(file)[name]) for file in files if name in _read(file)]
    if not tables:
        raise KnowledgeError(f"profiles/{file_name} has no [{name}]; restore the profiles/ folder of this version.")
    file, own = tables[-1]
    return _validated(noun, file, name, own)


def files_of(places: Iterable[Path], kind: str) -> list[Path]:
    """The tables of a kind that has a file for each subject, by name within each place."""
    return [file for place in places for file in sorted((place / kind).glob("*.toml"))]


def rows_of(noun: type[Row], files: Iterable[Path], key: str = "name") -> dict[str, Row]:
    """Every table of every file as a `noun`; the table's own name becomes its `key`, later files win.

    A table may say `like = "other"`: it starts from a table read before it and replaces the keys that it gives.
    """
    raw: dict[str, dict[str, Any]] = {}
    rows: dict[str, Row] = {}
    for file in files:
        for name, table in _read(file).items():
            raw[name] = _inherit(file, name, table, raw)
            rows[name] = _validated(noun, file, name, {**raw[name], key: name})
    return rows


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        # A folder of one's own need not hold every table; the built-in one always does.
        if file.parent != BUILT_IN:
            return {}
        raise KnowledgeError(f"The table {file} is missing; restore the profiles/ folder of this version.")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KnowledgeError(f"{file} is not valid TOML ({error}); correct that line.") from error
    except OSError as error:
        raise KnowledgeError(f"{file} cannot be read ({error.strerror}); check its permissions.") from error


def _inherit(file: Path, name: str, table: Any, raw: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise KnowledgeError(f"{file}: '{name}' stands outside of any [table]; move it below the table it belongs to.")
    table = dict(table)
    model = table.pop("like", None)
    if model is None:
        return table
    if model not in raw:
        raise KnowledgeError(
            f"{file}: [{name}] is like '{model}', which is not a table before it; {suggest(model, raw)}"
            "move that table up or correct the name."
        )
    return {**raw[model], **table}


def _validated(noun: type[Row], file: Path, name: str, values: dict[str, Any]) -> Row:
    try:
        return noun.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the table"
        raise KnowledgeError(f"{file}: [{name}] {field}: {first['msg']}; correct that field.") from error


def suggest(name: str, known: Iterable[str]) -> str:
    """A question with the nearest of the known names, and a space behind it; empty where none is near."""
    wanted, names = name.lower(), list(known)
    close = [other for other in names if wanted and wanted in other][:3]
    close = close or difflib.get_close_matches(wanted, names, n=1)
    return f"did you mean {' or '.join(repr(other) for other in close)}? " if close else ""
