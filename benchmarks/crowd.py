"""What several people at one server wait for while a job runs, beside what one alone waits for; `benchmarks.page` asks.

Every person has a browser context of their own in one Chromium, half of them on the plan page and half on the
sensitivity page, and moves to what nobody asked for before. The long job measures the demo model, exactly. Server, job
and all browsers share this machine's cores; the server's own share is in the last column.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psutil
from playwright.sync_api import Browser, sync_playwright

from advisor import jobs, pipeline
from advisor.types import JobStatus, ProfileRequest, SensitivityProfile
from benchmarks.browser import ARGUMENTS, CHART, CHROMIUM, METRICS, TIMEOUT, Watch, served, text

_ROUNDS = 4
_WRONG = "document.querySelectorAll('[data-testid=stAlertContentError]').length"
_LONG = ("int8", "int4_g64", "int3_g64", "int2_g64")


class Person(NamedTuple):
    """One at a browser: their page, what they move there for the n-th time, and what reads the answer."""

    watch: Watch
    move: Callable[[int], None]
    answer: str


class Round(NamedTuple):
    """Milliseconds that each waited, and of the server's processors in all."""

    waited: list[float]
    server: float


def report(sessions: int, profile: SensitivityProfile) -> None:
    """Print the table; raises SystemExit where a page showed an error or the job did not run to the end of it."""
    with served() as (address, process), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        people = [_person(browser, process, address, profile, number) for number in range(sessions)]
        turns = itertools.count()
        print(f"\nPeople at one server, ms until the answer, on {os.cpu_count()} cores")
        print(f"  {'':<16} {'median':>7} {'worst':>7} {'ratio':>7} {'load':>6}   server's processor for each")
        alone = _row("one, no job", 0.0, [_in_turn(people[:2], turns) for _ in range(_ROUNDS)])
        with _long_job():
            _row("one", alone, [_in_turn(people[:2], turns) for _ in range(_ROUNDS)])
            _row(f"{sessions} in turn", alone, [_in_turn(people, turns) for _ in range(_ROUNDS // 2)])
            _row(f"{sessions} at once", alone, [_at_once(people, turns) for _ in range(_ROUNDS)])
        browser.close()


def _row(name: str, alone: float, rounds: list[Round]) -> float:
    """Print what was found; the median, which later rows are compared with."""
    waited = [value for one in rounds for value in one.waited]
    median = statistics.median(waited)
    server = sum(one.server for one in rounds) / len(waited)
    ratio, load = median / (alone or median), os.getloadavg()[0]
    print(f"  {name:<16} {median:7.0f} {max(waited):7.0f} {ratio:7.1f} {load:6.1f} {server:18.0f}", flush=True)
    return median


def _person(
    browser: Browser, process: psutil.Process, address: str, profile: SensitivityProfile, number: int
) -> Person:
    page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
    page.set_default_timeout(TIMEOUT)
    name = ("plan", "sensitivity")[number % 2]
    # From a place of their own, so that nobody's moves lead to where another has been, and none to where more bits
    # leave the plan as it is.
    page.goto(f"{address}/{name}?profile={profile.id}&bits={4.4 + 0.7 * (number // 2):.1f}")
    page.locator(CHART).first.wait_for()
    page.wait_for_timeout(1500)
    if name == "plan":
        slider = page.get_by_role("slider", name="Average bits per weight")

        def press(turn: int) -> None:
            for _ in range(2):  # less room than that may leave the plan as it is
                slider.press("ArrowRight")

        return Person(Watch(page, process), press, text(METRICS))
    layers = [layer.name for layer in profile.catalogue.quantizable if layer.block is not None]

    def click(turn: int) -> None:
        layer = layers[(37 * turn + 11 * number) % len(layers)]
        page.locator(f'[aria-label*="layer: {layer}; role"]').first.click()

    return Person(Watch(page, process), click, text("[data-testid=stTable]"))


def _in_turn(people: list[Person], turns: Iterator[int]) -> Round:
    before, waited = _server(people[0]), []
    for person in people:
        person.watch.look_out(person.answer)
        person.move(next(turns))
        waited.append(_answered(person))
    return Round(waited, _server(people[0]) - before)


def _at_once(people: list[Person], turns: Iterator[int]) -> Round:
    before = _server(people[0])
    for person in people:
        person.watch.look_out(person.answer)
    for person in people:
        person.move(next(turns))
    waited = [_answered(person) for person in people]
    return Round(waited, _server(people[0]) - before)


def _answered(person: Person) -> float:
    waited = person.watch.answered()
    person.watch.settle()
    if person.watch.page.evaluate(_WRONG):
        raise SystemExit(f"A page shows an error: {person.watch.page.inner_text('[data-testid=stAlertContentError]')}")
    return waited


def _server(person: Person) -> float:
    spent = person.watch.process.cpu_times()
    return 1000 * (spent.user + spent.system)


@contextmanager
def _long_job() -> Iterator[None]:
    """While a real job measures the demo model; it must still be measuring at the end."""
    store = pipeline.open_store()
    # Of little text, so that scores are written every moment.
    request = ProfileRequest(model="smollm2", method="exact", formats=_LONG, samples=2)
    job = jobs.submit(store, "profile", request)
    try:
        while not (found := store.job(job.id)).status.ended and not (found.progress and found.progress.done):
            time.sleep(0.2)
        yield
        found = store.job(job.id)
        if found.status is not JobStatus.RUNNING:
            raise SystemExit(f"The job beside which people moved was {found.status.value}: {found.error}")
    finally:
        jobs.cancel(store, job.id, force=True)
