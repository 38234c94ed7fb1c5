"""The quality report: sound text is called sound, each defect is named with what to do, thresholds are not on edge."""

import math
from itertools import pairwise

import pytest
import torch

from advisor import models, texts
from advisor.text_quality import text_quality
from advisor.types import CalibrationSpec, TextQuality
from tests.tiny_models import byte_tokenizer

VOCABULARY = 5_000
_PARAGRAPH = (
    "The mill by the river ground rye for three villages. When the water was low the miller went from door to door and "
    "said which day the wheel would turn again, and nobody thought of asking the mill of the next valley. "
)


def zipf(windows: int, length: int, seed: int, first: int = 0, words: int = 2_000) -> torch.Tensor:
    """Tokens `first` and up, the n-th drawn about 1/n as often as the first, as words of a language are."""
    weights = 1 / torch.arange(1, words + 1, dtype=torch.float64)
    drawn = torch.multinomial(weights, windows * length, replacement=True, generator=torch.manual_seed(seed))
    return (first + drawn).reshape(windows, length)


@pytest.fixture(scope="module")
def tokenizer(demo_models_dir):
    """The demo model's own: thresholds are about real tokens."""
    return models.load("smollm2", lambda progress: None).tokenizer


def report(tokenizer, source: str, evaluation: str = "python-docs", samples: int = 8, seed: int = 0) -> TextQuality:
    windows = texts.token_windows(source, tokenizer, "calibration", samples, 256, seed=seed)
    held_out = texts.token_windows(evaluation, tokenizer, "evaluation", 16, 256)
    return text_quality(windows, held_out, len(tokenizer))


@pytest.mark.parametrize("source", ["python-docs", "python-chat", "mix"])
@pytest.mark.parametrize("seed", range(3))
def test_built_in_text_has_no_fault(tokenizer, source, seed):
    assert report(tokenizer, source, seed=seed).warnings == ()
    assert report(tokenizer, source, source, seed=seed).warnings == ()


def test_little_text_is_called_little_and_nothing_worse(tokenizer):
    (warning,) = report(tokenizer, "python-docs", samples=2).warnings
    assert warning.startswith("512 tokens are few") and "8 samples of 256" in warning


def test_random_tokens_look_random_with_and_without_a_model(tokenizer):
    assert "looks random" in report(tokenizer, "random").warnings[0]
    windows = zipf(8, 256, seed=0)
    (warning,) = text_quality(windows, None, VOCABULARY, perplexity=VOCABULARY / 2).warnings
    assert "looks random to the model (perplexity 2,500" in warning and "use text such as" in warning
    assert text_quality(windows, None, VOCABULARY, perplexity=40.0, evaluation_perplexity=30.0).warnings == ()


def test_a_model_that_predicts_nothing_is_not_the_texts_fault():
    quality = text_quality(zipf(8, 256, 0), zipf(8, 256, 1), VOCABULARY, perplexity=5e3, evaluation_perplexity=4e3)
    (warning,) = quality.warnings
    assert "predicts neither this text nor the evaluation text" in warning and "tokenizer" in warning


def test_an_infinite_perplexity_is_reported_not_crashed_on():
    assert "looks random" in text_quality(zipf(8, 256, 0), None, VOCABULARY, perplexity=math.inf).warnings[0]


def test_a_repeated_paragraph_is_found(tokenizer, tmp_path):
    path = tmp_path / "mill.txt"
    path.write_text("\n\n".join(f"{n}. {_PARAGRAPH}" for n in range(400)))
    quality = report(tokenizer, str(path))
    assert quality.repetition > 0.8
    assert "repeats itself" in quality.warnings[0] and "take the repeated passages out" in quality.warnings[0]


def test_text_of_another_kind_is_found_and_mixing_it_in_is_the_remedy(tokenizer, tmp_path):
    names = "abcdefghijklmnopqrstuvwxyz"
    path = tmp_path / "poems.txt"
    path.write_text("\n".join(f"{b}{a}x = {a}q[{i}] ;; {b}" for i, (a, b) in enumerate(pairwise(names * 90))))
    quality = report(tokenizer, str(path))
    assert any("unlike the evaluation text" in w and "joined by `+`" in w for w in quality.warnings)
    mixed = report(tokenizer, f"python-docs+{path}")
    assert mixed.divergence < quality.divergence


def test_repetition_is_the_share_of_runs_that_came_earlier():
    once = torch.arange(16)[None]  # nine runs of eight
    assert text_quality(once, None, VOCABULARY).repetition == 0
    assert text_quality(once.repeat(4, 1), None, VOCABULARY).repetition == pytest.approx(27 / 36)
    assert text_quality(torch.zeros(1, 16, dtype=torch.int64), None, VOCABULARY).repetition == pytest.approx(8 / 9)
    # Runs do not cross the border between two windows.
    assert text_quality(torch.arange(4).repeat(9)[None].reshape(9, 4), None, VOCABULARY).repetition == 0


def test_divergence_runs_from_none_to_one_bit():
    windows = zipf(8, 256, 0)
    assert text_quality(windows, windows, VOCABULARY).divergence == pytest.approx(0, abs=1e-12)
    assert text_quality(windows, windows + 2_000, VOCABULARY).divergence == pytest.approx(1)
    assert text_quality(windows, None, VOCABULARY).divergence is None


@pytest.mark.parametrize(("windows", "evaluation"), [((4, 128), (4, 128)), ((32, 256), (16, 64)), ((2, 64), (64, 256))])
def test_two_samples_of_one_text_diverge_as_expected(windows, evaluation):
    quality = text_quality(zipf(*windows, seed=1), zipf(*evaluation, seed=2), VOCABULARY)
    assert quality.divergence > 0.04
    assert quality.divergence == pytest.approx(quality.expected_divergence, rel=0.1)


def test_the_report_is_the_same_every_time_and_is_kept_with_the_text():
    quality = text_quality(zipf(8, 256, 0), zipf(4, 64, 1), VOCABULARY, perplexity=20.0)
    assert quality == text_quality(zipf(8, 256, 0), zipf(4, 64, 1), VOCABULARY, perplexity=20.0)
    spec = CalibrationSpec(text="python-docs", samples=8, seq_len=256, quality=quality)
    assert CalibrationSpec.model_validate_json(spec.model_dump_json()) == spec
    assert CalibrationSpec(text="python-docs", samples=8, seq_len=256).quality is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (1, 64)])
def test_the_smallest_windows_can_be_judged(shape):
    quality = text_quality(zipf(*shape, seed=0), zipf(*shape, seed=1), VOCABULARY)
    assert quality.tokens == shape[0] * shape[1]
    assert all("few" in warning or "unlike" in warning for warning in quality.warnings)


def test_a_vocabulary_of_bytes_is_judged_by_its_own_size():
    windows = texts.token_windows("python-docs", byte_tokenizer(), "calibration", 8, 256)
    held_out = texts.token_windows("python-docs", byte_tokenizer(), "evaluation", 8, 256)
    assert text_quality(windows, held_out, 256).warnings == ()
    noise = texts.token_windows("random", byte_tokenizer(), "calibration", 8, 256)
    assert "looks random" in text_quality(noise, held_out, 256).warnings[0]
