"""Keeps standard output clean for a command's JSON: what libraries written in C print goes to standard error."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_STDOUT = threading.Lock()


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Sends what C code prints to stdout to stderr instead.

    The HiGHS of scipy 1.17 prints a debugging line now and then whatever its options say, and stdout belongs to the
    command line's JSON. Stderr loses nothing when another thread prints in between.
    """
    if os.name != "posix":
        yield
        return
    libc = ctypes.CDLL(None)
    with _STDOUT:
        libc.fflush(None)
        try:
            saved = os.dup(1)
        except OSError:
            # Without a stdout there is nothing to keep clean.
            yield
            return
        os.dup2(2, 1)
        try:
            yield
        finally:
            libc.fflush(None)
            os.dup2(saved, 1)
            os.close(saved)
