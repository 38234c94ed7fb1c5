"""The whole road walked by a real Chromium on the real demo model; pictures of every page are kept for people."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from advisor import documents, pipeline
from advisor.ui import palette
from advisor.ui.tour import STOPS
from tests.chromium import BROWSER, SECOND, chromium, free_port, new_page, served, sync_api

TIMEOUT = 420 * SECOND  # states are waited for, jobs among them; a machine with other work takes its time

pytestmark = BROWSER


@pytest.fixture
def server(tmp_path, data_folder) -> Iterator[str]:
    """The app on a free port with a data folder of its own."""
    with served(tmp_path, free_port()) as address:
        yield address


@pytest.fixture
def browser() -> Iterator[sync_api.Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = Path(os.environ.get("ADVISOR_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.network
def test_two_people_walk_from_the_demo_model_to_reasons_and_to_predicted_against_measured(
    server, browser, pictures, demo_models_dir
):
    page, other = new_page(browser, TIMEOUT), new_page(browser, TIMEOUT)
    page.goto(f"{server}/model")
    _estimate_and_profile_two_blocks(page, pictures)
    with _held_job(page):
        page.reload()
        other.goto(page.url)
        for either in (page, other):
            either.get_by_text("Profiling smollm2").wait_for()
            either.get_by_role("button", name="Pause").wait_for()
    see = page.get_by_role("button", name="See the sensitivity")
    see.wait_for()
    other.get_by_role("button", name="See the sensitivity").wait_for()
    _picture(page, pictures, "1-model")

    see.click()
    page.get_by_text("14 of 211").wait_for()
    page.get_by_role("img").first.wait_for()
    page.get_by_role("link", name="Make a plan from these scores").click()
    page.get_by_role("heading", name="Plan", exact=True).wait_for()
    _see_charts_follow_the_system(page)
    _go_back_and_forward(page, "Sensitivity", "Plan")
    plan = _download_plan(page)
    _picture(page, pictures, "3-plan")
    assert {name.split(".")[2] for name in plan["assignments"]} == {"0", "29"}
    assert plan["memory"]["decided_bits"] <= 5.0

    page.get_by_role("button", name="Apply and evaluate").click()
    page.get_by_role("heading", name="Measure it on held-out text").wait_for()
    _fill_number(page, "Tokens", 512)
    page.get_by_role("button", name="Apply and evaluate").click()
    with _held_job(page):
        other.goto(page.url)
        other.get_by_role("button", name="Pause").wait_for()
        _ask_why_by_clicks_alone(other, plan, pictures)
    page.get_by_text("Applied, verified and measured; the results are below.").wait_for()
    # The chart says its numbers to screen readers: that is what is read here.
    said = page.get_by_label(re.compile(r"plan predicted [+−][\d.]+ %; plan measured [+−][\d.]+ %"))
    said.first.wait_for(state="attached")
    page.get_by_text("The plan changes perplexity by").wait_for()
    _picture(page, pictures, "4-apply")
    report = _download(page, "Download report", "report.html").read_text(encoding="utf-8")
    assert [name for name in plan["assignments"] if name not in report] == []
    assert "Prediction against measurements" in report

    page.get_by_test_id("stTopNav").get_by_role("link", name="History").click()
    page.get_by_role("radio", name="Evaluations (4)").wait_for()
    _picture(page, pictures, "5-history")

    variants = {evaluation.variant: evaluation for evaluation in pipeline.open_store().evaluations()}
    assert set(variants) == {"original", "plan", "uniform int8", "uniform int4_g64"}
    assert variants["plan"].kl_to_original < variants["uniform int4_g64"].kl_to_original


@pytest.mark.network
def test_the_guided_tour_walks_the_whole_road_and_survives_a_refresh(server, browser, pictures, demo_models_dir):
    page = new_page(browser, TIMEOUT)
    page.goto(server)
    page.get_by_role("button", name="Take the tour").click()
    for number, stop in enumerate(STOPS[:-1], 1):
        page.get_by_text(f"stop {number} of {len(STOPS)}").wait_for()
        if stop.job == "profile":
            with _held_job(page):
                page.reload()
                page.get_by_role("button", name="Pause").wait_for()
        page.get_by_role("button", name=stop.onward).click()  # waits until the work of the stop is done
    page.get_by_text("The plan changes perplexity by").wait_for()
    _picture(page, pictures, "6-tour")
    variants = {evaluation.variant for evaluation in pipeline.open_store().evaluations()}
    assert variants == {"original", "plan", "uniform int4_g64"}
    assert [job.kind for job in reversed(pipeline.open_store().jobs())] == ["inspect", "profile", "apply"]
    page.get_by_role("button", name=STOPS[-1].onward).click()
    page.get_by_role("textbox", name="Hub id, folder or GGUF file").wait_for()


@contextmanager
def _held_job(page: sync_api.Page) -> Iterator[None]:
    """The job that the page shows, stopped by a signal: it is sure to be in its midst, however fast the machine."""
    page.get_by_role("button", name="Pause").wait_for()
    (job,) = pipeline.open_store().jobs(active_only=True)
    os.kill(job.pid, signal.SIGSTOP)
    try:
        yield
        assert [other.id for other in pipeline.open_store().jobs(active_only=True)] == [job.id]
    finally:
        os.kill(job.pid, signal.SIGCONT)


def _estimate_and_profile_two_blocks(page: sync_api.Page, pictures: Path) -> None:
    page.get_by_role("heading", name="Which layers can take fewer bits?").wait_for()
    _fill_number(page, "Samples", 2)
    _fill_number(page, "Sequence length (tokens)", 64)
    page.get_by_text("Advanced: layers, drawn labels, dtype").click()
    layers = page.get_by_role("textbox", name="Layers")
    layers.fill(r".*layers\.(0|29)\..*")
    layers.press("Enter")
    page.get_by_role("button", name="Estimate first").click()
    page.get_by_text("Estimating smollm2").wait_for()
    profile = page.get_by_role("button", name="Profile as estimated")
    profile.wait_for()
    page.get_by_text("Distance from evaluation text").wait_for()
    page.get_by_text("128 tokens are few").wait_for()
    _picture(page, pictures, "0-estimate")
    profile.click()
    page.get_by_text("Profiling smollm2").wait_for()


def _ask_why_by_clicks_alone(page: sync_api.Page, plan: dict, pictures: Path) -> None:
    """From a cell of the heatmap to the layer's card, and on to the reason of its format on the plan page."""
    layer = "model.layers.29.mlp.down_proj"
    page.get_by_test_id("stTopNav").get_by_role("link", name="Sensitivity").click()
    page.get_by_role("heading", name="Where it hurts").wait_for()
    page.get_by_label(re.compile(f"layer: {re.escape(layer)}; role")).first.click()
    page.get_by_text(f"{layer} · MLP").wait_for()
    page.get_by_text("In this plan:").wait_for()
    _picture(page, pictures, "2-sensitivity")
    page.get_by_role("link", name="The rules and what else was possible").click()
    page.get_by_role("combobox", name="Why this format?").wait_for()
    page.get_by_test_id("stMarkdown").get_by_text(plan["reasons"][layer]["text"]).wait_for()
    _picture(page, pictures, "3-why")


def _go_back_and_forward(page: sync_api.Page, before: str, here: str) -> None:
    """One step each way, and the page is as it was left."""
    slider = page.get_by_role("slider", name="Average bits per weight")
    page.wait_for_url(re.compile(r"[?&]bits="))  # what the page begins with is in its link
    begun = page.url
    slider.press("ArrowRight")
    page.wait_for_url(lambda url: url != begun)
    link = page.url
    page.go_back()
    page.get_by_role("heading", name=before, exact=True).wait_for()
    page.go_forward()
    page.get_by_role("heading", name=here, exact=True).wait_for()
    page.wait_for_url(link)
    slider.press("ArrowLeft")
    page.wait_for_url(lambda url: url != link)
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
    # What was drawn before goes when all is drawn again.
    sync_api.expect(page.get_by_role("button", name="Download JSON")).to_have_count(1, timeout=TIMEOUT)


def _see_charts_follow_the_system(page: sync_api.Page) -> None:
    for scheme in ("light", "dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.locator(f'svg text[fill="{palette.ink(scheme == "dark")}"]').first.wait_for()


def _download_plan(page: sync_api.Page) -> dict:
    text = _download(page, "Download JSON", "plan.json").read_text(encoding="utf-8")
    assert documents.check_plan_document(text).model.source == "smollm2"
    return json.loads(text)


def _download(page: sync_api.Page, button: str, name: str) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    assert download.value.suggested_filename == name
    return Path(download.value.path())


def _fill_number(page: sync_api.Page, label: str, value: int) -> None:
    field = page.get_by_role("spinbutton", name=label, exact=True)
    field.fill(str(value))
    field.press("Enter")


def _picture(page: sync_api.Page, folder: Path, name: str) -> None:
    page.wait_for_timeout(1500)  # charts fade in; there is no event for their end
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
    height = page.get_by_test_id("stMain").evaluate("element => element.scrollHeight")
    page.set_viewport_size({"width": 1440, "height": min(height + 80, 4000)})
    page.wait_for_timeout(800)
    page.screenshot(path=folder / f"{name}.png")
    page.set_viewport_size({"width": 1440, "height": 1000})
