"""What is worked out from a profile once and kept while the profile is: a page plans from one many times. Pure."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TypeVar

from advisor.types import SensitivityProfile

Found = TypeVar("Found")


def kept(make: Callable[[SensitivityProfile], Found]) -> Callable[[SensitivityProfile], Found]:
    """`make` called once for a profile, the same result every time. What it makes must not hold the profile itself.

    Profiles are told apart by identity: nouns are compared field by field, and this one has thousands of scores.
    """
    known: dict[int, Found] = {}

    @functools.wraps(make, updated=())
    def once(profile: SensitivityProfile) -> Found:
        if id(profile) not in known:
            known[id(profile)] = make(profile)
            weakref.finalize(profile, known.pop, id(profile), None)
        return known[id(profile)]

    return once
