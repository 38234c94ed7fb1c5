"""A database with one small profile in it, which the tests of the plan page share."""

from __future__ import annotations

import pytest

from advisor import pipeline
from tests import sample_results


@pytest.fixture
def store(data_folder):
    return pipeline.open_store()


@pytest.fixture
def profile(store):
    return store.open_profile(sample_results.profile(4))
