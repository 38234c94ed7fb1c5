"""Charts to click on the sensitivity page: loss against size with its mean price, and what a click selects."""

from __future__ import annotations

import math

import pytest

from advisor.ui import chart_parts, charts, frames, palette, ranked_chart, size_chart, wording
from tests import sample_results

KL, PER_MIB = frames.MEASURES["kl"], frames.MEASURES["kl_per_mib"]


@pytest.fixture(scope="module")
def profile():
    return sample_results.profile()


@pytest.fixture(scope="module")
def frame(profile):
    whole = frames.profile_frame(profile)
    return whole[whole["format"] == "int4_g64"]


def rows(chart: dict, layer: dict) -> list[dict]:
    return chart["datasets"][(layer.get("data") or chart["data"])["name"]]


def marks(chart: dict) -> dict:
    """The layer of the chart that draws the points."""
    (found,) = [layer for layer in chart["layer"] if "shape" in layer.get("encoding", {})]
    return found


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("measure", [KL, PER_MIB])
def test_every_layer_stands_at_its_score_with_one_standard_error_to_each_side(frame, measure, dark):
    chart = size_chart.sensitivity_by_size(frame, measure, dark).to_dict()
    drawn = {row["layer"]: row for row in rows(chart, marks(chart))}
    assert drawn.keys() == set(frame["layer"])
    for row in frame.to_dict("records"):
        found, error = drawn[row["layer"]], row[f"{measure.key}_stderr"]
        assert found["shown"] == pytest.approx(row[measure.key])
        assert found["high"] - found["shown"] == pytest.approx(error)


def test_layers_of_one_size_stand_side_by_side_in_the_order_of_their_blocks(frame):
    moved = frame.assign(across=size_chart.spread(frame))
    for size, alike in moved[moved["block"].notna()].groupby("parameters"):
        for _, one in alike.groupby("module"):
            assert one.sort_values("block")["across"].is_monotonic_increasing
        assert (alike["across"] / size).between(10**-0.1, 10**0.1).all()
    ends = moved.groupby("parameters")["across"].agg(["min", "max"]).sort_index()
    assert (ends["max"].to_numpy()[:-1] < ends["min"].to_numpy()[1:]).all()
    (outside,) = moved[moved["block"].isna()].itertuples()
    assert outside.across == outside.parameters


def test_roles_differ_in_shape_and_in_colour(frame):
    encoding = marks(size_chart.sensitivity_by_size(frame, KL).to_dict())["encoding"]
    roles = list(dict.fromkeys(frame["role"]))
    for channel in ("color", "shape"):
        scale = encoding[channel]["scale"]
        assert scale["domain"] == roles and len(set(scale["range"])) == len(roles)
    assert set(palette.ROLES) == set(wording.ROLE_LABELS.values())


def test_the_mean_price_is_what_all_layers_lose_over_what_they_save(frame):
    price = size_chart.mean_price(frame)
    assert price == pytest.approx(frame["kl"].sum() / (frame["saved"].sum() / 2**20))
    for measure in (KL, PER_MIB):
        chart = size_chart.sensitivity_by_size(frame, measure).to_dict()
        (line,) = [layer for layer in chart["layer"] if layer["mark"]["type"] == "line"]
        for row in rows(chart, line):
            saved_mib = row["across"] * frame["saved"].sum() / frame["parameters"].sum() / 2**20
            assert row["shown"] == pytest.approx(price * saved_mib if measure is KL else price)


def test_what_has_no_logarithm_stands_at_the_lower_edge(profile):
    assignments = {layer.name: "int4_g64" for layer in profile.catalogue.quantizable}
    around = frames.profile_frame(sample_results.around_profile(assignments))
    assert around["kl"].min() < 0
    chart = size_chart.sensitivity_by_size(around, frames.MEASURES_WON["kl"]).to_dict()
    low = marks(chart)["encoding"]["y"]["scale"]["domain"][0]
    for row in rows(chart, marks(chart)):
        assert row["low"] >= low > 0 and math.isfinite(row["shown"])
        assert row["shown"] == pytest.approx(max(row["kl"], low))


@pytest.mark.parametrize("draw", ["heatmap", "bars", "sizes"])
def test_a_click_selects_the_layer_and_the_chosen_one_is_framed(profile, frame, draw):
    chosen = "model.layers.29.mlp.down_proj"
    chart = {
        "heatmap": lambda picked: charts.sensitivity_heatmap(profile.catalogue, frame, KL, picked=picked),
        "bars": lambda picked: ranked_chart.ranked_layers(frame, KL, picked=picked),
        "sizes": lambda picked: size_chart.sensitivity_by_size(frame, KL, picked=picked),
    }[draw]
    assert "params" not in chart(None).to_dict()
    drawn = chart(chosen).to_dict()
    (parameter,) = drawn["params"]
    assert (parameter["name"], parameter["select"]["fields"]) == (chart_parts.PICK, [chart_parts.PICKED])
    assert parameter["value"] == [{chart_parts.PICKED: chosen}]
    *_, framed = [layer for layer in drawn["layer"] if "condition" in layer.get("encoding", {}).get("strokeWidth", {})]
    wide = framed["encoding"]["strokeWidth"]
    ring = wide["condition"]["value"]
    assert ring["expr"].startswith("min(2.5, bandwidth('x')") if isinstance(ring, dict) else ring > wide["value"]
    assert not wide["condition"].get("empty", True)
    assert chosen in {row["layer"] for row in rows(drawn, framed)}


def test_no_chart_of_the_page_points_to_a_gradient_that_a_changed_link_would_lose(profile, frame):
    drawn = charts.sensitivity_heatmap(profile.catalogue, frame, KL).to_dict()
    legend = drawn["layer"][1]["encoding"]["color"]["legend"]
    assert legend["type"] == "symbol" and len(legend["values"]) >= 3
