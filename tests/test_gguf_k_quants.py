"""K-quants: what llama-quantize makes of a plan, and what is left to do where it is not at hand."""

import subprocess

import pytest
import torch

from advisor import pipeline
from advisor.errors import ModelError
from advisor.export import gguf, gguf_k_quants
from advisor.verify import differences
from tests import gguf_cases
from tests.gguf_cases import K_QUANTS, PROMPTS, a_model, log_probs, mixed
from tests.llama_cpp import ask, needs_llama_cpp, needs_llama_quantize, quantize_program
from tests.test_apply import loaded_in_own_dtype
from tests.test_read_back import flip

tokenizer = gguf_cases.tokenizer


K_FORMATS = ("int4_g64", "int3_g64", "int2_g64", "int8", None, "int4_g64_asym")


def a_wide_model():
    """Rows of 256, and of 320 in `down_proj`, which K-quants do not divide."""
    return a_model("llama", hidden_size=256, intermediate_size=320)


def a_stored_plan(tokenizer, tmp_path):
    """Of the wide model in a folder `original`."""
    a_wide_model()[0].save_pretrained(tmp_path / "original")
    tokenizer.save_pretrained(tmp_path / "original")
    plan = mixed(loaded_in_own_dtype(tmp_path / "original").catalogue, K_FORMATS)
    return plan.model_copy(update={"request": plan.request.model_copy(update={"engine": K_QUANTS.name})})


@needs_llama_cpp
@needs_llama_quantize
def test_k_quants_are_what_llama_quantize_makes_of_the_types_that_it_is_given(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_QUANTIZE", str(quantize_program(tmp_path)))
    model, catalogue = a_wide_model()
    plan = mixed(catalogue, K_FORMATS)
    told = gguf_k_quants.export(model, tokenizer, catalogue, plan, tmp_path / "out")
    found = gguf.read(tmp_path / "out")
    unfit = [name for name in plan.assignments if "down_proj" in name and plan.assignments[name] != "int8"]
    assert unfit and all("320 input features do not split into the 256 of Q" in told[name] for name in unfit)
    wrong = differences(catalogue, plan, found, K_QUANTS)
    assert [sentence.split(":")[0] for sentence in wrong] == unfit
    bytes_of = {layer.name: layer.parameters for layer in catalogue.layers}
    for name, bits in {"int4_g64": 4.5, "int3_g64": 3.4375, "int2_g64": 2.625, "int8": 8.5}.items():
        layer = next(n for n, fmt in plan.assignments.items() if fmt == name and n not in unfit)
        assert found[layer].bytes == bytes_of[layer] * bits / 8
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"tiny.gguf", "plan.json", "tensor-types.txt"}
    assert not list((tmp_path / "out").glob("*unquantized*"))
    back = gguf.load(tmp_path / "out", torch.float32)
    for by_llama_cpp, by_transformers in zip(
        ask(tmp_path / "out" / "tiny.gguf", PROMPTS)["log_probs"], log_probs(back, PROMPTS), strict=True
    ):
        assert (torch.tensor(by_llama_cpp) - by_transformers).abs().max() < 0.2


@needs_llama_quantize
def test_changed_bytes_are_found_with_the_tensors_name(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_QUANTIZE", str(quantize_program(tmp_path)))
    plan = a_stored_plan(tokenizer, tmp_path)
    pipeline.apply_plan(plan, "gguf-k-quants", tmp_path / "out")
    assert pipeline.verify_export(tmp_path / "out", plan).largest_row_difference == 0
    flip(tmp_path / "out")
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight: its bytes are not those that were written"):
        pipeline.verify_export(tmp_path / "out", plan)


@needs_llama_quantize
def test_without_llama_quantize_the_command_is_told_and_finishes_the_folder(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_QUANTIZE", "not-installed-here")
    plan = a_stored_plan(tokenizer, tmp_path)
    pipeline.apply_plan(plan, "gguf-k-quants", tmp_path / "out")
    record = pipeline.record_in(tmp_path / "out")
    assert (record.left, record.verified) == ("sh llama-quantize.sh", None)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "    sh llama-quantize.sh\n    llama-server -m original.gguf" in card and "still to be made" in card
    with pytest.raises(ModelError, match=r"unquantized weights only: run .*llama-quantize\.sh first"):
        gguf.read(tmp_path / "out")
    quantize_program(tmp_path)
    ran = subprocess.run(
        ["sh", str(tmp_path / "out" / "llama-quantize.sh")], env={"PATH": f"{tmp_path}:/bin:/usr/bin", **_python_path()}
    )
    assert ran.returncode == 0
    found = pipeline.verify_export(tmp_path / "out", plan)
    assert (found.largest_row_difference, found.bytes) == (0, record.bytes)


def _python_path():
    import os

    return {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("cp tiny-unquantized.gguf tiny.gguf", "model.embed_tokens is BF16 instead of Q4_K"),
        ("echo no such type >&2; exit 1", "failed .no such type.: check its version"),
    ],
)
def test_a_llama_quantize_that_does_something_else_leaves_nothing(script, said, tokenizer, tmp_path, monkeypatch):
    program = tmp_path / "llama-quantize"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("LLAMA_QUANTIZE", str(program))
    model, catalogue = a_wide_model()
    with pytest.raises(ModelError, match=said):
        gguf_k_quants.export(model, tokenizer, catalogue, mixed(catalogue, K_FORMATS), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name != "advisor-home"] == ["llama-quantize"]
