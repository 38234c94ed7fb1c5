"""What is read out of projections, what is worth measuring exactly, and what a run is said to cost."""

import math

import numpy as np
import pytest

from advisor import estimates, pipeline
from advisor.planner.planning import predict
from advisor.profiler.screen import open_layers
from advisor.types import ProfileRequest
from tests import sample_results
from tests.tiny_models import tiny_folder

DRAWS = 4
chance = np.random.default_rng(0)


def projected(layer: str = "a", kl: float = 0.01, sequences: int = 16, first: float = 0.0):
    values = chance.normal(0, math.sqrt(kl), (sequences, 1 + DRAWS))
    values[:, 0] += first / math.sqrt(2 / 255)
    return estimates.fisher_measurement(layer, "int4_g64", values, 255)


def fisher_profile(bars: float = 1.0, blocks: int = 4):
    """A sample profile as if estimated, its error bars `bars` times 10 % of the score."""
    profile = sample_results.profile(blocks)
    measured = tuple(
        m.model_copy(update={"method": "fisher", "kl_stderr": bars * 0.1 * m.kl}) for m in profile.measurements
    )
    return profile.model_copy(update={"method": "fisher", "measurements": measured})


def test_projections_survive_packing_to_fp16_precision():
    for kl in (1e-9, 1e-4, 1.0):
        values = chance.normal(0, math.sqrt(kl), (8, 1 + DRAWS))
        measurement = estimates.fisher_measurement("a", "int8", values, 255)
        assert estimates.unpack(measurement, DRAWS) == pytest.approx(values, rel=2e-3, abs=1e-3 * math.sqrt(kl))
        assert measurement.kl == pytest.approx(np.square(values[:, 1:]).mean(), rel=0.1)


def test_a_ruined_layer_has_finite_numbers():
    measurement = estimates.fisher_measurement("a", "int2_g64", np.full((4, 1 + DRAWS), 1e6), 2047)
    assert all(map(math.isfinite, (measurement.kl, measurement.kl_stderr, measurement.delta_nll)))


def test_one_abrupt_text_among_many_does_not_decide_a_score():
    values = chance.normal(0, 0.1, (16, 1 + DRAWS))
    calm = estimates.fisher_measurement("a", "int4_g64", values, 255)
    values[3] *= 50  # slopes that second order takes for 2,500 times the loss
    abrupt = estimates.fisher_measurement("a", "int4_g64", values, 255)
    assert calm.kl < abrupt.kl < 1.5 * calm.kl
    assert abs(abrupt.delta_nll - calm.delta_nll) < 0.01
    assert estimates.set_kl([abrupt], DRAWS)[0] < 1.5 * calm.kl


def test_one_sequence_has_a_bar_and_no_first_order_term_to_believe():
    measurement = projected(sequences=1, first=0.5)
    assert math.isfinite(measurement.kl_stderr) and measurement.kl_stderr >= measurement.kl * math.sqrt(2 / DRAWS)
    assert estimates.expected_loss(measurement) == pytest.approx(measurement.kl)


def test_a_set_of_one_layer_scores_like_the_layer():
    measurement = projected()
    assert estimates.set_kl([measurement], DRAWS)[0] == pytest.approx(measurement.kl)


def test_the_shrink_factor_believes_large_values_with_small_errors():
    assert estimates.shrink_factor(1.0, 2.0) == 0
    assert 0 < estimates.shrink_factor(1.0, 0.9) < estimates.shrink_factor(1.0, 0.5) < estimates.shrink_factor(2.0, 0.5)
    assert estimates.shrink_factor(0.0, 0.5) == 0
    assert estimates.shrink_factor(-1.0, 0.1) == pytest.approx(0.99)


def test_a_first_order_term_of_pure_chance_is_mostly_taken_out():
    raw, shrunk = [], []
    for _ in range(200):
        measurement = projected(kl=0.01)
        raw.append(abs(measurement.delta_nll - measurement.kl))
        shrunk.append(abs(estimates.expected_loss(measurement) - measurement.kl))
    assert np.mean(shrunk) < 0.6 * np.mean(raw)
    clear = projected(kl=1e-4, first=0.05)
    assert estimates.expected_loss(clear) == pytest.approx(clear.delta_nll, rel=0.02)


def test_a_prediction_while_one_format_has_seen_fewer_sequences_is_a_sum():
    profile = sample_results.profile(1)
    layers = [layer.name for layer in profile.catalogue.quantizable][:2]
    unequal = (projected(layers[0], sequences=16), projected(layers[1], sequences=8))
    profile = profile.model_copy(
        update={
            "method": "fisher",
            "measurements": unequal,
            "calibration": profile.calibration.model_copy(update={"draws": DRAWS}),
        }
    )
    found = predict(profile, dict.fromkeys(layers, "int4_g64"))
    assert found.kl == pytest.approx(sum(m.kl for m in unequal))


def test_narrow_bars_leave_nothing_open_and_wide_ones_much():
    assert open_layers(fisher_profile(bars=1e-6)) == []
    some, many = open_layers(fisher_profile(bars=2)), open_layers(fisher_profile(bars=6))
    assert 0 < len(some) < len(many) <= len(fisher_profile().measured_layers)
    assert open_layers(fisher_profile(bars=2)) == some


def test_a_stricter_tolerance_opens_more():
    profile = fisher_profile(bars=3)
    assert len(open_layers(profile, 0.001)) > len(open_layers(profile, 0.1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model") / "tiny"))


def test_a_preview_grows_with_the_work_it_speaks_of(folder):
    def preview(**changes):
        return pipeline.preview_profile(ProfileRequest(model=folder, samples=8, seq_len=64, **changes)).estimate

    fisher, exact, auto = (preview(method=method) for method in ("fisher", "exact", "auto"))
    assert fisher.scores == exact.scores == 32  # 16 layers in two formats
    assert fisher.forward_passes < exact.forward_passes < auto.forward_passes
    assert auto.at_most and not exact.at_most
    assert preview(method="fisher", draws=16).forward_passes > fisher.forward_passes
    assert min(fisher.memory_bytes, exact.memory_bytes) > 4 * 100_000  # the weights alone, in fp32


def test_a_preview_judges_the_text_and_stores_nothing(folder):
    preview = pipeline.preview_profile(ProfileRequest(model=folder, text="random", samples=8, seq_len=64))
    assert preview.calibration.quality.warnings
    assert preview.calibration.quality.perplexity > 1
    assert pipeline.open_store().profiles() == []


# ------------------------------------------------------------------------------------- differences


def test_the_error_of_a_difference_leaves_out_what_both_formats_have_in_common():
    values = chance.lognormal(0, 0.5, (16, 1)) * chance.normal(0, 0.01, (16, 1 + DRAWS))
    one, other = (estimates.fisher_measurement("a", f, values * size, 255) for f, size in (("x", 1.0), ("y", 1.01)))
    assert estimates.difference_stderr([one], [one], DRAWS) < 0.1 * one.kl_stderr
    assert estimates.difference_stderr([one], [other], DRAWS) < 0.1 * math.hypot(one.kl_stderr, other.kl_stderr)
    exact = other.model_copy(update={"method": "exact"})
    assert estimates.difference_stderr([one], [exact], DRAWS) >= math.hypot(one.kl_stderr, other.kl_stderr)


def test_a_difference_to_the_unquantized_layer_is_as_uncertain_as_the_score():
    one = projected(kl=1e-4)
    assert estimates.difference_stderr([], [one], DRAWS) == pytest.approx(
        (1 + estimates.DAMPING) * one.kl_stderr, rel=0.5
    )
    assert estimates.difference_stderr([one], [], DRAWS) == estimates.difference_stderr([], [one], DRAWS)


def test_error_bars_of_differences_cover_the_true_difference():
    inside, kl = [], 1e-4
    for _ in range(200):
        hard = np.exp(chance.normal(0, 0.3, (16, 1)))  # its square averages exp(2 * 0.3^2)
        one, other = (
            estimates.fisher_measurement("a", name, hard * chance.normal(0, math.sqrt(size), (16, 1 + DRAWS)), 255)
            for name, size in (("int8", kl), ("int4_g64", 2 * kl))
        )
        true = (1 + estimates.DAMPING) * kl * math.exp(2 * 0.3**2)
        found = (1 + estimates.DAMPING) * (other.kl - one.kl)
        inside.append(abs(found - true) < 1.96 * estimates.difference_stderr([one], [other], DRAWS))
    assert 0.85 <= np.mean(inside) <= 0.99
