"""What links ask for and pages cannot show is said once, in words that a link cannot turn into anything else."""

from __future__ import annotations

import pytest

from tests import plan_pages
from tests.page_driver import opened

store, profile = plan_pages.store, plan_pages.profile


def asked(app) -> list[str]:
    return [info.value for info in app.info if "the link asks for" in info.value]


@pytest.mark.parametrize(
    "page, query, sentence",
    [
        ("plan", {"device": "h300"}, "*Device*: the link asks for `h300`, which is not among the choices; shown "),
        ("plan", {"engine": "onnx"}, "*Engine*: the link asks for `onnx`, "),
        ("plan", {"floors": "some"}, "*Role floors*: the link asks for `some`, "),
        ("plan", {"floor": "mlp_down=x"}, "*Floor of each role*: the link asks for `mlp_down=x`, which is not ROLE="),
        ("plan", {"lock": "int8"}, "*Locks*: the link asks for `int8`, which is not LAYERS=FORMAT"),
        ("plan", {"plan_formats": ["int8", "int9"]}, "*Formats to choose from*: the link asks for `int9`, "),
        ("plan", {"bits": "abc"}, "*Average bits per weight*: the link asks for `abc`, which is no number that "),
        ("plan", {"goal": "memory", "rise": "-3"}, "*Largest rise of perplexity (%)*: the link asks for `-3`, "),
        ("plan", {"context": "0"}, "*Context (tokens)*: the link asks for `0`, which is no number that it takes; "),
        ("sensitivity", {"shown": "int9"}, "*Format*: the link asks for `int9`, "),
        ("guide", {"topic": "nothing"}, "*Topic*: the link asks for `nothing`, "),
        ("model", {"formats": ["int8", "int9", "x"]}, "*Formats to measure*: the link asks for `int9`, `x`, which is "),
        ("plan", {"context": "1e400"}, "*Context (tokens)*: the link asks for `1e400`, which is no number that it "),
        ("model", {"samples": "1e999"}, "*Samples*: the link asks for `1e999`, which is no number that it takes"),
        ("model", {"samples": "99999999"}, "*Samples*: the link asks for `99999999`, which is no number that it takes"),
    ],
)
def test_what_a_link_asks_for_in_vain_is_said_once(profile, page, query, sentence):
    app = opened(page, **query)
    assert not app.exception
    (found,) = asked(app)
    assert found.startswith(sentence) and found.endswith(".")
    assert not asked(app.run())


@pytest.mark.parametrize("query", [{"device": "h100-sxm-80gb"}, {"bits": "5.0"}, {"rise": "12.5", "goal": "memory"}])
def test_what_a_link_asks_for_and_gets_needs_no_words(profile, query):
    assert not asked(opened("plan", **query))


def test_what_the_reader_takes_away_elsewhere_on_the_page_is_no_words_of_the_link(profile):
    app = opened("plan", engine="transformers", kv_bits="4")
    app.selectbox(key="choose_engine").set_value("vllm").run()
    assert app.query_params["kv_bits"] == "16" and not asked(app)


def test_a_profile_that_is_deleted_while_it_is_shown_is_missed_aloud(store, profile):
    calibration = profile.calibration.model_copy(update={"text": "mix"})
    other = store.open_profile(profile.model_copy(update={"id": "another", "calibration": calibration}))
    app = opened("plan", profile=other.id)
    store.delete("profile", other.id)
    (found,) = asked(app.run())
    assert "`another`, which is no longer stored" in found


def test_a_link_writes_nothing_of_its_own_on_the_page(profile):
    long = "x`**[here](http://example.org)**\u202e\n" + 200 * "y"
    (found,) = asked(opened("plan", device=long))
    quoted = found.split("asks for ")[1].split(", which")[0]
    assert quoted.startswith("`x **[here](http://example.org)**  y") and quoted.endswith("y…`")
    assert quoted.count("`") == 2 and len(quoted) == 63
