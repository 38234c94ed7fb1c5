"""Keeps standard output clean for a command's JSON: what libraries written in C print is dropped."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced_stdout() -> Iterator[None]:
    """Drops what C code prints to standard output.

    The HiGHS of scipy 1.17 prints a debugging line now and then whatever its options say. For a command's process only:
    what other threads print meanwhile is dropped too.
    """
    if os.name != "posix":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.fflush(None)
    try:
        saved = os.dup(1)
    except OSError:  # without a standard output there is nothing to keep clean
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        libc.fflush(None)
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)
