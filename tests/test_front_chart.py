"""The chart of the Pareto front: every point where it was predicted, simple plans and guide beside it, one to click."""

from __future__ import annotations

import pytest

from advisor import pipeline
from advisor.knowledge import perplexity_marks
from advisor.types import Budget, PlanRequest
from advisor.ui import front_chart, plan_front, wording
from tests import sample_results

REQUEST = PlanRequest(hardware="rtx-4090", engine="transformers", budget=Budget(weight_bits=5.0))


@pytest.fixture(scope="module")
def front():
    return pipeline.pareto_front(sample_results.profile(4), REQUEST, points=0, most=20)


def drawn(front, plan=None, limit="bits", dark=False):
    measure = plan_front.size_measure(limit)
    return front_chart.pareto_front(front.points, front.simple, plan, measure, 5.0, dark).to_dict()


def rows(chart: dict, layer: dict) -> list[dict]:
    return chart["datasets"][layer["data"]["name"]]


def marked(chart: dict, mark: str) -> list[dict]:
    return [layer for layer in chart["layer"] if layer["mark"]["type"] == mark]


@pytest.mark.parametrize("dark", [False, True])
def test_every_point_of_the_front_stands_at_its_size_and_predicted_rise(front, dark):
    chart = drawn(front, dark=dark)
    (dots,) = marked(chart, "circle")
    for row, point in zip(rows(chart, dots), front.points, strict=True):
        assert row["size"] == point.decided_bits
        assert row["rise"] == pytest.approx(point.predicted.delta_ppl_pct)
        assert row["low"] <= row["rise"] <= row["high"]


def test_a_click_selects_points_by_their_number(front):
    chart = drawn(front)
    (parameter,) = chart["params"]
    fields = [front_chart.NUMBER, front_chart.BESIDE]
    assert (parameter["name"], parameter["select"]["fields"]) == (front_chart.PICK, fields)
    (dots,) = marked(chart, "circle")
    assert [row[front_chart.NUMBER] for row in rows(chart, dots)] == list(range(len(front.points)))
    assert parameter["views"] == [dots["name"]]


def test_a_point_that_was_taken_before_can_be_clicked_again_beside_another_plan(front):
    def identities(plan):
        chart = drawn(front, plan)
        (parameter,), (dots,) = chart["params"], marked(chart, "circle")
        return {tuple(row[name] for name in parameter["select"]["fields"]) for row in rows(chart, dots)}

    assert not identities(front.points[3]) & identities(front.points[4])


def test_simple_plans_are_named_and_differ_in_shape(front):
    chart = drawn(front)
    (points,) = [layer for layer in marked(chart, "point") if "shape" in layer["encoding"]]
    scale = points["encoding"]["shape"]["scale"]
    assert scale["domain"] == list(map(wording.labelled, front.simple)) and {"role rule", "guide's strategy"} <= set(
        scale["domain"]
    )
    assert len(set(scale["range"])) == len(scale["domain"])


def test_the_guides_marks_are_rules_with_their_numbers(front):
    chart = drawn(front)
    marks = perplexity_marks()
    texts = [row for layer in marked(chart, "text") for row in rows(chart, layer) if "rise" in row and "text" in row]
    assert [row["rise"] for row in texts] == [marks.acceptable.value, marks.limit.value, marks.poor.value]
    assert all(f"{row['rise']:g} %" in row["text"] for row in texts)


def test_this_plan_is_marked_where_its_own_numbers_put_it(front):
    plan = front.points[len(front.points) // 2]
    chart = drawn(front, plan)
    shapes = {layer["data"]["name"]: layer for layer in marked(chart, "point")}
    assert [row["size"] for row in rows(chart, shapes["here"])] == [plan.decided_bits]
    ring, simple = (shapes[name]["encoding"] for name in ("here", "simple"))
    assert (ring["shape"], ring["fill"]) == (simple["shape"], simple["fill"])  # one legend names both
    look = dict(zip(ring["fill"]["scale"]["domain"], ring["fill"]["scale"]["range"], strict=True))
    assert [name for name, fill in look.items() if fill == "transparent"] == ["this plan"]
    assert "here" not in {layer["data"]["name"] for layer in marked(drawn(front), "point")}


@pytest.mark.parametrize("limit, unit", [("bits", "bits"), ("memory", "GiB"), ("weights", "MiB"), ("ppl", "bits")])
def test_the_axis_counts_size_as_the_limit_does_and_names_the_unit(front, limit, unit):
    chart = drawn(front, limit=limit)
    assert unit in marked(chart, "circle")[0]["encoding"]["x"]["title"]


def test_the_chart_has_no_more_points_than_asked_for_and_both_ends(front):
    everything = pipeline.pareto_front(sample_results.profile(4), REQUEST, points=0)
    assert len(front.points) <= 20 < len(everything.points)
    assert (front.points[0], front.points[-1]) == (everything.points[0], everything.points[-1])
    assert set(front.points) <= set(everything.points)


def test_the_scale_of_rises_names_every_stretch_that_the_slider_covers():
    chart = front_chart.rise_scale(0.0, 30.0).to_dict()
    bars, text = chart["layer"]
    assert [(row["name"], row["start"], row["end"]) for row in rows(chart, bars)] == [
        ("fine", 0, 5),
        ("acceptable", 5, 10),
        ("too much", 10, 20),
        ("poor", 20, 30),
    ]
    assert bars["encoding"]["x"]["axis"]["values"] == [5, 10, 20]
    assert [row["name"] for row in rows(chart, text)] == ["fine", "acceptable", "too much", "poor"]
