"""A profile torn down again and again goes on from what is stored, to the same numbers."""

import random
import signal
import time
from contextlib import contextmanager

import pytest

from advisor import pipeline
from advisor.types import ProfileRequest
from storage.engine import open_repository
from tests.tiny_models import tiny_folder

STOPS, MOST_STOPS = 4, 20


class Stopped(BaseException):
    """Torn down wherever the work happened to be; no handler of the product's catches it."""


@contextmanager
def stopped_after(seconds: float):
    def stop(number, frame):
        raise Stopped

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("method", ["exact", "fisher", "auto"])
def test_a_profile_stopped_at_random_moments_ends_on_the_same_numbers(method, tmp_path):
    request = ProfileRequest(
        model=str(tiny_folder(tmp_path / "model")),
        method=method,
        samples=12,
        seq_len=128,
        formats=("int8", "int4_g32", "int2_g64"),
    )
    straight = open_repository(f"sqlite:///{tmp_path / 'straight.sqlite'}")
    pipeline.profile_model(request, straight)  # once without a clock: what is made once is made
    began = time.monotonic()
    pipeline.profile_model(request, open_repository(f"sqlite:///{tmp_path / 'timed.sqlite'}"))
    whole = time.monotonic() - began

    chance, stops, partly, begun = random.Random(0), 0, 0, 0
    store = open_repository(f"sqlite:///{tmp_path / 'stopped.sqlite'}")
    while stops < STOPS or (not partly and stops < MOST_STOPS):
        try:
            with stopped_after(chance.uniform(0.4, 0.8) * whole):
                pipeline.profile_model(request, store)
        except Stopped:
            stops += 1
            partly += 0 < tokens_seen(store, method) < tokens_seen(straight, method)
        else:  # it got through between two stops: begin again
            assert numbers(store, method) == numbers(straight, method)
            begun += 1
            store = open_repository(f"sqlite:///{tmp_path / f'stopped{begun}.sqlite'}")
            whole *= 0.8  # it was timed while the machine had other work
    pipeline.profile_model(request, store)
    assert numbers(store, method) == numbers(straight, method)
    assert partly, "no stop came while something was stored and something was not"


def tokens_seen(store, method: str) -> int:
    """Of all scores together; an auto profile begins as estimates."""
    kind = "fisher" if method == "auto" else method
    return sum(summary.tokens for summary in store.profiles() if summary.method == kind)


def numbers(store, method: str) -> dict:
    """Every score of the profile of this method, to the last bit; times are not scores."""
    found = [summary for summary in store.profiles() if summary.method == method]
    measurements = store.profile(found[0].id).measurements if found else ()
    return {(m.layer, m.format): m.model_dump(exclude={"seconds"}) for m in measurements}
