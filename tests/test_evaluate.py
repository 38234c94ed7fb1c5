"""Evaluations: what is scored once and with which context, errors over sequences, the tails of KL, and speed."""

import math
import mmap

import pytest
import torch

from advisor import pipeline, texts
from advisor.cli import evaluation
from advisor.errors import ModelError, TextError
from advisor.evaluate import Measuring, Scores, score, scored
from advisor.marks import errors_said
from advisor.scoring import mean_and_clustered_stderr, mean_and_stderr
from advisor.speed import measure_speed
from advisor.types import ApplyRequest, Evaluation, EvaluationOptions, ModelRef
from tests.stored_nouns import make_evaluation
from tests.tiny_models import byte_tokenizer, tiny_folder, tiny_model, trained_folder

SHORT = {"tokens": 256, "seq_len": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model that has learned a little, and the same with coarser weights."""
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("models")
    original = trained_folder(root / "original", steps=60)
    model = AutoModelForCausalLM.from_pretrained(original)
    for parameter in model.parameters():
        step = parameter.abs().max() / 4
        parameter.data = (parameter / step).round() * step
    model.save_pretrained(root / "coarse")
    byte_tokenizer().save_pretrained(root / "coarse")
    return original, root / "coarse"


@pytest.mark.parametrize("stride", [16, 24, 63])
def test_overlapping_windows_score_every_token_once_with_the_context_of_the_definition(stride):
    model, length = tiny_model("llama"), 64
    windows = texts.token_windows("python-docs", byte_tokenizer(), "evaluation", 5, length, stride=stride)
    running = torch.cat([windows[0], *(window[-stride:] for window in windows[1:])])
    expected, done = [], 1  # the first token has nothing before it
    with torch.no_grad():
        for begin in range(0, len(running) - length + 1, stride):
            ids = running[begin : begin + length]
            log_p = model(ids[None]).logits[0].log_softmax(-1)
            for place in range(done - begin, length):
                expected.append(-log_p[place - 1, ids[place]])
            done = begin + length
    found = score(model, windows, stride=stride)
    assert len(found.nll) == len(running) - 1
    assert torch.allclose(found.nll, torch.stack(expected), atol=1e-4)


def test_windows_side_by_side_are_overlapping_ones_without_overlap():
    windows = texts.token_windows("python-docs", byte_tokenizer(), "evaluation", 3, 32)
    assert scored(windows, None).all() and scored(windows, 31).all()
    assert scored(windows, 8).sum() == 31 + 2 * 8


def test_a_stride_that_leaves_tokens_out_and_a_mix_of_texts_are_refused(folders):
    for stride, text, said in ((64, "python-docs", "leaves out tokens"), (16, "mix", "one running text")):
        with pytest.raises(TextError, match=said):
            pipeline.evaluate_source(str(folders[0]), text, 256, 64, options=EvaluationOptions(stride=stride))


def test_the_error_of_a_mean_is_over_clusters():
    torch.manual_seed(0)
    clusters = torch.arange(50).repeat_interleave(20)
    alike = torch.randn(50, dtype=torch.float64).repeat_interleave(20)
    mean, error = mean_and_clustered_stderr(alike, clusters)
    assert error == pytest.approx(alike[::20].std().item() / math.sqrt(50))  # as if each cluster were one token
    assert mean == pytest.approx(alike.mean().item())
    independent = torch.randn(1000)
    assert mean_and_clustered_stderr(independent, clusters)[1] == pytest.approx(
        mean_and_stderr(independent)[1], rel=0.25
    )
    assert mean_and_clustered_stderr(independent, torch.zeros(1000))[1] == mean_and_stderr(independent)[1]


def test_the_error_of_overlapping_windows_knows_that_neighbours_are_one_text():
    windows = texts.token_windows("python-docs", byte_tokenizer(), "evaluation", 9, 32, stride=8)
    assert score(tiny_model("llama"), windows, stride=8).clusters.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("stride", [None, 8, 24, 31])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_text_in_one_sequence_is_known_by_its_tokens(count, stride):
    windows = texts.token_windows("python-docs", byte_tokenizer(), "evaluation", count, 32, stride=stride)
    measuring = Measuring(ModelRef(source="", kind="folder", name=""), "own.txt", None, windows, print, stride)
    clusters = score(tiny_model("llama"), windows, stride=stride).clusters.unique()
    assert measuring.text_spec.one_sequence == (len(clusters) == 1)


def test_less_text_than_was_asked_for_and_an_error_from_one_sequence_are_told(folders, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("\n\n".join(f"Paragraph {i}: {i * i} and {i**3}, {'x' * i}" for i in range(90)))
    short = pipeline.evaluate_source(str(folders[0]), str(own), 4096, 64)
    [note] = short.notes
    assert f"only {short.text.tokens:,} held-out tokens in sequences of 64, and 4,096 were asked for: " in note
    assert note in evaluation.evaluation_text(short) and errors_said(short.text) == "± is one standard error"
    alone = pipeline.evaluate_source(str(folders[0]), str(own), 256, 256)
    [note] = alone.notes
    assert note.startswith(errors_said(alone.text)) and "of a single sequence for independent" in note
    assert pipeline.evaluate_source(str(folders[0]), str(own), 500, 64).notes == ()


def test_kl_is_told_with_its_tail():
    kl = torch.linspace(0, 1, 1001)
    clusters = torch.arange(1001) // 100
    found = Scores(nll=kl, clusters=clusters, kl=kl, same_top1=kl < 0.25).summary()
    assert found["kl_to_original"] == pytest.approx(0.5) and found["kl_p99"] == pytest.approx(0.99)
    assert found["kl_max"] == 1 and found["same_top1"] == pytest.approx(0.25, abs=1e-3)


def test_a_model_held_against_its_original_has_paired_changes_and_a_verdict(folders):
    original, coarse = map(str, folders)
    found = pipeline.evaluate_source(coarse, against=original, **SHORT)
    alone = pipeline.evaluate_source(original, **SHORT)
    assert found.original.perplexity == alone.perplexity and found.original.kl_to_original is None
    assert found.delta_nll == pytest.approx(found.nll - alone.nll, abs=1e-6)
    assert 0 < found.kl_to_original < found.kl_p99 <= found.kl_max and 0 < found.same_top1 < 1
    said = evaluation.evaluation_text(found)
    assert "perplexity changes by +" in said and "usually accepted" in said or "poor by the usual mark" in said
    assert "original" in said and "same top-1" in said
    same = pipeline.evaluate_source(original, against=original, **SHORT)
    assert same.delta_nll == 0 and same.kl_max == pytest.approx(0, abs=1e-6) and same.same_top1 == 1


def test_a_model_of_another_vocabulary_is_no_variant(folders, tmp_path):
    other = tiny_folder(tmp_path / "other", vocab_size=300)
    with pytest.raises(ModelError, match="other has another vocabulary"):
        pipeline.evaluate_source(str(other), against=str(folders[0]), **SHORT)


def test_speed_is_the_median_of_runs_with_their_spread():
    model = tiny_model("llama")
    windows = texts.token_windows("python-docs", byte_tokenizer(), "evaluation", 2, 64)
    found = measure_speed(model, windows, runs=3)
    assert (found.prompt_tokens, found.new_tokens, found.runs, found.device) == (32, 32, 3, "cpu")
    for spread in (found.prefill_tokens_per_s, found.decode_tokens_per_s, found.first_token_s):
        assert 0 < spread.low <= spread.median <= spread.high
    assert found.first_token_s.median == pytest.approx(32 / found.prefill_tokens_per_s.median)
    # Reading makes one pass over 32 tokens, writing one for each: a token that is read costs less.
    assert found.prefill_tokens_per_s.median > found.decode_tokens_per_s.median
    assert found.memory_of == "process" and found.peak_memory_bytes > 50 << 20


def test_the_peak_of_memory_is_what_the_runs_used_and_not_what_came_before():
    model = tiny_model("llama")
    windows = texts.token_windows("python-docs", byte_tokenizer(), "evaluation", 1, 32)
    before = measure_speed(model, windows, runs=1).peak_memory_bytes
    kept = mmap.mmap(-1, 512 << 20)  # memory that no allocator had before
    for start in range(0, len(kept), mmap.PAGESIZE):
        kept[start] = 1
    during = measure_speed(model, windows, runs=1).peak_memory_bytes
    kept.close()
    after = measure_speed(model, windows, runs=1).peak_memory_bytes
    assert during - before > 256 << 20 and during - after > 256 << 20


def test_evaluations_and_requests_that_were_stored_before_are_still_read():
    stored = make_evaluation().model_dump(mode="json")
    new = {"kl_p99", "kl_max", "tasks", "speed", "original"}
    old = {name: value for name, value in stored.items() if name not in new}
    old["text"] = {name: value for name, value in stored["text"].items() if name != "stride"}
    assert Evaluation.model_validate(old) == make_evaluation().model_copy(
        update={"created": Evaluation.model_validate(old).created}
    )
    assert ApplyRequest.model_validate({"plan_id": "p"}).tasks == ()
