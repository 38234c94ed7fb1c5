"""JSON documents in and out: checked on the way in, written whole or not at all on the way out."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from advisor.errors import KnowledgeError, PlanError, StorageError
from advisor.knowledge import find_engine, find_format, find_hardware
from advisor.types import Evaluation, Noun, Plan, SensitivityProfile, wrong_field

N = TypeVar("N", bound=Noun)


class _Kind(NamedTuple):
    """A kind of document: its name, a field that no other kind has, what to do about a wrong one, and instead of it."""

    name: str
    field: str
    remedy: str
    instead: str


_PLAN = _Kind(
    "plan",
    "assignments",
    "Correct it, or make the plan again.",
    "make a plan from it, and give that (see `plan --help`)",
)
_PROFILE = _Kind(
    "sensitivity profile", "measurements", "Profile the model again.", "give the profile that it was made from"
)
_EVALUATION = _Kind(
    "record of an evaluation", "perplexity", "Evaluate the model again.", "give what `evaluate --json` printed"
)


def plan_schema() -> dict[str, Any]:
    """The published JSON schema of `plan.json`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Plan.model_json_schema()


def check_plan_document(text: str) -> Plan:
    """A plan from its JSON text.

    Raises:
        PlanError: it is no JSON, or a field is wrong or names something unknown; the message has the field's path.
    """
    plan = _checked(Plan, text, _PLAN)
    names = {f"assignments.{layer}": (find_format, name) for layer, name in plan.assignments.items()}
    names |= {f"request.locks.{layer}": (find_format, name) for layer, name in plan.request.locks.items()}
    names |= {"request.hardware": (find_hardware, plan.request.hardware)}
    names |= {"request.engine": (find_engine, plan.request.engine)}
    for path, (find, name) in names.items():
        try:
            find(name)
        except KnowledgeError as error:
            raise PlanError(f"This plan has a wrong field, {path}: {error}") from error
    return plan


def check_profile_document(text: str) -> SensitivityProfile:
    """A sensitivity profile from its JSON text; raises PlanError like `check_plan_document`."""
    profile = _checked(SensitivityProfile, text, _PROFILE)
    # The store leaves them out where a profile is only looked at; a document is there to plan from.
    for number, score in enumerate(profile.measurements):
        if score.method == "fisher" and not (score.projections or profile.around):
            where = f"measurements.{number} ({score.layer} in {score.format})"
            raise PlanError(
                f"This {_PROFILE.name} has a wrong field, {where}: an estimate without its projections. "
                f"{_PROFILE.remedy}"
            )
    return profile


def check_evaluation_document(text: str) -> Evaluation:
    """An evaluation from its JSON text; raises PlanError like `check_plan_document`."""
    return _checked(Evaluation, text, _EVALUATION)


def check_writable(path: Path, *read: Path) -> None:
    """Refuse early, before long work, a place where a document cannot be written; raises StorageError.

    Args:
        read: documents that the work reads, which it must not write over.
    """
    check_parent(path)
    if path.is_dir():
        raise StorageError(f"{path} is a folder: name a file to write in it.")
    if path.exists() and any(path.samefile(one) for one in read):
        raise StorageError(f"{path} is read here, and would be lost: choose another place for what is written.")
    write_document(path.with_name(f"{path.name}.writable"), "")
    path.with_name(f"{path.name}.writable").unlink()


def check_parent(path: Path) -> None:
    """Refuse a place in a folder that does not exist, which may be a slip of the pen; raises StorageError."""
    if not path.parent.exists():
        raise StorageError(
            f"{path} lies in {path.parent}, a folder that does not exist: create it, or choose another place."
        )
    if not path.parent.is_dir():
        raise StorageError(f"{path} lies in {path.parent}, which is a file: choose another place.")


def write_document(path: Path, text: str) -> None:
    """Write a document beside its place, then rename it: a full disk leaves an older file as it was.

    Raises:
        StorageError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path} could not be written: {error.strerror or error}. Free some space or choose another place."
        ) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _checked(noun: type[N], text: str, kind: _Kind) -> N:
    what = kind.name
    try:
        document = json.loads(text)
        _refuse_other_kind(document, kind)
        return noun.model_validate(document)
    except RecursionError as error:
        raise PlanError(f"This {what} is nested too deeply: give the file that the advisor wrote.") from error
    except json.JSONDecodeError as error:
        raise PlanError(
            f"This {what} is not JSON (line {error.lineno}: {error.msg}): give the file that the advisor wrote."
        ) from error
    except ValidationError as error:
        raise PlanError(f"This {what} has a wrong field, {wrong_field(error)}. {kind.remedy}") from error


def _refuse_other_kind(document: Any, wanted: _Kind) -> None:
    if not isinstance(document, dict):
        raise PlanError(f"This {wanted.name} is no JSON object: give the file that the advisor wrote.")
    if wanted.field in document:
        return
    for other in (_PLAN, _PROFILE, _EVALUATION):
        if other.field in document:
            raise PlanError(f"This is a {other.name}, not a {wanted.name}: {wanted.instead}.")
