"""What is kept of a profile and of kinds of layers says what asking anew would say."""

from __future__ import annotations

import gc
import weakref

import pytest

from advisor.estimates import damped_loss, difference_stderr, expected_loss
from advisor.knowledge import engines, find_format, formats
from advisor.planner import layer_losses
from advisor.planner.candidates import prepare
from advisor.planner.rule_context import context_for
from advisor.planner.rules import judge
from tests.planning_cases import catalogue, fisher_profile, profile, request


def test_losses_of_estimates_are_damped_and_those_of_layers_alone_are_their_kl():
    estimated, exact = fisher_profile(), profile()
    for one in estimated.measurements:
        found = layer_losses.layer_losses(estimated)[one.layer, one.format]
        assert found == (damped_loss(expected_loss(one), one.kl), expected_loss(one))
    for one in exact.measurements:
        assert layer_losses.layer_losses(exact)[one.layer, one.format] == (one.kl, one.delta_nll)


def test_errors_of_differences_are_those_of_the_scores():
    estimated = fisher_profile()
    known = layer_losses.layer_losses(estimated)
    one, other = estimated.measurements[:2]
    scored = [((m.layer, m.format),) for m in (one, other)]
    expected = difference_stderr([one], [other], estimated.calibration.draws)
    assert known.difference_stderr(*scored) == known.difference_stderr(*scored) == expected


def test_a_profile_with_other_scores_has_other_losses_and_one_that_is_gone_leaves_none():
    first = profile()
    second = first.model_copy(update={"measurements": profile(seed=1).measurements})
    known = layer_losses.layer_losses(first)
    assert layer_losses.layer_losses(first) is known
    assert layer_losses.layer_losses(second) is not known
    gone = weakref.ref(known)
    del first, known
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("engine", engines())
def test_every_rule_says_the_same_of_layers_of_one_kind(engine):
    vendor = {"mlx": "m3-ultra-512gb", "transformers-torchao-cpu": "this-machine"}.get(engine, "h100-sxm-80gb")
    wanted = request(engine, vendor, locks={"block 1": "int8", ".*layers.2.*q_proj": "int8"}, weight_bits=9.0)
    context = context_for(catalogue(4), wanted)
    said: dict[tuple[int, str], tuple] = {}
    for layer in context.catalogue.layers:
        for name in formats():
            heard = judge(layer, find_format(name), context)
            assert said.setdefault((context.kinds[layer.name], name), heard) == heard
    assert len(set(context.kinds.values())) < len(context.kinds)


@pytest.mark.parametrize("gpus", [1, 3])
def test_bytes_of_a_kind_are_those_of_each_layer(gpus):
    whole = profile(4)
    case = prepare(whole, request("vllm", vram_bytes=10**10, gpus=gpus))
    for layer in case.decided:
        for fmt in case.formats:
            assert case.cost(layer, fmt) == case._counted(case._held(layer), fmt)
