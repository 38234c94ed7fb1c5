"""Tokenizers in GGUF files: llama.cpp cuts text as the model's own tokenizer does."""

import pytest
from gguf import GGUFReader
from tokenizers import Regex, pre_tokenizers

from advisor.catalogue import catalogue_model
from advisor.export import gguf
from advisor.types import ModelRef
from tests import gguf_cases
from tests.gguf_cases import TEXT, VOCABULARY, a_model, mixed
from tests.llama_cpp import ask, needs_llama_cpp
from tests.tiny_models import merging_tokenizer, sentencepiece_tokenizer, tiny_model

tokenizer = gguf_cases.tokenizer


@needs_llama_cpp
def test_a_sentencepiece_tokenizer_cuts_text_alike_everywhere(tmp_path):
    tokenizer = sentencepiece_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer) + 5)
    catalogue = catalogue_model(model, ModelRef(source="tiny", kind="folder", name="tiny"))
    gguf.export(model, tokenizer, catalogue, mixed(catalogue), tmp_path / "out")
    expected = tokenizer(TEXT)["input_ids"]
    assert ask(tmp_path / "out" / "tiny.gguf", texts=[TEXT])["tokens"] == [expected]
    fields = GGUFReader(tmp_path / "out" / "tiny.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert fields["tokenizer.ggml.tokens"].contents()[-1] == f"[PAD{len(tokenizer) + 4}]"
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds[:4] == [2, 3, 3, 6] and kinds[-5:] == [5] * 5


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)], "smollm"),
        (
            [
                pre_tokenizers.Split(
                    Regex(
                        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
                    ),
                    "isolated",
                ),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ],
            "qwen2",
        ),
        (
            [
                pre_tokenizers.Split(
                    Regex(
                        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
                    ),
                    "isolated",
                ),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ],
            "llama-bpe",
        ),
    ],
    ids=["smollm", "qwen2", "llama-bpe"],
)
@needs_llama_cpp
def test_llama_cpp_cuts_words_as_the_tokenizer_does(steps, name, tmp_path):
    tokenizer = merging_tokenizer(VOCABULARY)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    model, catalogue = a_model()
    gguf.export(model, tokenizer, catalogue, mixed(catalogue), tmp_path / "out")
    path = tmp_path / "out" / "tiny.gguf"
    assert GGUFReader(path).fields["tokenizer.ggml.pre"].contents() == name
    [found] = ask(path, texts=[TEXT])["tokens"]
    expected = tokenizer(TEXT)["input_ids"]
    assert found[found[0] == tokenizer.bos_token_id :] == expected


def test_a_model_from_a_gguf_file_keeps_that_files_tokenizer(tokenizer, tmp_path):
    model, catalogue = a_model()
    gguf.export(model, tokenizer, catalogue, mixed(catalogue), tmp_path / "first")
    source = tmp_path / "first" / "tiny.gguf"
    ref = ModelRef(source=str(source), kind="gguf", name="tiny")
    again = catalogue.model_copy(update={"model": ref})
    gguf.export(model, sentencepiece_tokenizer(), again, mixed(again), tmp_path / "second")
    first, second = (
        {n: f.contents() for n, f in GGUFReader(path).fields.items() if n.startswith("tokenizer.")}
        for path in (source, tmp_path / "second" / "tiny.gguf")
    )
    assert first == second and len(first) > 8
