"""The report: one file that fetches nothing, holds what the plan says, and tells how to make it again."""

from __future__ import annotations

import base64
import json
import re
import shlex
from dataclasses import fields
from html.parser import HTMLParser

import pytest
from lxml import etree
from typer.main import get_command
from typer.testing import CliRunner

from advisor import pipeline, reproduce
from advisor.cli import commands, requests
from advisor.errors import PlanError
from advisor.folders import PLAN_FILE, RECORD_FILE
from advisor.types import Budget, ExportRecord, PlanRequest, Verification
from advisor.ui import report, wording
from tests import sample_results
from tests.page_driver import REQUEST, opened, said

MEASURED = {"original": None, "uniform int4_g64": 0.27, "plan": 0.03}


class Page(HTMLParser):
    """What a report holds: its text, what it would fetch, its images, and tags that were never closed."""

    _VOID = {"meta", "br", "img", "source", "link", "hr", "input"}

    def __init__(self, text: str):
        super().__init__()
        self.fetched, self.links, self.images, self.open, self.words, self.scripts = [], [], [], [], [], 0
        self.feed(text)
        self.said = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.scripts += tag == "script" or any(name.startswith("on") for name in given)
        self.fetched += [given[name] for name in ("src", "srcset", "data", "action") if name in given]
        if tag == "a":
            self.links.append(given["href"])
        elif "href" in given:
            self.fetched.append(given["href"])
        if tag == "img":
            self.images.append(given)
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def profile():
    return sample_results.estimated_profile()


@pytest.fixture(scope="module")
def plan(profile):
    return pipeline.make_plan(profile, REQUEST)


@pytest.fixture(scope="module")
def evaluations():
    return [sample_results.evaluation(variant, delta, 10**8) for variant, delta in MEASURED.items()]


@pytest.fixture(scope="module")
def page(profile, plan, evaluations):
    return Page(report.html(plan, profile, evaluations))


def svg(image: str) -> bytes:
    return base64.b64decode(image.removeprefix("data:image/svg+xml;base64,"))


def test_the_report_is_whole_html_and_fetches_nothing(page):
    assert page.open == [] and page.scripts == 0
    assert page.fetched and all(address.startswith("data:image/svg+xml;base64,") for address in page.fetched)
    assert all(link.startswith(("#", "https://", "http://")) for link in page.links)


def test_every_chart_is_a_drawing_with_words_for_those_who_cannot_see_it(page):
    assert len(page.images) == 6  # map, memory, front, predicted against measured, heatmap, bars
    for image in page.images:
        drawing = etree.fromstring(svg(image["src"]))
        assert drawing.tag.endswith("svg") and image["alt"]
        assert not drawing.xpath("//*[local-name()='image' or local-name()='script']")
        assert b"http" not in svg(image["src"]).replace(b"http://www.w3.org/", b"")


def test_dark_readers_get_charts_in_light_inks(page):
    dark = [svg(address) for address in page.fetched if address not in {image["src"] for image in page.images}]
    assert len(dark) == len(page.images)
    assert all(b"#4a5463" not in drawing and b"#c3cad4" in drawing for drawing in dark)


def test_the_numbers_are_the_plans(page, plan, profile):
    assert wording.number(plan.predicted.perplexity, 4) in page.said
    assert wording.percent(plan.predicted.delta_ppl_pct) in page.said
    for count in (plan.memory.total_bytes, plan.memory.kv_cache_bytes, plan.memory.model_weights_bytes):
        assert wording.size(count) in page.said
    assert f"{plan.memory.decided_bits:.2f}" in page.said
    for name, fmt in plan.assignments.items():
        assert f"{name} {wording.format_label(fmt)}" in page.said
        assert plan.reasons[name].text in page.said
    assert profile.id in page.said and profile.catalogue.architecture in page.said


def test_why_not_is_said_of_every_other_format(page, plan):
    other = next(o for reason in plan.reasons.values() for o in reason.alternatives if o.delta_loss is not None)
    assert f"{wording.format_label(other.format)}: {wording.signed(other.delta_loss)} nats" in page.said
    ban = next(
        verdict.reason
        for name in plan.assignments
        for other in plan.reasons[name].alternatives
        for verdict in other.verdicts
        if not verdict.allowed and verdict.rule != "measurement"
    )
    assert f"not possible, {ban}" in page.said
    assert "Formats that no layer was measured in: FP8 E4M3" in page.said and page.said.count("FP8 E4M3") == 1


def test_measurements_stand_beside_the_prediction(page):
    assert "The plan changes perplexity by +3.0 %" in page.said and "It beats uniform INT4 group 64" in page.said


def test_a_refined_plan_shows_its_contest_and_does_not_stand_among_predictions(plan, profile):
    found = Page(report.html(sample_results.refined(plan), profile))
    assert "Refined on the model" in found.said and "scores alone" in found.said
    assert "This plan is not drawn" in found.said and "Measured perplexity" in found.said


def test_what_came_from_outside_is_escaped(plan, profile):
    name = '<script>alert(1)</script>"&'
    bad = plan.model_copy(update={"model": plan.model.model_copy(update={"name": name})})
    text = report.html(bad, profile, name="<img src=x onerror=alert(2)>")
    found = Page(text)
    assert found.scripts == 0 and "<script" not in text and name in found.said
    assert len(found.images) == 5


def test_without_a_profile_the_report_says_what_is_missing(plan):
    found = Page(report.html(plan))
    assert "need the sensitivity profile" in found.said and "Why each layer has its format" in found.said
    assert len(found.images) == 1  # memory is the plan's own


def test_a_profile_of_another_model_is_refused(plan):
    with pytest.raises(PlanError, match="other|another"):
        report.html(plan, sample_results.profile(4, fingerprint="cd" * 32))


def test_how_the_files_were_checked_is_told(plan, profile):
    checked = Verification(
        layers=28, bytes=10**8, largest_row_difference=1e-4, row_tolerance=0.01, tokens=256, kl=1e-6, kl_tolerance=1e-3
    )
    said = {"size_note": "2.00 MiB, 1.00 MiB more than planned: int4_g64", "over_limit": "the files take 8.00 bits"}
    record = ExportRecord(target="quanto", verified=checked, versions={"torch": "2.13.0"}, **said)
    found = Page(report.html(plan, profile, record=record))
    assert "more than planned: INT4 group 64." in found.said and "Limit. The files take 8.00 bits." in found.said
    assert "Read back after writing" in found.said and "28 layers" in found.said and "files: torch" in found.said


# ------------------------------------------------------------------------------------------ made again


BUDGETS = [
    Budget(weight_bits=4.625),
    Budget(weight_bytes=123_456_789, context=8192, sequences=4, kv_bits=8),
    Budget(vram_bytes=24 * 10**9, gpus=2),
    Budget(max_ppl_increase=0.07, weight_bytes=1_000_001),
]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_the_commands_ask_for_the_very_plan(plan, profile, budget):
    request = PlanRequest(
        hardware="rtx-4090",
        engine="transformers",
        budget=budget,
        locks={"block 3": "int8", r"model\.layers\.0\..*": "bf16"},
        excluded=("lm_head",),
        formats=("int8", "int4_g64"),
        role_floors="enforce",
        floor_bits={"mlp_down": 8},
    )
    asked = plan.model_copy(update={"request": request})
    lines = reproduce.commands(asked, profile)
    parsed = {}
    for line in lines:
        _, _, _, name, *arguments = shlex.split(line)
        parsed[name] = get_command(commands.app).commands[name].make_context(name, arguments).params
    assert list(parsed) == ["profile", "plan", "apply", "evaluate"]
    given = parsed["plan"]
    limits = requests.limits(given["vram"], given["weights"], given["max_ppl_increase"])
    wishes = requests.Wishes(**{one.name: given[one.name] for one in fields(requests.Wishes)})
    again = wishes.request(profile, limits)
    assert again == request
    assert parsed["profile"]["draws"] == profile.calibration.draws


# --------------------------------------------------------------------------------- command and pages


def test_the_command_writes_the_report(tmp_path, plan, profile, evaluations):
    files = {name: tmp_path / f"{name}.json" for name in ("plan", "profile", "evaluation")}
    files["plan"].write_text(plan.model_dump_json())
    files["profile"].write_text(profile.model_dump_json())
    # As `evaluate --against` prints it: a folder's name, and the original inside.
    own = evaluations[-1].model_copy(update={"variant": "model", "original": evaluations[0]})
    files["evaluation"].write_text(own.model_dump_json())
    out = tmp_path / "report.html"
    arguments = ["report", str(files["plan"]), "--profile", str(files["profile"]), "--out", str(out), "--json"]
    done = CliRunner().invoke(commands.app, [*arguments, "--evaluation", str(files["evaluation"])])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == {"report": str(out), "bytes": out.stat().st_size, "left_out": []}
    assert "The plan changes perplexity by +3.0 %" in Page(out.read_text()).said


def test_the_command_refuses_documents_of_another_kind(tmp_path, plan):
    file = tmp_path / "plan.json"
    file.write_text(plan.model_dump_json())
    refused = CliRunner().invoke(commands.app, ["report", str(file), "--evaluation", str(file)])
    assert isinstance(refused.exception, PlanError) and "This is a plan, not a record" in str(refused.exception)


def test_the_command_refuses_an_export_of_another_plan(tmp_path, plan):
    file, other = tmp_path / "given.json", plan.model_copy(update={"assignments": {}})
    file.write_text(plan.model_dump_json())
    (tmp_path / RECORD_FILE).write_text(ExportRecord(target="quanto").model_dump_json())
    (tmp_path / PLAN_FILE).write_text(other.model_dump_json())
    refused = CliRunner().invoke(commands.app, ["report", str(file), "--export", str(tmp_path)])
    assert isinstance(refused.exception, PlanError) and "was written from another plan" in str(refused.exception)


def test_pages_offer_plan_profile_and_report(data_folder, profile, plan):
    store = pipeline.open_store()
    store.open_profile(profile)
    plan_id = store.save_plan(plan, profile.id, "mine")
    labels = {button.proto.label for button in opened("apply", plan=plan_id).get("download_button")}
    assert {"Download JSON", "Download profile", "Download report"} <= labels
    app = opened("plan", profile=profile.id)
    assert "Download report" in {button.proto.label for button in app.get("download_button")}
    assert not re.search("Something went wrong", said(app))
