"""Charts: what is drawn is what was measured, and readable without colour."""

from __future__ import annotations

import math

import altair as alt
import pandas as pd
import pytest

from advisor.formats.table import packed_bytes
from advisor.knowledge import find_engine, formats
from advisor.planner.planning import make_plan
from advisor.types import Budget, MemoryEstimate, PlanRequest
from advisor.ui import charts, explain, frames, palette, plan_table, ranked_chart, wording
from tests import sample_results

REQUEST = PlanRequest(hardware="rtx-4090", engine="transformers", budget=Budget(weight_bits=5.0))


@pytest.fixture(scope="module")
def profile():
    return sample_results.profile()


@pytest.fixture(scope="module")
def plan(profile):
    return make_plan(profile, REQUEST)


def layers_of(chart) -> list[dict]:
    return chart.to_dict()["layer"]  # to_dict checks the specification against the schema of Vega-Lite


def rows_of(chart, index: int) -> list[dict]:
    specification = chart.to_dict()
    # Data that all layers share stands above them.
    data = specification["layer"][index].get("data") or specification["data"]
    return specification["datasets"][data["name"]]


def scores(profile, fmt: str):
    """The rows of one format, one per layer."""
    frame = frames.profile_frame(profile)
    return frame[frame["format"] == fmt]


def said_by(chart, index: int) -> set[str]:
    return {tooltip["field"] for tooltip in layers_of(chart)[index]["encoding"]["tooltip"]}


# --------------------------------------------------------------------------------------------- charts


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("key", frames.MEASURES)
@pytest.mark.parametrize("measured", [None, 3])
def test_the_heatmap_has_a_cell_for_every_layer_and_colours_only_what_was_measured(key, dark, measured):
    profile = sample_results.profile(measured=measured)
    chart = charts.sensitivity_heatmap(profile.catalogue, scores(profile, "int8"), frames.MEASURES[key], dark)
    assert len(rows_of(chart, 0)) == len(profile.catalogue.quantizable)
    scored = {m.layer: m for m in profile.measurements if m.format == "int8"}
    cells = {row["layer"]: row for row in rows_of(chart, 1)}
    assert cells.keys() == scored.keys()
    drawn = scores(profile, "int8").set_index("layer")[key]
    for layer, row in cells.items():
        assert row[key] == pytest.approx(drawn[layer] if key == "kl_per_mib" else getattr(scored[layer], key))


def test_kl_per_mib_is_of_the_bytes_that_the_format_saves(profile):
    layers = profile.catalogue.by_name()
    for row in scores(profile, "int4_g64").itertuples():
        layer = layers[row.layer]
        saved = 2 * layer.parameters - packed_bytes(formats()["int4_g64"], layer)
        assert row.saved == saved
        assert row.kl_per_mib == pytest.approx(row.kl / (saved / 2**20))
        assert row.kl_per_mib_stderr / row.kl_per_mib == pytest.approx(row.kl_stderr / row.kl)


def test_a_kl_of_zero_is_drawn_at_the_low_end_of_the_logarithmic_scale(profile):
    first = profile.measurements[0].model_copy(update={"kl": 0.0})
    changed = profile.model_copy(update={"measurements": (first, *profile.measurements[1:])})
    chart = charts.sensitivity_heatmap(profile.catalogue, scores(changed, first.format), frames.MEASURES["kl"])
    low = layers_of(chart)[1]["encoding"]["color"]["scale"]["domain"][0]
    assert low > 0
    assert all(row["shown"] >= low for row in rows_of(chart, 1))


def test_bars_are_the_largest_scores_in_order_with_one_standard_error_to_each_side(profile):
    chart = ranked_chart.ranked_layers(scores(profile, "int4_g64"), frames.MEASURES["kl"], top=7)
    rows = rows_of(chart, 0)
    largest = sorted((m for m in profile.measurements if m.format == "int4_g64"), key=lambda m: -m.kl)[:7]
    assert [row["layer"] for row in rows] == [m.layer for m in largest]
    for row, measurement in zip(rows, largest, strict=True):
        assert row["high"] - row["low"] == pytest.approx(2 * measurement.kl_stderr)


def test_a_score_inside_its_error_does_not_stretch_the_colours(profile):
    first = next(m for m in profile.measurements if m.format == "int4_g64")
    tiny = first.model_copy(update={"kl": 1e-12, "kl_stderr": 1e-3})
    changed = profile.model_copy(update={"measurements": (*(m for m in profile.measurements if m is not first), tiny)})
    chart = charts.sensitivity_heatmap(profile.catalogue, scores(changed, "int4_g64"), frames.MEASURES["kl"])
    assert layers_of(chart)[1]["encoding"]["color"]["scale"]["domain"][0] > 1e-6


def test_estimates_beside_exact_scores_differ_by_more_than_colour():
    mixed = scores(sample_results.auto_profile(), "int4_g64")
    exact = set(mixed[mixed["how"] == frames.EXACT]["layer"])
    assert 0 < len(exact) < len(mixed)
    chart = charts.sensitivity_heatmap(sample_results.catalogue(4), mixed, frames.MEASURES["kl"])
    assert {row["layer"] for row in rows_of(chart, 2)} == exact
    chart = ranked_chart.ranked_layers(mixed, frames.MEASURES["kl"], top=len(mixed))
    assert {row["layer"] for row in rows_of(chart, 0) if row["filled"] == 1} == exact
    assert "how" in said_by(chart, 0)


@pytest.mark.parametrize("make", [sample_results.profile, sample_results.estimated_profile])
def test_scores_of_one_kind_are_all_drawn_alike(make):
    frame = scores(make(4), "int4_g64")
    assert len(layers_of(charts.sensitivity_heatmap(sample_results.catalogue(4), frame, frames.MEASURES["kl"]))) == 2
    assert {row["filled"] for row in rows_of(ranked_chart.ranked_layers(frame, frames.MEASURES["kl"]), 0)} == {1}


@pytest.mark.parametrize("key", frames.MEASURES_WON)
def test_what_giving_back_loses_is_drawn_below_zero_and_at_the_low_end_of_the_colours(key):
    whole = sample_results.profile(4)
    assignments = {layer.name: "int4_g64" for layer in whole.catalogue.quantizable}
    frame = frames.profile_frame(sample_results.around_profile(assignments))
    measure = frames.MEASURES_WON[key]
    chart = charts.sensitivity_heatmap(whole.catalogue, frame, measure)
    low = layers_of(chart)[1]["encoding"]["color"]["scale"]["domain"][0]
    assert all(row["shown"] >= low and math.isfinite(row["shown"]) for row in rows_of(chart, 1))
    rows = rows_of(ranked_chart.ranked_layers(frame, measure, top=len(frame)), 0)
    assert min(row["kl"] for row in rows) < 0 and len(rows) == len(frame)
    assert "delta_ppl_pct" not in said_by(chart, 1)


def test_estimated_gains_are_those_of_the_plan_and_speak_of_kl_only():
    profile = sample_results.estimated_profile()
    plan = make_plan(profile, REQUEST)
    won = frames.gains(profile, plan.assignments)
    assert won.keys() == plan.assignments.keys()
    frame = frames.gain_frame(profile, plan.assignments, won)
    assert dict(zip(frame["layer"], frame["format"], strict=True)) == plan.assignments
    assert dict(zip(frame["layer"], frame["kl"], strict=True)) == {layer: pair[0] for layer, pair in won.items()}
    assert not any("delta" in name for name in frame) and set(frame["how"]) == {frames.ESTIMATED}
    assert "delta_nll" not in said_by(ranked_chart.ranked_layers(frame, frames.MEASURES_WON["kl"]), 0)


def test_a_plan_that_estimates_do_not_cover_alike_has_no_gains():
    profile = sample_results.estimated_profile()
    assignments = make_plan(profile, REQUEST).assignments
    first, *rest = profile.measurements
    shorter = sample_results.estimated_profile(sequences=8).measurements[0]
    for measurements in (rest, [shorter, *rest], [first.model_copy(update={"projections": ""}), *rest]):
        changed = profile.model_copy(update={"measurements": tuple(measurements)})
        assert frames.gains(changed, {first.layer: first.format, **assignments, first.layer: first.format}) == {}
    assert frames.gains(sample_results.profile(4), assignments) == {}
    assert frames.gains(profile, {first.layer: profile.catalogue.dtype}) == {}


@pytest.mark.parametrize("method", ["exact", "fisher", "auto", "around", "won"])
def test_two_sentences_explain_the_scores_of_each_method(method):
    plain = sample_results.profile(4)
    profile = {
        "exact": plain,
        "auto": sample_results.auto_profile(),
        "around": sample_results.around_profile({layer.name: "int8" for layer in plain.catalogue.quantizable}),
    }.get(method, sample_results.estimated_profile())
    said = explain.scores(profile, won=method in ("around", "won"))
    assert said.count(". ") == 1 and said.endswith(".")
    assert ("model was run" in said) == (method in ("exact", "around"))
    assert ("4 labels drawn per token" in said) == (method in ("fisher", "auto"))
    assert ("gets its weights back" in said) == (method in ("around", "won"))


def test_the_plan_map_writes_every_format_into_its_cell(profile, plan):
    chart = charts.plan_map(profile.catalogue, plan.assignments, formats(), {"model.layers.0.mlp.up_proj"})
    written = {row["layer"]: row["tag"] for row in rows_of(chart, 2)}
    assert written.keys() == {layer.name for layer in profile.catalogue.quantizable}
    for layer, name in plan.assignments.items():
        assert written[layer] == "\n".join(wording.format_tag(formats()[name]))
    assert written["model.embed_tokens"] == "BF16"  # kept, since this engine does not quantize it


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_no_number_is_drawn_as_none(value):
    chart = alt.layer(alt.Chart(pd.DataFrame({"x": [1.0, value], "name": ["a", None]})).mark_point().encode(x="x:Q"))
    assert rows_of(chart, 0) == [{"x": 1.0, "name": "a"}, {"x": None, "name": None}]


def test_every_format_has_its_own_colour_and_short_name():
    colours = palette.format_colours(formats())
    tags = ["\n".join(wording.format_tag(fmt)) for fmt in formats().values()]
    assert len(set(colours.values())) == len(set(tags)) == len(formats())


@pytest.mark.parametrize("name", formats())
def test_the_name_in_a_cell_contrasts_with_its_colour(name):
    colour = palette.format_colours(formats())[name]
    assert contrast(colour, palette.ink_on(colour)) >= 4.5


@pytest.mark.parametrize("parts, unit", [((20, 5, 3, 1), "MiB"), ((8000, 900, 300, 1000), "GiB")])
def test_the_memory_bar_stacks_to_the_total_in_its_unit(parts, unit):
    estimate = memory(*(part * wording.MIB for part in parts))
    chart = charts.memory_bar(estimate)
    rows = rows_of(chart, 0)
    factor = wording.GIB if unit == "GiB" else wording.MIB
    assert rows[-1]["end"] == pytest.approx(estimate.total_bytes / factor)
    assert all(before["end"] == after["start"] for before, after in zip(rows, rows[1:], strict=False))
    assert layers_of(chart)[0]["encoding"]["x"]["title"] == unit


@pytest.mark.parametrize("share, drawn", [(2, True), (50, False)])
def test_a_limit_is_drawn_to_scale_unless_it_would_squeeze_the_bar_flat(share, drawn):
    estimate = memory(wording.GIB, 0, 0, 0, limit=share * wording.GIB)
    kinds = [layer["mark"]["type"] for layer in layers_of(charts.memory_bar(estimate))]
    assert ("rule" in kinds) == drawn
    assert "text" in kinds  # its number is said either way


def test_predicted_and_measured_differ_in_shape_as_well_as_colour():
    rows = [
        frames.ChangeRow("plan", "predicted", 4.0, 3.0, 5.0),
        frames.ChangeRow("plan", "measured", 4.5, 3.9, 5.1),
    ]
    encodings = [layer.get("encoding", {}) for layer in layers_of(charts.predicted_against_measured(rows))]
    shape = next(encoding["shape"] for encoding in encodings if "shape" in encoding)
    assert len(set(shape["scale"]["range"])) == 2


# ------------------------------------------------------------------------------------------ one far above


def skewed(profile):
    """Scores of which one is a hundred times the others' median, and one is zero."""
    frame = scores(profile, "int4_g64")
    frame.loc[frame.index[0], "kl"] = 100 * frame["kl"].median()
    frame.loc[frame.index[1], ["kl", "kl_stderr"]] = 0.0, 1e-5
    return frame


def test_one_score_far_above_the_rest_asks_for_powers_of_ten(profile):
    kl, signed = frames.MEASURES["kl"], frames.MEASURES["delta_nll"]
    frame = scores(profile, "int4_g64")
    even = frame[frame["role"] == "MLP down"]
    assert ranked_chart.flattened(skewed(profile), kl, 20) and not ranked_chart.flattened(even, kl, 20)
    assert not ranked_chart.flattened(skewed(profile).assign(delta_nll=frame["kl"]), signed, 20)


def test_marks_in_powers_of_ten_keep_every_score_its_error_and_its_place(profile):
    frame = skewed(profile)
    chart = ranked_chart.ranked_layers(frame, frames.MEASURES["kl"], len(frame), picked="x", powers=True)
    drawn = chart.to_dict()
    (marks,) = [layer for layer in drawn["layer"] if layer["mark"]["type"] == "point"]
    low, high = marks["encoding"]["x"]["scale"]["domain"]
    assert marks["encoding"]["x"]["scale"]["type"] == "log" and 0 < low < high
    rows = drawn["datasets"][marks.get("data", drawn.get("data"))["name"]]
    assert [row["label"] for row in rows] == list(frame.nlargest(len(frame), "kl")["label"])
    above = [row for row in rows if row["kl"] > low]
    assert len(above) == len(rows) - 1  # what is zero stands at the edge
    for row in above:
        assert row["shown"] == row["kl"] and row["high"] == pytest.approx(row["kl"] + row["kl_stderr"])
        assert row["low"] == pytest.approx(max(low, row["kl"] - row["kl_stderr"]))
    assert all(low <= row["low"] <= row["shown"] <= row["high"] <= high for row in rows)
    assert len(marks["encoding"]["x"]["axis"]["values"]) >= 2


# ------------------------------------------------------------------------------------------ locks


def test_edits_of_the_table_become_locks_and_unticking_frees_one_layer_of_a_pattern(profile, plan):
    layers = tuple(plan.assignments)
    frame = plan_table.plan_frame(profile, plan)
    row = {name: frame.index[frame["Layer"] == name][0] for name in layers}
    first, second = layers[0], layers[1]

    def edited(held, excluded, edits):
        engine = find_engine(REQUEST.engine)
        return plan_table.edited_locks(held, excluded, edits, frame, profile.catalogue, engine)

    locks, _ = edited({}, (), {row[first]: {"Format": "INT8 per channel"}, row[second]: {"Locked": True}})
    assert locks == {first: "int8", second: plan.assignments[second]}
    assert edited(locks, (), {row[first]: {"Locked": False}})[0].keys() == {second}
    inside = {name for name in layers if "layers.0." in name}
    for pattern in (r".*layers\.0\..*", "block 0"):
        freed, _ = edited({pattern: "int8"}, (), {row[second]: {"Locked": False}})
        assert freed.keys() == inside - {second}
        assert edited({}, (pattern,), {row[second]: {"Locked": False}}) == ({}, tuple(sorted(inside - {second})))


def test_unticking_one_of_a_fused_group_frees_all_of_it(profile):
    engine = find_engine("vllm")
    plan = make_plan(profile, REQUEST.model_copy(update={"engine": "vllm"}))
    frame = plan_table.plan_frame(profile, plan)
    row = frame.index[frame["Layer"] == "model.layers.0.self_attn.k_proj"][0]
    held = {"block 0": "int8"}
    freed, _ = plan_table.edited_locks(held, (), {row: {"Locked": False}}, frame, profile.catalogue, engine)
    assert freed and not any("q_proj" in name or "k_proj" in name or "v_proj" in name for name in freed)


def contrast(first: str, second: str) -> float:
    """WCAG contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def memory(weights: int, cache: int, activations: int, overhead: int, limit: int = 24 * wording.GIB) -> MemoryEstimate:
    return MemoryEstimate(
        weights_bytes=weights,
        kv_cache_bytes=cache,
        activation_bytes=activations,
        overhead_bytes=overhead,
        limit_bytes=limit,
        decided_bits=5.0,
        original_weights_bytes=weights * 3,
    )
