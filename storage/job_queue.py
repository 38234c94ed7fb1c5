"""The jobs' rows: a queue in fair order, and what a page and a job's process tell each other."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Update, case, func, or_, select, update
from sqlalchemy.orm import Session

from advisor.types import Job, JobStatus, Progress, now
from storage.deletions import kept
from storage.sessions import Sessions, from_document, new_id, to_document
from storage.tables import JobRow
from storage.turns import SHORT_KINDS, Entry, lane

LOG_TAIL_CHARACTERS = 8000
_ACTIVE = (JobStatus.QUEUED.value, JobStatus.RUNNING.value)
# Who asked lies in the document of what was asked, under a name that no request has: listing needs no column of it.
_PERSON = "_person"


class JobQueue(Sessions):
    """Queries of the `jobs` table; every change of status is one guarded update, so the first to end a job wins."""

    def create_job(self, kind: str, params: dict[str, Any], person: str = "") -> Job:
        """A new job in the queue, asked for by `person`; nothing is started."""
        asked = params | {_PERSON: person} if person else params
        row = JobRow(id=new_id(), kind=kind, status=JobStatus.QUEUED.value, params=asked, created=now())
        row.error, row.log_tail, row.host, row.cancel_requested = "", "", "", False
        with self._writing() as session:
            session.add(row)
            session.flush()
            return _job(row)

    def job(self, job_id: str) -> Job | None:
        """The job, or None where there is none of that id."""
        with self._reading() as session:
            row = session.scalar(select(JobRow).where(JobRow.id == job_id, kept(JobRow)))
            return None if row is None else _job(row)

    def jobs(self, limit: int = 50, active_only: bool = False) -> list[Job]:
        """The newest jobs first; `active_only` leaves out those that ended."""
        query = select(JobRow).where(kept(JobRow)).order_by(JobRow.number.desc()).limit(limit)
        if active_only:
            query = query.where(JobRow.status.in_(_ACTIVE))
        with self._reading() as session:
            return [_job(row) for row in session.scalars(query)]

    def enlist_job(self, job_id: str, pid: int, host: str) -> bool:
        """Note which process waits to run the job; False when the job is no longer queued."""
        change = _change(job_id, JobStatus.QUEUED.value)
        return self._applied(change.values(pid=pid, host=host, heartbeat=now()))

    def note_process(self, job_id: str, pid: int, host: str) -> None:
        """Note the process started for a queued job, unless it has enlisted itself already."""
        change = _change(job_id, JobStatus.QUEUED.value).where(JobRow.pid.is_(None))
        self._applied(change.values(pid=pid, host=host, heartbeat=now()))

    def claim_job(self, job_id: str, pid: int) -> bool:
        """Start the job if it is its turn; True when it now runs as process `pid`.

        Of the short kinds and of the long ones each, one job runs at a time; `storage.turns` has the order.
        """
        with self._writing() as session:
            if _jobs_before(session, job_id) != 0:
                return False
            moment = now()
            start = _change(job_id, JobStatus.QUEUED.value).values(
                status=JobStatus.RUNNING.value, pid=pid, started=moment, heartbeat=moment
            )
            return _count(session, start) == 1

    def jobs_before(self, job_id: str) -> int | None:
        """How many jobs run or will run before this one; None where it does not wait, nor run."""
        with self._reading() as session:
            return _jobs_before(session, job_id)

    def report(self, job_id: str, progress: Progress) -> None:
        """Store how far a running job is; this is a sign of life too."""
        values = {"progress": to_document(progress), "heartbeat": now()}
        self._applied(_change(job_id, JobStatus.RUNNING.value).values(**values))

    def beat(self, job_id: str) -> None:
        """A sign of life from the job's process, running or waiting."""
        self._applied(_change(job_id, *_ACTIVE).values(heartbeat=now()))

    def append_log(self, job_id: str, text: str) -> None:
        """Add `text` to the job's last lines; only the end of them is kept."""
        with self._writing() as session:
            row = session.scalar(select(JobRow).where(JobRow.id == job_id).with_for_update())
            if row is not None:
                row.log_tail = _shortened(row.log_tail + text)

    def finish_job(
        self,
        job_id: str,
        status: JobStatus,
        result: dict[str, Any] | None = None,
        error: str = "",
        log_tail: str | None = None,
    ) -> bool:
        """End the job; False when it had ended already, and then nothing changes.

        Args:
            log_tail: the last lines of its log; None keeps those stored.
        """
        values: dict[str, Any] = {"status": status.value, "result": result, "error": error, "finished": now()}
        if log_tail is not None:
            values["log_tail"] = _shortened(log_tail)
        return self._applied(_change(job_id, *_ACTIVE).values(**values))

    def request_cancel(self, job_id: str) -> Job | None:
        """Ask the job to stop: a queued one is cancelled at once, a running one sees `cancel_requested`."""
        queued = JobRow.status == JobStatus.QUEUED.value
        change = _change(job_id, *_ACTIVE).values(
            cancel_requested=True,
            finished=case((queued, now()), else_=JobRow.finished),
            status=case((queued, JobStatus.CANCELLED.value), else_=JobRow.status),
        )
        self._applied(change)
        return self.job(job_id)

    def cancel_requested(self, job_id: str) -> bool:
        """Whether somebody asked the job to stop."""
        with self._reading() as session:
            return bool(session.scalar(select(JobRow.cancel_requested).where(JobRow.id == job_id)))

    def _applied(self, change: Update) -> bool:
        with self._writing() as session:
            return _count(session, change) == 1


def _change(job_id: str, *statuses: str) -> Update:
    return update(JobRow).where(JobRow.id == job_id, JobRow.status.in_(statuses))


def _count(session: Session, change: Update) -> int:
    return session.execute(change, execution_options={"synchronize_session": False}).rowcount


def _shortened(text: str) -> str:
    # PostgreSQL refuses NUL in text, and a crashing process may leave some in its log.
    return text.replace("\x00", "")[-LOG_TAIL_CHARACTERS:]


def _jobs_before(session: Session, job_id: str) -> int | None:
    oldest = session.scalar(select(func.min(JobRow.created)).where(JobRow.status == JobStatus.QUEUED.value))
    counts = JobRow.status.in_(_ACTIVE) if oldest is None else or_(JobRow.status.in_(_ACTIVE), JobRow.started >= oldest)
    columns = (JobRow.id, JobRow.number, JobRow.kind, JobRow.status, JobRow.params, JobRow.created, JobRow.started)
    entries = [
        Entry(
            id=row.id,
            number=row.number,
            short=row.kind in SHORT_KINDS,
            person=row.params.get(_PERSON, ""),
            created=row.created,
            started=row.started,
            ended=row.status not in _ACTIVE,
        )
        for row in session.execute(select(*columns).where(counts))
    ]
    asked = next((entry for entry in entries if entry.id == job_id), None)
    if asked is None or asked.ended:
        return None
    return lane(entries, asked.short).index(job_id)


def _job(row: JobRow) -> Job:
    values = {field: getattr(row, field) for field in Job.model_fields if field != "person"}
    asked = dict(row.params)
    person = asked.pop(_PERSON, "")
    return from_document(Job, values | {"params": asked, "person": person})
