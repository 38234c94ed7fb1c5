"""The command line's promise that whatever goes wrong is one line on standard error and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from advisor.errors import AdvisorError, JobCancelled, UnfitPlan

STOPPED = 130  # 128 and the number of SIGINT
# What every wrong option or argument raises; Typer gives only its children a public name.
_UsageError = typer.BadParameter.__bases__[0]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with status 2 for a refusal, 130 where it was stopped, 1 for a defect of ours."""
    try:
        yield
    except JobCancelled as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        raise SystemExit(STOPPED) from None
    except AdvisorError as error:
        how = " `apply --nearest` takes it." if isinstance(error, UnfitPlan) else ""
        print(f"error: {error}{how}", file=sys.stderr)
        raise SystemExit(2) from error
    except (KeyboardInterrupt, typer.Abort):
        print("stopped: nothing is left half-written; the same command begins again", file=sys.stderr)
        raise SystemExit(STOPPED) from None
    except _UsageError as error:
        # Typer hands on what pydantic says of a choice, with pydantic's prefix.
        said = " ".join(error.format_message().replace("Value error, ", "").split())
        print(f"error: {said.rstrip('.')}. See --help.", file=sys.stderr)
        raise SystemExit(2) from error
    except BrokenPipeError:
        raise SystemExit(1) from None  # the reader of a pipe went away
    except Exception as error:  # a defect of ours: still one line, and the whole story for whoever reports it
        if os.environ.get("ADVISOR_DEBUG"):
            raise
        line = (str(error).strip().splitlines() or [""])[0]
        print(
            f"error: unexpected {type(error).__name__}: {line} Set ADVISOR_DEBUG=1 to see where, and report it.",
            file=sys.stderr,
        )
        raise SystemExit(1) from error


@contextmanager
def resumable() -> Iterator[None]:
    """Around work that stores what it finds as it goes: Ctrl-C is a JobCancelled that says so."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise JobCancelled("nothing is left half-written, and the same command goes on from what is stored") from stop
