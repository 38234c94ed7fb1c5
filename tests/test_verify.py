"""What files hold is held against the plan: every difference is a sentence with the layer's name."""

from dataclasses import replace

import pytest

from advisor.catalogue import catalogue_model
from advisor.knowledge import find_engine
from advisor.memory import weights_bytes
from advisor.stored import Stored
from advisor.types import ModelRef
from advisor.verify import differences, expected
from tests.test_apply import a_plan
from tests.tiny_models import tiny_model

UP = "model.layers.0.mlp.up_proj"
REF = ModelRef(source="tiny", kind="folder", name="tiny")


@pytest.fixture(scope="module")
def catalogue():
    return catalogue_model(tiny_model("llama"), REF)


@pytest.fixture(scope="module")
def plan(catalogue):
    layers = [layer.name for layer in catalogue.quantizable if layer.block is not None]
    formats = ["int8", "int4_g64", "fp32"]
    return a_plan(catalogue, {name: formats[i % 3] for i, name in enumerate(layers)} | {UP: "int4_g64"})


def test_files_as_planned_have_no_differences_and_the_bytes_of_the_estimate(catalogue, plan):
    wanted = expected(catalogue, plan)
    assert differences(catalogue, plan, wanted) == []
    engine = find_engine(plan.request.engine)
    assert sum(stored.bytes for stored in wanted.values()) == weights_bytes(catalogue, plan.assignments, engine)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bytes": 1}, "the files hold int4_g64 (a scale per 64 weights, 1 byte)"),
        ({"group_size": 32}, "the files hold int4_g64 (a scale per 32 weights"),
        ({"format": "int8"}, "the files hold int8 ("),
        ({"format": "int2_g64"}, "the files hold int2_g64 ("),
    ],
)
def test_another_size_group_or_format_is_told_with_the_layers_name(catalogue, plan, change, said):
    wanted = expected(catalogue, plan)
    found = differences(catalogue, plan, wanted | {UP: replace(wanted[UP], **change)})
    assert len(found) == 1 and found[0].startswith(f"{UP}: int4_g64 (a scale per 64 weights") and said in found[0]


def test_a_missing_layer_and_one_too_many_are_told(catalogue, plan):
    wanted = expected(catalogue, plan)
    missing = {name: stored for name, stored in wanted.items() if name != UP}
    found = differences(catalogue, plan, missing | {"stranger": Stored("bf16", None, 2)})
    assert [sentence.split(":")[0] for sentence in found] == [UP, "stranger"]


def test_formats_that_an_engine_stores_alike_are_the_same_to_it(catalogue, plan):
    engine = find_engine("llama.cpp")
    wanted = expected(catalogue, plan, engine)
    assert wanted[UP].group_size == 32
    alike = wanted | {UP: replace(wanted[UP], format="int4_g32")}
    assert differences(catalogue, plan, alike, engine) == []
