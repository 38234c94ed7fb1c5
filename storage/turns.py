"""Whose turn it is: a fair order of the jobs that wait, so that nobody's many hold up another's one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

# Minutes at most: these run beside the long ones, one at a time as well.
SHORT_KINDS = ("inspect", "preview", "zip")


class Entry(NamedTuple):
    """What the order depends on of a job; `started` is None while it waits, and `number` is its place of arrival."""

    id: str
    number: int
    short: bool
    person: str
    created: datetime
    started: datetime | None
    ended: bool


def lane(entries: Sequence[Entry], short: bool) -> list[str]:
    """The ids of the jobs of one lane: the one that runs, then those that wait in the order in which they will run.

    The first waiting jobs of all persons come before anybody's second, and so on; among equals, who came first. Those
    of a person that were started while a job waited count as before it: who has just been served does not come first.

    Args:
        entries: all jobs that have not ended, and of the ended ones at least those that were started while one waited.
    """
    mine = [entry for entry in entries if entry.short == short]
    waiting = [entry for entry in mine if not entry.ended and entry.started is None]

    def before(job: Entry) -> tuple[int, int]:
        same = [other for other in mine if other.person == job.person and other.id != job.id]
        served = sum(other.started is not None and other.started >= job.created for other in same)
        return served + sum(other in waiting and other.number < job.number for other in same), job.number

    running = [entry.id for entry in mine if not entry.ended and entry.started is not None]
    return running + [entry.id for entry in sorted(waiting, key=before)]
