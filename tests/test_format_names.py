"""Formats have one name on pages and in reports, their label: ids are for what people type and for files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from streamlit.dataframe_util import convert_arrow_bytes_to_pandas_df
from streamlit.testing.v1 import AppTest

from advisor import knowledge, pipeline
from advisor.types import ProfileRequest
from advisor.ui import wording
from advisor.ui.common import PAGES
from tests import sample_results
from tests.page_driver import REQUEST, opened

FORMATS = ("int8", "int4_g64", "int3_g64")
IDS = re.compile(rf"(?<![\w./=-])({'|'.join(knowledge.formats())})(?![\w/=-])")

# The guide is searched by what people type, so its field has the id beside the label.
_WITH_LABEL = re.compile("|".join(re.escape(f"{fmt.label} ({name})") for name, fmt in knowledge.formats().items()))


@pytest.fixture
def stored(data_folder) -> dict[str, str]:
    """A profile, plans from it (one refined), evaluations and a job: what pages have to speak of formats about."""
    store = pipeline.open_store()
    profile = store.open_profile(sample_results.profile(4, formats=FORMATS))
    request = REQUEST.model_copy(update={"locks": {"model.layers.0.mlp.up_proj": "int8"}})
    plan = pipeline.make_plan(profile, request)
    plan_id = store.save_plan(plan, profile.id)
    for variant in ("original", "plan", "uniform int8", "uniform int4_g64"):
        nll = None if variant == "original" else 0.1
        store.save_evaluation(sample_results.evaluation(variant, nll, 100_000_000), plan_id)
    job = store.create_job("profile", ProfileRequest(model="smollm2", formats=FORMATS).model_dump(mode="json"))
    refined_id = store.save_plan(sample_results.refined(plan), profile.id)
    return {"profile": profile.id, "plan": plan_id, "refined": refined_id, "job": job.id}


VIEWS = [
    *((page, {}) for page in PAGES if page != "guide"),
    *(("guide", {"topic": topic}) for topic in knowledge.guide()),
    *(("plan", {"plan": "plan", "tab": tab}) for tab in ("Against simple plans", "Giving layers back")),
    ("plan", {"plan": "plan", "tab": "Compare with another plan", "against": "simple uniform int4_g64"}),
    ("plan", {"plan": "plan", "why": "model.layers.0.mlp.down_proj"}),
    ("plan", {"plan": "refined", "why": "model.layers.0.mlp.down_proj"}),
    ("plan", {"bits": "2"}),
    ("apply", {"plan": "plan"}),
    ("model", {"job": "job"}),
    *(("history", {"kind": kind}) for kind in ("profiles", "plans", "evaluations", "jobs")),
]


@pytest.mark.parametrize(("page", "query"), VIEWS, ids=str)
def test_no_page_shows_a_formats_id(stored, page, query):
    app = opened(page, **{key: stored.get(value, value) for key, value in query.items()})
    assert not app.exception
    shown = list(_visible(app))
    assert len(shown) > 5
    found = [text for text in shown if IDS.search(_WITH_LABEL.sub("", text))]
    assert not found, found


def test_what_a_page_shows_is_seen_down_to_cells_and_charts(stored):
    """The test above would see an id wherever pages may have one."""
    shown = "\n".join(_visible(opened("plan", plan=stored["plan"], tab="Against simple plans")))
    label = knowledge.find_format("int4_g64").label
    assert f"uniform {label}" in shown.splitlines()  # a cell, or a mark of the front
    assert label in shown.splitlines()  # an option, or a cell of the map


@pytest.mark.parametrize("name", knowledge.formats())
def test_a_sentence_gets_labels_for_ids_and_keeps_paths_links_and_longer_names(name):
    label = knowledge.find_format(name).label
    assert wording.labelled(f"uniform {name}: {name}, not {name}.") == f"uniform {label}: {label}, not {label}."
    for kept in (f"/models/{name}/x", f"a-{name}", f"?formats={name}", f"{name}_mine", f"{name}.json"):
        assert wording.labelled(kept) == kept


def _visible(app: AppTest) -> Iterator[str]:
    """Every text that a reader of the page can meet: prose, labels, help, options, cells, and what charts draw."""
    for block in (app.main, app.sidebar):
        for element in _elements(block):
            proto = element.proto
            if element.type == "vega_lite_chart":
                yield from _drawn(proto)
                continue
            if element.type == "code":
                continue  # commands
            if element.type in ("dataframe", "table"):
                yield from _cells(element)
                continue
            for field in ("label", "help", "body", "value", "placeholder", "text", "alt"):
                said = getattr(proto, field, "")
                if isinstance(said, str) and said:
                    yield from said.splitlines()
            yield from (str(option) for option in getattr(element, "options", ()))


def _elements(node) -> Iterator:
    for child in getattr(node, "children", {}).values():
        if hasattr(child, "children"):
            yield from _elements(child)
        else:
            yield child


def _cells(element) -> Iterator[str]:
    frame = element.value
    for column in list(getattr(element.proto, "column_order", ())) or list(frame.columns):
        yield str(column)
        yield from map(str, frame[column])
    yield getattr(element.proto, "columns", "")  # their help and choices


def _drawn(proto) -> Iterator[str]:
    """The words of a chart's specification, and the values of all fields that it draws or tells."""
    yield proto.alt
    spec = json.loads(proto.spec)
    fields = set(re.findall(r'"field": "(\w+)"', json.dumps(spec)))
    yield from re.findall(r'"((?:[^"\\]|\\.)*)"', json.dumps(spec, ensure_ascii=False))
    for dataset in proto.datasets:
        frame = convert_arrow_bytes_to_pandas_df(dataset.data.data)
        for name in fields & set(frame.columns):
            yield from map(str, frame[name])
