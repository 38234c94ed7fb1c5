"""Keeps what libraries print out of the way: their C code of a command's JSON, their progress bars of our own lines."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType


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


@contextmanager
def without_bars(module: ModuleType) -> Iterator[None]:
    """Keeps the `tqdm` that a module imported from drawing, where the module asks nobody whether it should."""
    own = module.tqdm
    module.tqdm = partial(own, disable=True)
    try:
        yield
    finally:
        module.tqdm = own
