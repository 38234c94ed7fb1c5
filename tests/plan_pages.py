"""A database with one small profile in it, which the tests of the plan page share."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from advisor import pipeline
from advisor.types import Plan
from tests import sample_results
from tests.page_driver import REQUEST


@pytest.fixture
def store(data_folder):
    return pipeline.open_store()


@pytest.fixture
def profile(store):
    return store.open_profile(sample_results.profile(4))


def planned(profile, bits: float = 5.0) -> Plan:
    """The plan of the pages' request within these average bits."""
    budget = REQUEST.budget.model_copy(update={"weight_bits": bits})
    return pipeline.make_plan(profile, REQUEST.model_copy(update={"budget": budget}))


def upload(app: AppTest, plan: Plan) -> AppTest:
    """The page with this plan opened from a file."""
    return app.file_uploader[0].set_value(("mine.json", plan.model_dump_json().encode(), "application/json")).run()
