"""The plan page below the plan: why not another format, and tabs that are worked out as they are opened."""

from __future__ import annotations

from advisor import pipeline
from advisor.ui.plan import LAYERS, SIMPLE
from tests import plan_pages
from tests.page_driver import opened, said, sound

store, profile = plan_pages.store, plan_pages.profile


def test_why_not_another_format_is_told_in_whole_sentences(profile):
    app = opened("plan", why="model.layers.0.mlp.down_proj")
    column = "Why not, and what rules say"  # a dataframe would cut its cells
    told = next(one.value[column] for one in app.table if column in one.value)
    assert any(sentence.endswith("it saves memory, not arithmetic") for sentence in told)
    assert "Not measured of this layer: FP8" in said(app)


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
