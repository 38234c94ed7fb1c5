"""GGUF files that are not what was planned, plans that GGUF cannot hold, and the command line."""

import json

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from advisor import models
from advisor.catalogue import catalogue_model
from advisor.errors import ModelError, PlanError
from advisor.export import gguf
from advisor.types import ModelRef
from advisor.verify import differences
from tests import gguf_cases
from tests.full_disk import assert_nothing_is_left
from tests.gguf_cases import ENGINE, VOCABULARY, a_model, mixed
from tests.test_apply import a_plan
from tests.tiny_models import tiny_model

tokenizer = gguf_cases.tokenizer


def test_a_tampered_file_is_told_by_the_layers_name(tokenizer, tmp_path):
    model, catalogue = a_model()
    plan = mixed(catalogue)
    gguf.export(model, tokenizer, catalogue, plan, tmp_path / "out")
    path = tmp_path / "out" / "tiny.gguf"
    whole = path.read_bytes()

    tensors = GGUFReader(path, "r+").tensors
    tensor = next(tensor for tensor in tensors if tensor.name == "blk.0.attn_q.weight")
    tensor.field.parts[4][0] = GGMLQuantizationType.Q4_1
    [found] = differences(catalogue, plan, gguf.read(path), ENGINE)
    assert found.startswith("model.layers.0.self_attn.q_proj: int4_g64 (") and "hold int4_g64_asym (" in found

    path.write_bytes(whole.replace(b"blk.1.ffn_up", b"blk.9.ffn_up"))
    found = differences(catalogue, plan, gguf.read(path), ENGINE)
    assert [sentence.split(":")[0] for sentence in found] == ["model.layers.1.mlp.up_proj", "blk.9.ffn_up"]

    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be read back"):
        gguf.read(path)
    with pytest.raises(ModelError, match="cannot be read back"):
        gguf.load(path, torch.float32)


def _with(tokenizer, change):
    changed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    change(changed.backend_tokenizer)
    return changed


REFUSED = {
    "architecture": (("phi3", {}), None, "int8", "phi3 models cannot be written as GGUF yet"),
    "activation": (("llama", {"hidden_act": "gelu"}), None, "int8", "with SiLU, but this one has gelu"),
    "rope": (
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
        None,
        "int8",
        "no rotary embeddings of the kind 'dynamic'",
    ),
    "rows": (("llama", {"intermediate_size": 80}), None, "int8", "int8 does not fit its 80 input features"),
    "format": (("llama", {}), None, "nf4_g64", "nf4_g64"),
    "rounded inputs": (("llama", {}), None, "int8_w8a8", "int8_w8a8"),
    "rows of the embedding": (
        ("llama", {"vocab_size": 300}),
        None,
        "int8",
        "has 320 tokens, but the embedding 300 rows",
    ),
    "words": (
        ("llama", {}),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace()),
        "int8",
        "cuts words by Whitespace in a way that llama.cpp has no name for",
    ),
    "normalizer": (
        ("llama", {}),
        lambda t: setattr(t, "normalizer", normalizers.Lowercase()),
        "int8",
        "lacks its normalizer Lowercase",
    ),
    "tokenizer": (("llama", {}), lambda t: setattr(t, "model", WordPiece()), "int8", "its model is WordPiece, not BPE"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_is_refused_in_a_sentence_and_leaves_nothing(case, tokenizer, tmp_path):
    (architecture, overrides), change, fmt, said = REFUSED[case]
    model = tiny_model(architecture, **{"vocab_size": VOCABULARY, **overrides})
    catalogue = catalogue_model(model, ModelRef(source="tiny", kind="folder", name="tiny"))
    layers = [layer.name for layer in catalogue.quantizable if layer.block is not None]
    used = _with(tokenizer, change) if change else tokenizer
    with pytest.raises(PlanError, match=said) as refused:
        gguf.export(model, used, catalogue, a_plan(catalogue, dict.fromkeys(layers, fmt)), tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir() if path.name != "advisor-home"] == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tokenizer, tmp_path, run):
    a_model()[0].save_pretrained(tmp_path / "original")
    tokenizer.save_pretrained(tmp_path / "original")
    catalogue = models.load(str(tmp_path / "original"), lambda progress: None, dtype="own").catalogue
    (tmp_path / "plan.json").write_text(mixed(catalogue).model_dump_json())
    assert_nothing_is_left(tmp_path, "gguf", "gguf-k-quants", run=run)


def test_the_command_line_writes_the_folder_and_says_what_is_rounded_otherwise(tokenizer, run, tmp_path):
    a_model()[0].save_pretrained(tmp_path / "original")
    tokenizer.save_pretrained(tmp_path / "original")
    catalogue = models.load(str(tmp_path / "original"), lambda progress: None, dtype="own").catalogue
    (tmp_path / "plan.json").write_text(mixed(catalogue, ("int8", None)).model_dump_json())
    status, out, err = run("apply", tmp_path / "plan.json", "--to", "gguf", "--out", tmp_path / "new")
    assert status == 0, err
    assert "8 layers measured as int8, rounded by llama.cpp's rules as Q8_0" in out
    assert json.loads((tmp_path / "new" / "plan.json").read_text())["assignments"]
