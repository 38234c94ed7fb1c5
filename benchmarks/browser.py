"""What somebody at a browser waits for, on the database of `benchmarks.page`: first paint of pages, answers to moves.

Milliseconds on the wall are the browser's own, from the start of the navigation or from the key or click to the first
frame with the page's own content or the answer, and to the last chart; "painted" is the browser's first contentful
paint. Those of processors are the server's and the page's main thread's, until all is drawn: on a busy machine they say
more than the wall does. Streamlit sends what a slider's key has moved at once. Beside them stands a page with a button,
a slider, its number and nothing else: what Streamlit itself takes, for a browser that has its code still to fetch, as
it is when it opens our first page, and for one that has it.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil
from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

ROOT = Path(__file__).parents[1]
_BARE = """
import streamlit as st
st.button("nothing else")
st.metric("its number", st.select_slider("a slider", range(100)))
"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync")
# What a page is about, as a CSS selector: where it stands, the page has painted.
METRICS, CHART, _FIELD = "[data-testid=stMetric]", "svg.marks", "[data-testid=stMain] [data-testid=stButton]"
CONTENT = {
    "model": _FIELD,
    "sensitivity": METRICS,
    "plan": METRICS,
    "apply": METRICS,
    "blind": _FIELD,
    "history": "[data-testid=stDataFrame]",
    "guide": "[data-testid=stMain] h3",
}
PATHS = {"model": ""}  # the first page answers at the root
_WHOLE = "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'"
TIMEOUT = 120_000
_CHARTS = {"sensitivity": 2, "plan": 3, "apply": 1}


class Waited(NamedTuple):
    """Milliseconds: on the wall until the first and the last of it, and of processors.

    Attributes:
        painted: until the browser painted anything of a page that it opened, its title or the outlines of what comes.
    """

    first: float
    last: float
    server: float
    page: float
    painted: float = math.nan


@contextmanager
def served(script: Path = ROOT / "app.py") -> Iterator[tuple[str, psutil.Process]]:
    """An app on a free port with the data folder of this process: its address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(script), "--server.port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=2).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


def report(rounds: int) -> None:
    """Print both tables."""
    with served() as (address, process), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        opened, moved = _bare(browser, rounds)
        for _ in range(rounds):
            page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
            page.set_default_timeout(TIMEOUT)
            watch = Watch(page, process)
            for name, content in CONTENT.items():
                url = f"{address}/{PATHS.get(name, name)}"
                opened.setdefault(name, []).append(watch.opening(url, content, _CHARTS.get(name, 0)))
            for name, call, answer in _moves(page, address):
                moved.setdefault(name, []).append(watch.moving(call, answer))
            page.context.close()
        browser.close()
    _table("Chromium opens", opened)
    _table("Chromium answers to", moved)


def _bare(browser: Browser, rounds: int) -> tuple[dict[str, list[Waited]], dict[str, list[Waited]]]:
    """A page with next to nothing on it, opened and moved."""
    opened: dict[str, list[Waited]] = {}
    moved: dict[str, list[Waited]] = {"one slider": []}
    with TemporaryDirectory() as folder:
        script = Path(folder) / "bare.py"
        script.write_text(_BARE)
        with served(script) as (address, process):
            for _ in range(rounds):
                page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
                page.set_default_timeout(TIMEOUT)
                watch = Watch(page, process)
                for name in ("one slider, new", "one slider"):
                    opened.setdefault(name, []).append(watch.opening(address, METRICS, 0))
                slider = page.get_by_role("slider")
                press = partial(slider.press, "ArrowRight")
                moved["one slider"].append(watch.moving(press, text(METRICS)))
                page.context.close()
    return opened, moved


def _table(title: str, found: dict[str, list[Waited]]) -> None:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"\n{title}, medians in ms; load {load} on {os.cpu_count()} cores")
    print(f"  {'':<20} {'painted':>7} {'first':>7} {'worst':>7} {'all':>7}   processor of {'server':>7} {'page':>7}")
    for name, waited in found.items():
        first, last, server, page, painted = (statistics.median(part) for part in zip(*waited, strict=True))
        worst, seen = max(one.first for one in waited), "" if math.isnan(painted) else f"{painted:.0f}"
        print(
            f"  {name:<20} {seen:>7} {first:7.0f} {worst:7.0f} {last:7.0f} {'':14} {server:7.0f} {page:7.0f}",
            flush=True,
        )


class Watch:
    """A page with the clocks that run while it opens and is moved."""

    def __init__(self, page: Page, process: psutil.Process) -> None:
        self.page, self.process = page, process
        self.session: CDPSession = page.context.new_cdp_session(page)
        self.session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def opening(self, url: str, content: str, charts: int) -> Waited:
        server, thread = self._processors()
        self.page.goto(url, wait_until="commit")
        first = self._when(f"!!document.querySelector({content!r})")
        last = self._when(f"{_WHOLE} && document.querySelectorAll({CHART!r}).length >= {charts}")
        after = self._processors()
        # A new page's thread starts its count anew where the browser gives it another process.
        thread = thread if after[1] >= thread else 0
        painted = self.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN")
        return Waited(first, last, after[0] - server, after[1] - thread, painted)

    def moving(self, call: Callable[[], None], answer: str) -> Waited:
        server, thread = self._processors()
        self.look_out(answer)
        call()
        first = self.answered()
        last = self._when(_WHOLE) - float(self.page.evaluate("window.moved"))
        after = self._processors()
        return Waited(first, last, after[0] - server, after[1] - thread)

    def look_out(self, answer: str) -> None:
        """From now on the page itself notes when a key or click comes and when what `answer` reads has changed."""
        self.page.evaluate(
            f"""() => {{
                const before = {answer};
                for (const kind of ["keydown", "click"])
                    addEventListener(kind, event => window.moved = event.timeStamp, {{capture: true, once: true}});
                window.answered = 0;
                const look = () => {{
                    if ({answer} !== before) window.answered = performance.now(); else requestAnimationFrame(look);
                }};
                look();
            }}"""
        )

    def answered(self) -> float:
        """Milliseconds from the key or click after `look_out` to the first frame with its answer."""
        return float(self.page.wait_for_function("window.answered && window.answered - window.moved").json_value())

    def settle(self) -> None:
        """Wait until the server has said all."""
        self._when(_WHOLE)

    def _when(self, condition: str) -> float:
        """Milliseconds since the navigation at the first frame in which the condition holds."""
        found = self.page.wait_for_function(f"({condition}) && performance.now()", polling="raf")
        return float(found.json_value())

    def _processors(self) -> tuple[float, float]:
        spent = self.process.cpu_times()
        told = self.session.send("Performance.getMetrics")["metrics"]
        thread = next(one["value"] for one in told if one["name"] == "TaskDuration")
        return 1000 * (spent.user + spent.system), 1000 * thread


def text(selector: str) -> str:
    """What reads the text of all that the CSS selector finds."""
    return f"[...document.querySelectorAll({selector!r})].map(one => one.innerText).join()"


def _moves(page: Page, address: str) -> Iterator[tuple[str, Callable[[], None], str]]:
    """(what is moved, the call that does it, what reads the text that answers)."""

    def ready(path: str) -> None:
        page.goto(f"{address}/{path}")
        page.locator(CHART if "history" not in path else CONTENT["history"]).first.wait_for()
        page.wait_for_timeout(1500)  # until charts have settled: a person looks before moving anything

    ready("plan")
    slider = page.get_by_role("slider", name="Average bits per weight")
    yield "plan, slider", lambda: slider.press("ArrowRight"), text(METRICS)
    yield "plan, slider again", lambda: slider.press("ArrowRight"), text(METRICS)
    simple = page.get_by_role("tab", name="Against simple plans")
    yield "plan, tab", simple.click, text("[role=tabpanel]")
    ready("sensitivity")
    for name in ("model.layers.3.mlp.down_proj", "model.layers.17.self_attn.v_proj"):
        cell = page.locator(f'[aria-label*="layer: {name}; role"]').first
        yield "sensitivity, cell", lambda cell=cell: cell.click(), text("[data-testid=stTable]")
    against = page.get_by_role("tab", name="Where bytes are cheap and where dear")
    yield "sensitivity, tab", against.click, text("[role=tabpanel]")
    ready("history")
    field = page.get_by_role("textbox", name="Search")
    field.fill("5.")
    yield "history, search", lambda: field.press("Enter"), text("[data-testid=stButtonGroup]")
