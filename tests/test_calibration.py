"""What calibration text does to the ranking of a real model's layers."""

import pytest
from scipy.stats import spearmanr

from advisor import pipeline
from advisor.types import ProfileRequest
from storage.engine import open_repository


@pytest.fixture
def ranked(demo_models_dir, tmp_path):
    """KL by layer of the demo model in INT4, estimated on a text."""
    store = open_repository(f"sqlite:///{tmp_path / 'store.sqlite'}")

    def scores(text: str, samples: int, seed: int) -> dict[str, float]:
        request = ProfileRequest(
            model="smollm2", text=text, samples=samples, seq_len=128, formats=("int4_g64",), draws=4, seed=seed
        )
        return {m.layer: m.kl for m in pipeline.profile_model(request, store).measurements}

    return scores


def test_random_text_ranks_layers_worse_than_real_text(ranked):
    truth = ranked("python-docs", 12, seed=0)

    def agreement(found: dict[str, float]) -> float:
        return spearmanr([truth[layer] for layer in truth], [found[layer] for layer in truth]).statistic

    real, random = agreement(ranked("python-docs", 6, seed=1)), agreement(ranked("random", 6, seed=1))
    assert real > 0.8
    assert random < real - 0.05
