"""What the data folder holds, how much room it takes, and what of it can be given back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from advisor.errors import StorageError
from advisor.paths import converted_dir, data_dir, models_dir
from advisor.types import DeletedKind, Job, UsedSpace
from storage.repository import Repository


def space_used(store: Repository) -> list[UsedSpace]:
    """The database, fetched and converted models, exports and logs, each kind's largest first."""
    database = store.database_size()
    spare = "compacting gives back what deleted rows left" if database.compactable else ""
    rows = [
        UsedSpace(
            what="database", place=store.address, bytes=database.bytes, spare_bytes=database.spare_bytes, note=spare
        )
    ]
    fetched = [place for place in _inside(models_dir()) if place != converted_dir()]
    jobs, refining = ([data_dir() / name] for name in ("jobs", "refining"))
    kinds = (
        ("model", fetched, "fetched again when it is needed"),
        ("model", _inside(converted_dir()), "made again from its GGUF file when it is needed"),
        ("export", _inside(data_dir() / "exports"), "its plan stays and can be applied again"),
        ("logs of jobs", jobs, "the last lines of each stay in the database"),
        ("stopped refinements", refining, "a stopped refinement starts from its beginning"),
    )
    for what, places, note in kinds:
        found = [(place, _bytes(place)) for place in places if place.exists()]
        rows += [
            UsedSpace(what=what, place=str(place), bytes=count, spare_bytes=count, note=note, removable=True)
            for place, count in sorted(found, key=lambda pair: -pair[1])
            if count
        ]
    return rows


def free_space(place: str, store: Repository) -> None:
    """Remove a place that `space_used` calls removable.

    Raises:
        StorageError: it is none of these, a job may be reading it, or the system does not allow it.
    """
    if place not in {row.place for row in space_used(store) if row.removable}:
        raise StorageError(f"{place} is not there any more, or is not ours to remove: reload the page.")
    if store.jobs(limit=1, active_only=True):
        raise StorageError("A job is running or waiting and may need it: wait for it to end, or stop it.")
    path = Path(place)
    aside = path.with_name(f".{path.name}.removed")
    try:
        path.rename(aside)  # at once out of reach, so that nothing reads half of it
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    except OSError as error:
        raise StorageError(f"{place} could not be removed: {error.strerror or error}.") from error


def delete_stored(kind: DeletedKind, labels: Mapping[str | int, str], store: Repository) -> tuple[str, ...]:
    """Delete things of one kind (id -> what people call it) with all that was made from them.

    Returns the ids of the deletions, each of which undoes one.

    Raises:
        StorageError: a job works on one of them or on what was made from it, or it is not there any more. Where a job
            does, none of them is deleted.
    """
    going = {*labels, *(one for ids in store.made_from(kind, labels).values() for one in ids)}
    if any(going & _used_by(job) for job in store.jobs(limit=1000, active_only=True)):
        which = f"this {kind}" if len(labels) == 1 else f"one of these {kind}s"
        raise StorageError(
            f"A job is running or waiting and needs {which}, or what was made from it: pause or cancel the job first. "
            "The History lists it under Jobs."
        )
    return tuple(store.delete(kind, identifier, label) for identifier, label in labels.items())


def _used_by(job: Job) -> set[str]:
    """The ids of the stored things that the job reads or adds to."""
    return {*job.subjects.values(), job.progress.subject if job.progress else ""}


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _bytes(place: Path) -> int:
    files: Iterator[Path] = place.rglob("*") if place.is_dir() else iter([place])
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())
