"""How long work tells how far it is, and how it is stopped."""

from __future__ import annotations

from collections.abc import Callable

from advisor.errors import JobCancelled
from advisor.types import Progress

Report = Callable[[Progress], None]
Cancelled = Callable[[], bool]


def silent(progress: Progress) -> None:
    """A report for callers that do not show progress."""


def never() -> bool:
    """A `cancelled` for callers that cannot be cancelled."""
    return False


def counted(stage: str, message: str, subject: str, report: Report) -> Callable[[int, int], None]:
    """A `(done, total)` that reports as progress of `stage`."""
    return lambda done, total: report(Progress(stage=stage, done=done, total=total, message=message, subject=subject))


def stoppable(report: Report, cancelled: Cancelled) -> Report:
    """A report that raises JobCancelled once `cancelled()` is true: work stops wherever it tells how far it is."""

    def report_or_stop(progress: Progress) -> None:
        if cancelled():
            raise JobCancelled("Stopped as asked; what was measured is kept, and the same request goes on from there.")
        report(progress)

    return report_or_stop
