"""What a model's scores say of roles: a departure from the guide is claimed where chance does not explain it, only."""

from __future__ import annotations

import pytest

from advisor import knowledge
from advisor.role_sensitivity import LEVELS, LayerScore, orderings, role_sensitivities
from advisor.types import Role
from advisor.ui import frames, role_table
from tests import sample_results

ADVICE = knowledge.roles()
DOWN, GATE, QKV, HEAD = Role.MLP_DOWN, Role.MLP_GATE_UP, Role.ATTENTION_QKV, Role.LM_HEAD


def score(role: Role, kl: float, stderr: float = 0.0, saved: int = 100) -> LayerScore:
    return LayerScore(role, kl, stderr, saved)


def outcomes(scores: list[LayerScore], per: str = "layer") -> dict[tuple[Role, Role], str]:
    return {(o.more, o.less): o.outcome for o in orderings(role_sensitivities(scores), ADVICE, per)}


def test_a_role_is_the_mean_of_its_layers_and_of_what_their_bytes_cost():
    scores = [score(DOWN, 3.0, 0.3, saved=100), score(GATE, 1.0), score(DOWN, 1.0, 0.1, saved=300)]
    found = role_sensitivities(scores)
    assert list(found) == [DOWN, GATE]
    down = found[DOWN]
    assert (down.layers, down.largest, down.saved_bytes) == (2, 3.0, 400)
    assert down.per_layer.value == 2.0 and down.per_byte.value == pytest.approx(0.01)
    # Layers share their text: errors that all go the same way do not average out.
    assert down.per_layer.stderr == pytest.approx(0.2) and down.per_byte.stderr == pytest.approx(0.001)


def test_half_of_a_role_is_counted_from_its_largest_layers():
    few = [score(DOWN, kl) for kl in (1.0, 9.0, 1.0, 2.0, -5.0)]
    even = [score(GATE, 1.0) for _ in range(10)]
    none = [score(QKV, 0.0)]
    found = role_sensitivities([*few, *even, *none])
    assert [found[role].half_in for role in (DOWN, GATE, QKV)] == [1, 5, 0]


@pytest.mark.parametrize(
    "qkv, gate, outcome",
    [
        ((2.0, 0.1), (1.0, 0.1), "agrees"),
        ((1.0, 0.1), (2.0, 0.1), "departs"),
        ((1.0, 0.4), (2.0, 0.4), "open"),
        ((2.0, 0.4), (1.0, 0.4), "open"),
        ((1.0, 0.0), (1.0, 0.0), "open"),
    ],
)
def test_only_what_chance_does_not_explain_agrees_or_departs(qkv, gate, outcome):
    assert outcomes([score(QKV, *qkv), score(GATE, *gate)]) == {(QKV, GATE): outcome}


def test_layers_and_their_bytes_are_compared_each_by_their_own_means():
    scores = [score(QKV, 1.0, 0.01, saved=10), score(DOWN, 2.0, 0.01, saved=1000)]
    assert outcomes(scores, "layer") == {(QKV, DOWN): "departs"}
    assert outcomes(scores, "byte") == {(QKV, DOWN): "agrees"}


def test_roles_that_save_nothing_have_no_price_and_settle_nothing():
    scores = [score(QKV, 1.0, saved=0), score(DOWN, 2.0)]
    assert role_sensitivities(scores)[QKV].per_byte is None
    assert outcomes(scores, "byte") == {(QKV, DOWN): "open"}


def test_only_roles_of_different_levels_are_compared():
    assert outcomes([score(QKV, 1.0), score(Role.ATTENTION_OUTPUT, 9.0), score(Role.OTHER, 9.0)]) == {}
    pairs = outcomes([score(role, 1.0) for role in (GATE, DOWN, QKV, HEAD)])
    assert set(pairs) == {(HEAD, QKV), (HEAD, DOWN), (HEAD, GATE), (QKV, DOWN), (QKV, GATE), (DOWN, GATE)}


def test_every_level_of_the_guide_is_known():
    assert {row.sensitivity for row in ADVICE.values()} <= {*LEVELS, "unknown"}


# ---------------------------------------------------------------------------------------------- in words


def said(scores: list[LayerScore], per: str = "layer") -> str:
    found = role_sensitivities(scores)
    return "\n".join(role_table.sentences(found, orderings(found, ADVICE, per), per))


def test_words_name_who_departs_from_whom_and_by_which_numbers():
    words = said([score(QKV, 1.0, 0.1), score(DOWN, 2.0, 0.1), score(GATE, 3.0, 0.1), score(HEAD, 5.0, 2.0)])
    of_qkv, of_down, agreement, unsettled = words.split("\n")
    assert "**Attention Q/K/V** is expected to be *high*, but costs 1.00 ± 0.10 nats a layer" in of_qkv
    assert "less than **MLP down** (*medium*, 2.00 ± 0.10) and **MLP gate/up** (*low*, 3.00 ± 0.10)." in of_qkv
    assert "**MLP down** is expected to be *medium*" in of_down and "Attention" not in of_down
    assert agreement.endswith("As the guide expects: LM head above Attention Q/K/V.")
    assert unsettled.endswith("Not told apart by this text: LM head from MLP down and MLP gate/up.")


def test_a_model_that_agrees_or_cannot_be_judged_is_said_to():
    agreeing = said([score(QKV, 2.0, 0.1), score(GATE, 1.0, 0.1)])
    assert "departs from the guide nowhere" in agreeing
    assert "As the guide expects: Attention Q/K/V above MLP gate/up." in agreeing
    assert "nothing to compare" in said([score(QKV, 1.0)]) and "nothing to compare" in said([])


def test_prices_are_said_per_mib():
    words = said([score(QKV, 1.0, 0.01, saved=2**20), score(DOWN, 4.0, 0.01, saved=2**21)], "byte")
    assert "costs 1.000 ± 0.010 nats for each MiB that it saves" in words and "2.0000 ± 0.0050" in words


def test_the_table_ranks_roles_as_the_words_compare_them():
    found = role_sensitivities([score(QKV, 1.0, 0.1, saved=10), score(DOWN, 2.0, 0.1, saved=1000)])
    assert list(role_table.table(found, "layer")["Role"]) == ["MLP down", "Attention Q/K/V"]
    assert list(role_table.table(found, "byte")["Role"]) == ["Attention Q/K/V", "MLP down"]


def test_scores_of_a_profile_keep_role_error_and_bytes_saved():
    profile = sample_results.profile(2)
    frame = frames.profile_frame(profile)
    frame = frame[frame["format"] == "int8"]
    found = role_table.layer_scores(profile, frame)
    wanted = [m for m in profile.measurements if m.format == "int8"]
    assert [(s.kl, s.kl_stderr) for s in found] == [(m.kl, m.kl_stderr) for m in wanted]
    layers = profile.catalogue.by_name()
    for one, measurement in zip(found, wanted, strict=True):
        layer = layers[measurement.layer]
        assert one.role == layer.role and 0.49 < one.saved_bytes / (2 * layer.parameters) < 0.5
