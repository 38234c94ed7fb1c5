"""Plan documents: read as they were written, refused by the field that is wrong, and as the published schema says."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from advisor import documents
from advisor.errors import PlanError
from tests import planning_cases
from tests.conftest import REPOSITORY


def test_a_plan_document_survives_the_journey_and_a_foreign_one_is_refused_by_its_field():
    plan = planning_cases.plan_for()
    text = plan.model_dump_json()
    assert documents.check_plan_document(text) == plan
    layer = next(iter(plan.assignments))
    wrong = {
        "schema_version": 2,
        "memory.weights_bytes": "much",
        "assignments.bad name": 7,
        "request.hardware": "abacus",
        "request.engine": "steam",
    }
    for path, value in wrong.items():
        document = json.loads(text)
        *parents, last = path.split(".")
        inner = document
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
        with pytest.raises(PlanError, match=path.replace(".", r"\.")):
            documents.check_plan_document(json.dumps(document))
    document = json.loads(text)
    document["assignments"][layer] = "int5"
    with pytest.raises(PlanError, match=rf"assignments\.{re.escape(layer)}: .*int5"):
        documents.check_plan_document(json.dumps(document))
    document = json.loads(text) | {"surprise": 1}
    with pytest.raises(PlanError, match="surprise"):
        documents.check_plan_document(json.dumps(document))
    with pytest.raises(PlanError, match="not JSON"):
        documents.check_plan_document(text[:-5])


def test_the_published_schema_is_the_one_in_use_and_accepts_a_plan():
    published = json.loads((REPOSITORY / "docs" / "plan.schema.json").read_text())
    assert published == documents.plan_schema(), "python -m advisor schema > docs/plan.schema.json"
    jsonschema.validate(json.loads(planning_cases.plan_for().model_dump_json()), published)
