"""The guide's page: every topic at its own address, found by typing, and linked from where it is needed."""

from __future__ import annotations

import pytest

from advisor import guide, knowledge, pipeline
from advisor.marks import usual_range
from advisor.table_files import folders
from advisor.ui import guide_charts
from advisor.ui.common import PAGES
from advisor.ui.guide_figures import FIGURES
from tests import sample_results
from tests.page_driver import REQUEST, opened, said

TOPICS = tuple(knowledge.guide())


def guide_links(app) -> list[dict[str, str]]:
    """The queries of the links to the guide on a page."""
    found = [link.proto for link in app.get("page_link") if link.proto.label.startswith("Guide: ")]
    return [dict(part.split("=") for part in link.query_string.split("&")) for link in found]


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_has_an_address_and_says_all_of_it_with_sources(topic):
    app = opened("guide", topic=topic)
    assert not app.exception and not app.error
    assert app.get_by_key("choose_topic").value == topic and app.query_params["topic"] == topic
    shown = said(app)
    for section in guide.topics()[topic].sections:
        assert section.title in shown
        for one in section.statements:
            assert one.says in shown and one.title in shown and one.source in shown


def test_figures_that_the_table_names_are_drawn_and_none_is_forgotten():
    named = [section.figure for topic in knowledge.guide().values() for section in topic.sections if section.figure]
    assert sorted(named) == sorted(FIGURES)


def test_an_unknown_topic_opens_the_first():
    app = opened("guide", topic="astrology")
    assert app.get_by_key("choose_topic").value == TOPICS[0] and not app.error


def test_what_is_typed_leads_to_its_topic_and_row():
    app = opened("guide", topic="evaluation")
    app.selectbox(key="guide_find").set_value("NVIDIA T4 16 GB · device").run()
    assert app.get_by_key("choose_topic").value == "hardware"
    assert app.selectbox(key="choose_shown_device").value == "t4" and app.selectbox(key="guide_find").value is None
    app.selectbox(key="guide_find").set_value("GPTQ · method").run()
    assert [box.label for box in app.expander if box.proto.expanded] == [
        f"**GPTQ** · {knowledge.find_method('gptq').use_when}"
    ]


def test_another_topic_is_read_from_its_beginning():
    app = opened("guide", topic="roles")
    scripts = [element.proto.body for element in app.get("html") if "scrollTo" in element.proto.body]
    assert scripts == []
    app.get_by_key("choose_topic").set_value("methods").run()
    assert len([element for element in app.get("html") if "scrollTo" in element.proto.body]) == 1


def test_everything_that_can_be_found_leads_somewhere():
    entries = guide.entries()
    assert len({entry.label for entry in entries}) == len(entries)
    rows = {
        "shown_device": knowledge.hardware(),
        "shown_format": knowledge.formats(),
        "shown_method": knowledge.methods(),
    }
    for entry in entries:
        assert entry.query["topic"] in TOPICS
        assert all(value in rows[key] for key, value in entry.query.items() if key != "topic")


def test_tables_of_ones_own_change_what_the_page_shows(own_tables):
    marks = folders()[0] / "marks.toml"
    own_tables("marks.toml", marks.read_text().replace("value = 10,", "value = 12,"))
    assert usual_range() == "5–12 %"
    assert "within what is usually accepted (5–12 %)" in said(opened("guide", topic="evaluation"))


def test_a_models_size_follows_its_parameters():
    app = opened("guide", topic="formats", billions="70")
    assert "| BF16 | 16 | 140.00 | 100 % | negligible |" in said(app)
    assert "| INT4 group 64 | 4.25 | 37.19 | 27 % | small (2–5 %) |" in said(app)


@pytest.mark.parametrize("fmt", ["fp32", "int8_w8a8", "int2_g64"])
def test_a_format_can_be_looked_at(fmt):
    app = opened("guide", topic="formats", shown_format=fmt, stored_by="llama.cpp-k-quants")
    assert not app.error and not app.exception and knowledge.find_format(fmt).description in said(app)


@pytest.mark.parametrize("dark", [False, True])
def test_the_matrix_says_every_status_in_words_and_marks_where_the_guide_differs(dark):
    kinds = guide.device_kinds()
    frame = guide_charts.support_frame(kinds, dark)
    assert len(frame) == len(kinds) * len(guide.families())
    assert set(frame["word"]) <= {word for word, _ in guide_charts.STATUS.values()}
    h100 = frame[frame["devices"].str.contains("H100 SXM") & (frame["family"] == "INT4")].iloc[0]
    assert (h100["text"], h100["guide"]) == (f"weights only {guide_charts.DIFFERS}", "native")
    assert (frame["text"].str.endswith(guide_charts.DIFFERS) == frame["differs"]).all()
    guide_charts.support_matrix(kinds, dark).to_dict()  # checks the specification against the schema of Vega-Lite
    guide_charts.format_bars(guide.format_sizes(), dark).to_dict()
    guide_charts.role_bars(list(knowledge.roles().values()), dark).to_dict()
    guide_charts.batch_scale(knowledge.batch_marks(), dark).to_dict()
    guide_charts.gain_bars({("INT4", "GPTQ"): 28.5}, dark).to_dict()


# ---------------------------------------------------------------------------------------------- links to it


@pytest.fixture
def saved_plan(data_folder):
    store = pipeline.open_store()
    profile = store.open_profile(sample_results.profile(4))
    plan = store.save_plan(pipeline.make_plan(profile, REQUEST), profile.id)
    store.save_evaluation(sample_results.evaluation("original", None, 10**8), plan_id=plan)
    store.save_evaluation(sample_results.evaluation("plan", 0.03, 10**7), plan_id=plan)
    return plan


@pytest.mark.parametrize(
    ("page", "topics"),
    [
        ("model", {"calibration", "formats"}),
        ("sensitivity", {"roles"}),
        ("plan", {"decision", "hardware", "roles"}),
        ("apply", {"methods", "evaluation", "calibration"}),
    ],
)
def test_topics_are_linked_from_where_they_are_needed(saved_plan, page, topics):
    links = guide_links(opened(page))
    assert {link["topic"] for link in links} == topics <= set(TOPICS)


def test_the_plan_pages_device_is_the_one_that_the_guide_opens_with(saved_plan):
    links = {link["topic"]: link for link in guide_links(opened("plan", device="t4", engine="vllm"))}
    app = opened("guide", **links["hardware"])
    assert app.selectbox(key="choose_shown_device").value == "t4"


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_leads_back_to_a_page(topic):
    assert knowledge.guide()[topic].page in PAGES


@pytest.mark.parametrize("name", ["production", "research"])
def test_a_deployment_of_the_guide_fills_in_the_plan_page(saved_plan, name):
    row = knowledge.find_scenario(name)
    app = opened("plan", scenario=name)
    assert not app.exception
    assert (app.selectbox(key="choose_device").value, app.selectbox(key="choose_engine").value) == (
        row.hardware,
        row.engine,
    )
    assert app.number_input(key="sequences").value == row.sequences and "scenario" not in app.query_params
    app.selectbox(key="choose_device").set_value("h100-sxm-80gb").run()
    assert app.selectbox(key="choose_device").value == "h100-sxm-80gb"
