"""A refusal on the plan page has buttons for what would do, and one click makes the plan possible."""

from __future__ import annotations

import pytest

from tests import plan_pages
from tests.page_driver import numbers, opened

store, profile = plan_pages.store, plan_pages.profile


@pytest.mark.parametrize(
    "query, label, link",
    [
        ({"device": "m4-max-128gb", "engine": "vllm"}, "Plan for Transformers", {"engine": "transformers"}),
        ({"gpus": "2"}, "Plan for one GPU", {}),
        ({"context": "9000"}, "Shorten the context to 8,192 tokens", {"context": "8192"}),
        ({"limit": "memory", "memory": "90"}, "Plan for all of the device's memory", {"limit": "memory"}),
        ({"limit": "memory", "memory": "2", "context": "8000", "sequences": "300"}, "Shorten the context to", {}),
        ({"limit": "memory", "memory": "2", "context": "8000", "sequences": "300"}, "Serve ", {}),
        ({"bits": "5", "floors": "enforce"}, "Set the role floors to advise", {"floors": "advise"}),
        ({"bits": "5", "lock": "blocks 0-3=int8"}, "Remove the lock", {}),
        ({"bits": "5", "exclude": "blocks 0-3"}, "Exclude nothing", {}),
        ({"bits": "5", "plan_formats": "int8"}, "Choose from INT4 group 64 too", {}),
        ({"goal": "memory", "rise": "0.001", "lock": "down_proj=int4_g64"}, "Allow at least ", {"goal": "memory"}),
        ({"context": "8000", "sequences": "900"}, "Keep to the device's memory", {"limit": "memory"}),
    ],
)
def test_one_click_leads_out_of_what_cannot_be(profile, query, label, link):
    app = opened("plan", **query)
    impossible = bool(app.error)
    assert impossible or app.warning
    next(one for one in app.button if one.label.startswith(label)).click().run()
    assert not app.exception and (not app.error or not impossible)
    assert {key: dict(app.query_params).get(key) for key in link} == link
    if impossible:
        assert "Average bits" in numbers(app)


@pytest.mark.parametrize("query", [{"gpus": "2"}, {"context": "9000"}])
def test_a_way_out_of_what_is_no_limit_leaves_the_limit_as_if_it_had_not_been_asked_for(profile, query):
    free = opened("plan").select_slider(key="bits").value
    app = opened("plan", **query)
    next(one for one in app.button if one.key and one.key.startswith("way_out")).click().run()
    assert not app.error and app.select_slider(key="bits").value == free


def test_a_way_out_leaves_all_other_fields_as_they_are(profile):
    app = opened("plan", device="m4-max-128gb", engine="vllm", bits="6.5", lock="blocks 0-1=int8", floor="mlp_down=3")
    next(one for one in app.button if one.label.startswith("Plan for ")).click().run()
    assert app.select_slider(key="bits").value == 6.5 and app.selectbox(key="floor_mlp_down").value == "3"
    assert app.query_params["lock"] == "blocks 0-1=int8" and app.query_params["device"] == "m4-max-128gb"
    assert "wishes_before" not in app.session_state  # nothing was done to the link's locks
