"""How far an apply job is, as the list of its steps: done, under way, to come."""

from __future__ import annotations

from advisor.types import Job

# By the stages that the job reports: the first words of its log's lines.
_STEPS = (
    ("evaluate original", "Measure the original"),
    ("evaluate uniform", "Measure uniform plans"),
    ("recover", "Recover"),
    ("apply", "Apply and write"),
    ("verify", "Verify the files"),
    ("evaluate plan", "Measure the plan"),
)


def line(job: Job) -> str:
    """One line of all steps, for a caption; steps that a resumed job leaves out count as done once a later one runs."""
    steps = [step for step in _STEPS if step[0] != "recover" or job.params.get("recover")]
    reached = [index for index, (stage, _) in enumerate(steps) if _has_seen(job, stage)]
    now = max(reached, default=-1)
    marks = ["check_circle" if i < now else "pending" if i == now else "circle" for i in range(len(steps))]
    return " ".join(f":material/{mark}: {words} " for mark, (_, words) in zip(marks, steps, strict=True))


def _has_seen(job: Job, stage: str) -> bool:
    current = job.progress is not None and job.progress.stage.startswith(stage)
    # A line of the log is a time, the stage and what was said of it.
    return current or any(entry.partition(" ")[2].startswith(stage) for entry in job.log_tail.splitlines())
