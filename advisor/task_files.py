"""Task files of one's own in lm-eval's format, copied without what would run code: before `tasks.py` loads them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from advisor.errors import TaskError


def plain_copies(folder: Path, copies: Path) -> set[str]:
    """Copy every YAML file below `folder` that is a task, a group or a tag into `copies`, checked and self-contained.

    A tag such as `!function`, which has lm-eval import Python, is refused. Files that one includes are merged into it,
    unless they are lm-eval's own; paths of data are made absolute, from the folder of the file that names them.

    Returns:
        The names of tasks, tags and groups that need nothing of lm-eval's own tasks.

    Raises:
        TaskError: a file would run code, cannot be read, or names a file that is not there.
    """
    files = sorted(folder.rglob("*.yaml")) if folder.is_dir() else []
    if not files:
        raise TaskError(f"{folder} is no folder with .yaml files: give one with tasks in lm-eval's format.")
    names: set[str] = set()
    groups: dict[str, list[Any]] = {}
    for number, file in enumerate(files):
        found = _merged(file, ())
        if not {"task", "group"} & set(found):
            continue  # a template that others include
        (copies / f"{number}.yaml").write_text(yaml.safe_dump(found, sort_keys=False), encoding="utf-8")
        if "group" not in found:
            tags = found.get("tag") or []
            names |= {found["task"], *([tags] if isinstance(tags, str) else tags)}
        else:
            groups[found["group"]] = found.get("task") or []
    for _ in groups:  # groups of groups
        names |= {group for group, members in groups.items() if all(str(member) in names for member in members)}
    return names


def _merged(file: Path, including: tuple[Path, ...]) -> dict[str, Any]:
    """A file with what it includes, as lm-eval merges them: what it says itself wins."""
    if file in including:
        raise TaskError(f"{file} includes itself: take the circle out.")
    found = _read(file)
    includes = found.pop("include", [])
    merged: dict[str, Any] = {}
    theirs: list[str] = []
    for name in [includes] if isinstance(includes, str) else includes:
        path = _included(file, name)
        if path.is_relative_to(_lm_eval()):
            theirs.append(str(path))
        else:
            other = _merged(path, (*including, file))
            theirs += other.pop("include", [])
            merged |= other
    merged |= _with_absolute_data(found, file)
    return merged | ({"include": theirs} if theirs else {})


def _read(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.constructor.ConstructorError as error:
        raise TaskError(
            f"{file} would run code ({str(error.problem)[:120]}): code in task files is never run here; write the "
            "task with templates alone."
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TaskError(f"{file} cannot be read as YAML ({reason}): correct it.") from error
    if not isinstance(found, dict):
        raise TaskError(f"{file} is not a task in lm-eval's format: it holds no fields.")
    return found


def _included(file: Path, name: str) -> Path:
    """The file that `include: name` means: beside this one, or from the root of lm-eval's package."""
    for path in (file.parent / name, _lm_eval().parent / name):
        if path.is_file():
            return path.resolve()
    raise TaskError(f"{file} includes {name}, which is not there: give a path from its own folder.")


def _lm_eval() -> Path:
    return Path(find_spec("lm_eval").origin).resolve().parent


def _with_absolute_data(found: dict[str, Any], file: Path) -> dict[str, Any]:
    kwargs = found.get("dataset_kwargs")
    if not isinstance(kwargs, dict) or "data_files" not in kwargs:
        return found
    return found | {"dataset_kwargs": kwargs | {"data_files": _absolute(kwargs["data_files"], file)}}


def _absolute(named: Any, file: Path) -> Any:
    """One path, several, or several by their split."""
    if isinstance(named, dict):
        return {split: _absolute(paths, file) for split, paths in named.items()}
    if isinstance(named, list):
        return [_absolute(path, file) for path in named]
    if "://" in str(named):
        return named
    path = file.parent / str(named)
    if not path.exists():
        raise TaskError(f"{file} names the data {named}, which is not there: give a path from its own folder.")
    return str(path.resolve())
