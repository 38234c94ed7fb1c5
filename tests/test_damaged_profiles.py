"""A profile document that is damaged, or no profile, is refused in a sentence that says where and what to do."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from advisor.documents import check_plan_document, check_profile_document
from advisor.errors import PlanError
from tests import planning_cases

ESTIMATED = planning_cases.fisher_profile(1, ("int8", "int4_g64"))
TEXT = ESTIMATED.model_dump_json()
WHERE = r"This sensitivity profile has a wrong field, "
AGAIN = r" Profile the model again\.$"


def damaged(change: Callable[[dict[str, Any]], Any]) -> str:
    """The document after `change` of its second measurement."""
    document = json.loads(TEXT)
    change(document["measurements"][1])
    return json.dumps(document)


def projections(count: int, value: float = 0.0) -> str:
    return base64.b64encode(np.full(count, value, "<f2").tobytes()).decode()


def test_a_sound_profile_is_read_as_it_was_written():
    assert check_profile_document(TEXT) == ESTIMATED


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kl": -0.5}, r"KL is -0\.5, and cannot be negative"),
        ({"kl": math.nan}, "a number is not finite"),
        ({"delta_nll_stderr": math.inf}, "a number is not finite"),
        ({"kl_stderr": -1e-3}, "a standard error is negative"),
        ({"delta_nll_by_sequence": [0.1] * 15}, "projections of 16 sequences stand beside 15 changes of loss"),
        ({"delta_nll_by_sequence": [math.nan] * 16}, "a number is not finite"),
        ({"projections": ""}, "an estimate without its projections"),
        ({"projections": "&&&&"}, "the projections cannot be read"),
        ({"projections": projections(143)}, "143 projections do not come from 8 drawn labels"),
        ({"projections": projections(144, math.nan)}, "a projection is not finite"),
        ({"projections": projections(144, -math.inf)}, "a projection is not finite"),
        ({"layer": "model.layers.9.mlp.down_proj"}, "the catalogue has no such quantizable layer"),
        ({"layer": "model.layers.0.input_layernorm"}, "the catalogue has no such quantizable layer"),
        ({"format": "int8"}, "this layer and format are measured twice"),
    ],
)
def test_a_damaged_measurement_is_named_with_what_is_wrong(fields, said):
    score = ESTIMATED.measurements[1].model_copy(update=fields)
    named = rf"measurements\.1 \({score.layer} in {score.format}\): "
    with pytest.raises(PlanError, match=f"^{WHERE}{named}{said}.*{AGAIN}"):
        check_profile_document(damaged(lambda measurement: measurement.update(fields)))


def test_a_shape_that_is_no_matrix_and_a_baseline_that_is_no_number_are_refused():
    document = json.loads(TEXT)
    document["catalogue"]["layers"][0]["shape"] = [0, 576]
    with pytest.raises(PlanError, match=rf"model\.embed_tokens has the shape \(0, 576\), which is no matrix\.{AGAIN}"):
        check_profile_document(json.dumps(document))
    document = json.loads(TEXT)
    document["baseline"]["nll"] = math.nan
    with pytest.raises(PlanError, match=f"{WHERE}baseline: the model's own loss is not a number from 0 to 100 nats"):
        check_profile_document(json.dumps(document))


def test_what_giving_a_layer_back_wins_may_be_below_zero():
    around = planning_cases.profile(1)
    less = around.measurements[0].model_copy(update={"kl": -1e-6})
    found = around.model_copy(update={"measurements": (less,), "around": {less.layer: less.format}})
    assert check_profile_document(found.model_dump_json()) == found


def test_a_plan_given_as_a_profile_and_a_profile_given_as_a_plan_are_told():
    with pytest.raises(PlanError, match=r"^This is a plan, not a sensitivity profile: give the profile that it was"):
        check_profile_document(planning_cases.plan_for(ESTIMATED).model_dump_json())
    with pytest.raises(PlanError, match=r"^This is a sensitivity profile, not a plan: make a plan from it"):
        check_plan_document(TEXT)


def test_what_a_check_of_ours_says_comes_without_a_prefix():
    document = json.loads(planning_cases.plan_for(ESTIMATED).model_dump_json())
    document["request"]["budget"]["vram_bytes"] = 10**9
    with pytest.raises(PlanError, match=r"request\.budget: give at most one of .* Correct it, or make the plan again"):
        check_plan_document(json.dumps(document))
