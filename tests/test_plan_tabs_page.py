"""The plan page below the plan: why not another format, and tabs that are worked out as they are opened."""

from __future__ import annotations

from advisor import pipeline
from advisor.ui import wording
from advisor.ui.plan import LAYERS, SIMPLE
from tests import plan_pages, sample_results
from tests.page_driver import opened, said, sound

store, profile = plan_pages.store, plan_pages.profile
LAST = "Why not, and what rules say"


def test_why_not_another_format_is_told_in_whole_sentences(profile):
    app = opened("plan", why="model.layers.0.mlp.down_proj")
    # A dataframe would cut its cells.
    told = next(one.value[LAST] for one in app.table if LAST in one.value)
    assert any(sentence.endswith("it saves memory, not arithmetic") for sentence in told)
    assert "Not measured of this layer: FP8" in said(app)
    told = next(one.value for one in opened("plan", why="model.layers.0.mlp.up_proj").table if LAST in one.value)
    never = told.set_index("Format").loc["INT4 group 128"]
    assert never["Possible"] == "no" and never[LAST].endswith("so INT4 group 128 does not fit its input features")


def test_why_a_format_is_told_beside_what_was_measured_of_all_of_them(store):
    profile = store.open_profile(sample_results.estimated_profile())
    name = "model.layers.0.mlp.down_proj"
    app = opened("plan", profile=profile.id, bits="5", why=name)
    table = next(one.value for one in app.table if "Possible" in one.value).set_index("Format")
    scores = {score.format: score for score in profile.measurements if score.layer == name}
    for fmt, label in (("int8", "INT8 per channel"), ("int4_g64", "INT4 group 64")):
        expected = wording.with_error(scores[fmt].kl, scores[fmt].kl_stderr)
        assert table.loc[label, "KL"].replace("\u00a0", " ").replace("−", "-") == expected
    assert table["Possible"].iloc[0] == "chosen" and "yes, runner-up" in set(table["Possible"])
    assert "Formats are ranked by twice the KL" in said(app) and "The line is what a MiB wins" in said(app)


def test_bytes_that_the_engine_stores_otherwise_than_the_limit_counts_them_are_told(profile):
    own_layout = "Bytes are those of the formats' own layout"
    name = "model.layers.0.mlp.down_proj"
    assert own_layout in said(opened("plan", why=name, limit="bits"))
    assert own_layout not in said(opened("plan", why=name, limit="weights"))


def test_a_locked_layer_and_the_most_speed_have_no_prices_of_bytes(profile):
    name, line = "model.layers.0.mlp.down_proj", "The line is what a MiB wins"
    assert line in said(opened("plan", why=name))
    assert line not in said(opened("plan", why=name, lock=f"{name}=int8"))
    assert line not in said(opened("plan", why=name, goal="speed", rise="20"))


def test_only_the_tab_that_is_open_is_worked_out(profile, monkeypatch):
    asked, simple_plans = [], pipeline.simple_plans
    monkeypatch.setattr(pipeline, "simple_plans", lambda *given: asked.append(given) or simple_plans(*given))
    # No other test asks for this context, so nothing is known of it yet.
    app = opened("plan", context="777")
    assert app.data_editor and not asked and "rounds" not in [field.key for field in app.number_input]
    app = opened("plan", context="777", tab=SIMPLE)
    assert asked and not app.data_editor and app.query_params["tab"] == SIMPLE
    app.select_slider(key="bits").set_value(6.0).run()
    assert not app.data_editor and sound(app)


def test_filters_of_the_table_stay_while_another_tab_is_open(profile):
    app = opened("plan")
    app.text_input(key="find").set_value("down_proj").run()
    for tab in (SIMPLE, LAYERS):
        app.session_state["tab"] = tab
        app.run()
    assert app.text_input(key="find").value == "down_proj"
    assert all("down_proj" in name for name in app.data_editor[0].value["Layer"])


def test_a_link_has_the_filters_of_the_table(profile):
    app = opened("plan", find="down", in_roles="MLP down", in_formats="no such format")
    shown = list(app.data_editor[0].value["Layer"])
    assert shown and all("down_proj" in name for name in shown)
    assert app.multiselect(key="in_roles").value == ["MLP down"] and not app.multiselect(key="in_formats").value
