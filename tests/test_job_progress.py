"""What a job leaves in the database while it runs: progress, its request, and the end of its log."""

import sys
import time

from sqlalchemy import event

from advisor import jobs, processes
from advisor.types import ProfileRequest, Progress


def test_progress_is_written_a_few_times_a_second_but_stages_and_the_end_always(bench):
    job = bench.store.create_job("profile", {})
    bench.store.claim_job(job.id, 1)
    written = []

    def note(connection, cursor, statement, parameters, context, executemany):
        if "progress=" in statement:
            written.append(statement)

    event.listen(bench.store._engine, "before_cursor_execute", note)
    report = jobs._Reporter(bench.store, job.id)
    start = time.monotonic()
    for done in range(500):
        report(Progress(stage="load", done=done, total=1000))
    for done in range(501):
        report(Progress(stage="measure", done=done, total=500))
    seconds = time.monotonic() - start
    assert bench.store.job(job.id).progress == Progress(stage="measure", done=500, total=500)
    assert 3 <= len(written) <= 3 + seconds / jobs.REPORT_SECONDS
    report(Progress(stage="measure", done=7, total=500))
    report.flush()
    assert bench.store.job(job.id).progress.done == 7


def test_a_request_is_stored_as_plain_data(bench):
    command = [sys.executable, "-c", "pass"]
    request = ProfileRequest(model="smollm2", formats=("int8", "nf4_g64"))
    job = jobs.submit(bench.store, "profile", request, command=command, folder=bench.folder)
    assert ProfileRequest(**job.params) == request
    bench.ended(job)


def test_the_last_lines_of_a_log_show_a_progress_bars_last_state(tmp_path):
    (tmp_path / "x.log").write_bytes(b"start\n10%\r50%\r100%\r\n\xff odd\n" + b"".join(b"%d\n" % n for n in range(5)))
    assert jobs.log_tail("x", tmp_path).splitlines() == ["start", "100%", "\ufffd odd", "0", "1", "2", "3", "4"]
    assert jobs.log_tail("no such job", tmp_path) == ""
    (tmp_path / "long.log").write_bytes(b"line\n" * 100_000 + b"end\n")
    assert len(jobs.log_tail("long", tmp_path).splitlines()) <= processes.LOG_TAIL_LINES
    assert jobs.log_tail("long", tmp_path).endswith("end")
