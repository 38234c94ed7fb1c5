"""What somebody at a browser waits for, on the database of `benchmarks.page`: first paint of pages, answers to moves.

Milliseconds on the wall are the browser's own, from the start of the navigation or from the key or click, to the first
frame with what the page is about; those of the processor are the server's, until the page is whole.
"""

from __future__ import annotations

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
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync")
# What a page is about, as a CSS selector: where it stands, the page has painted.
_METRICS, _CHART, _FIELD = "[data-testid=stMetric]", "svg.marks", "[data-testid=stMain] [data-testid=stButton]"
CONTENT = {
    "model": _FIELD,
    "sensitivity": _CHART,
    "plan": f"{_METRICS}, {_CHART}",
    "apply": _METRICS,
    "blind": _FIELD,
    "history": "[data-testid=stDataFrame]",
    "guide": "[data-testid=stMain] h3",
}
PATHS = {"model": ""}  # the first page answers at the root
_WHOLE = "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'"
_TIMEOUT = 120_000
Waited = tuple[float, float]  # milliseconds on the wall, and of the server's processor


@contextmanager
def served() -> Iterator[tuple[str, psutil.Process]]:
    """The app on a free port with the data folder of this process: its address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
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
    from playwright.sync_api import sync_playwright

    with served() as (address, process), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        opened: dict[str, list[Waited]] = {}
        moved: dict[str, list[Waited]] = {}
        for _ in range(rounds):
            context = browser.new_context(viewport={"width": 1440, "height": 1000})
            page = context.new_page()
            for name in CONTENT:
                opened.setdefault(name, []).append(
                    _open(page, f"{address}/{PATHS.get(name, name)}", CONTENT[name], process)
                )
            for name, call, answer in _moves(page, address):
                moved.setdefault(name, []).append(_move(page, call, answer, process))
            context.close()
        browser.close()
    _table("Chromium, first paint of", opened)
    _table("Chromium, answer to", moved)


def _table(title: str, found: dict[str, list[Waited]]) -> None:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"\n{title:<28} wall (worst)    server's processor   load {load} on {os.cpu_count()} cores")
    for name, waited in found.items():
        wall, spent = ([one[part] for one in waited] for part in (0, 1))
        print(f"  {name:<26} {statistics.median(wall):5.0f} ({max(wall):5.0f}) ms {statistics.median(spent):9.0f} ms")


def _open(page, url: str, content: str, process: psutil.Process) -> Waited:
    before = _processor(process)
    page.goto(url, wait_until="commit")
    wall = _when(page, "!!document.querySelector(given)", content)
    page.wait_for_function(_WHOLE, timeout=_TIMEOUT)
    return wall, _processor(process) - before


def _moves(page, address: str) -> Iterator[tuple[str, Callable[[], None], str]]:
    """(what is moved, the call that does it, what reads the text that answers)."""

    def text(selector: str) -> str:
        return f"[...document.querySelectorAll({selector!r})].map(one => one.innerText).join()"

    def ready(path: str) -> None:
        page.goto(f"{address}/{path}")
        page.locator(_CHART if "history" not in path else CONTENT["history"]).first.wait_for(timeout=_TIMEOUT)
        page.wait_for_timeout(1500)  # until charts have settled: a person looks before moving anything

    ready("plan")
    slider = page.get_by_role("slider", name="Average bits per weight")
    yield "plan, slider", lambda: slider.press("ArrowRight"), text(_METRICS)
    yield "plan, slider again", lambda: slider.press("ArrowRight"), text(_METRICS)
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


def _move(page, call: Callable[[], None], answer: str, process: psutil.Process) -> Waited:
    page.evaluate(
        f"""() => {{
            window.before = {answer};
            for (const kind of ["keydown", "click"])
                addEventListener(kind, event => window.moved = event.timeStamp, {{capture: true, once: true}});
        }}"""
    )
    before = _processor(process)
    call()
    wall = _when(page, f"{answer} !== window.before", None) - page.evaluate("window.moved")
    page.wait_for_timeout(300)
    page.wait_for_function(_WHOLE, timeout=_TIMEOUT)
    return wall, _processor(process) - before


def _when(page, condition: str, given: str | None) -> float:
    """Milliseconds since the navigation at the first frame in which the condition holds."""
    found = page.wait_for_function(
        f"given => ({condition}) && performance.now()", arg=given, polling="raf", timeout=_TIMEOUT
    )
    return float(found.json_value())


def _processor(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return 1000 * (spent.user + spent.system)
