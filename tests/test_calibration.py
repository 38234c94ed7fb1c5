"""What calibration text does to the scores of a real model's layers."""

import math
import statistics

import pytest

from advisor import pipeline
from advisor.types import ProfileRequest
from storage.engine import open_repository


@pytest.fixture
def ranked(demo_models_dir, tmp_path):
    """KL by layer of six blocks of the demo model in INT4, estimated on a text."""
    store = open_repository(f"sqlite:///{tmp_path / 'store.sqlite'}")

    def scores(text: str, samples: int, seed: int) -> dict[str, float]:
        request = ProfileRequest(
            model="smollm2",
            text=text,
            samples=samples,
            seq_len=64,
            formats=("int4_g64",),
            layers=r".*layers\.(0|5|11|17|23|29)\..*",
            draws=2,
            seed=seed,
        )
        return {m.layer: m.kl for m in pipeline.profile_model(request, store).measurements}

    return scores


def test_random_text_misjudges_what_layers_lose_more_than_real_text_does(ranked):
    truth = ranked("python-docs", 8, seed=0)

    def disagreement(found: dict[str, float]) -> float:
        """By which factor the median layer is misjudged, as its logarithm."""
        return statistics.median(abs(math.log(found[layer] / truth[layer])) for layer in truth)

    real, random = disagreement(ranked("python-docs", 4, seed=1)), disagreement(ranked("random", 4, seed=1))
    assert real < 0.6 and random > 1.25 * real
