"""A plan as GGUF: the file holds what was planned, and transformers and llama.cpp compute with it what they should."""

import json
import subprocess
import sys

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from advisor import models, pipeline
from advisor.catalogue import catalogue_model
from advisor.errors import ModelError, PlanError
from advisor.export import gguf, gguf_k_quants
from advisor.formats.quantize import fake_quantize
from advisor.knowledge import find_engine, find_format
from advisor.memory import weights_bytes
from advisor.types import ApplyRequest, ModelRef
from advisor.verify import differences
from tests.conftest import REPOSITORY
from tests.llama_cpp import ask, encode, needs_llama_cpp, quantize_program
from tests.test_apply import DTYPES, a_plan
from tests.tiny_models import merging_tokenizer, sentencepiece_tokenizer, tiny_model

VOCABULARY = 320
FORMATS = ("int8", "int4_g64", "int4_g32", None, "int4_g64_asym", "int8_g64")
ENGINE, K_QUANTS = find_engine("llama.cpp"), find_engine("llama.cpp-k-quants")
TEXT = "The  quick brown fox's 1234 tests: naïve, 東京!\n\tif x == 10:\n        return None"
PROMPTS = [[5], [7, 200, 31, 90, 12, 64], [3 + 7 * i % 300 for i in range(30)]]
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def tokenizer():
    return merging_tokenizer(VOCABULARY)


def a_model(architecture="llama", dtype="bf16", **overrides):
    """A tiny model whose attention is sharp enough to notice wrongly rotated heads, and its catalogue."""
    if architecture == "qwen3":
        overrides["head_dim"] = 128  # transformers' reader takes Qwen3's default
    model = tiny_model(architecture, vocab_size=VOCABULARY, **overrides)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj.weight" in name or "k_proj.weight" in name:
                parameter.mul_(12)
            # Parameters alone: the rotary frequencies stay in fp32, as `from_pretrained` leaves them.
            parameter.data = parameter.to({**DTYPES, "fp32": torch.float32}[dtype])
    model.requires_grad_(False)
    return model, catalogue_model(model, ModelRef(source="tiny", kind="folder", name="tiny"))


def mixed(catalogue, formats=FORMATS):
    chosen = {layer.name: formats[i % len(formats)] for i, layer in enumerate(catalogue.quantizable)}
    plan = a_plan(catalogue, {name: fmt for name, fmt in chosen.items() if fmt})
    return plan.model_copy(update={"request": plan.request.model_copy(update={"engine": ENGINE.name})})


def log_probs(model, prompts):
    with torch.no_grad():
        return [model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for prompt in prompts]


# ------------------------------------------------------------------------------------ what it holds


@pytest.mark.parametrize("case", ["llama bf16 tied", "mistral bf16", "qwen2 fp16", "qwen3 fp32"])
def test_a_mixed_plan_is_in_the_file_tensor_by_tensor(case, tokenizer, tmp_path):
    architecture, dtype, *tied = case.split()
    model, catalogue = a_model(architecture, dtype, tie_word_embeddings=bool(tied))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    plan = mixed(catalogue)
    gguf.export(model, tokenizer, catalogue, plan, tmp_path / "out")
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())

    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "out" / "tiny.gguf").tensors}
    assert len(tensors) == len(catalogue.layers)
    by_name = catalogue.by_name()
    for name, tensor_name in {
        "model.embed_tokens": "token_embd",
        "model.layers.1.mlp.down_proj": "blk.1.ffn_down",
        "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
        "model.layers.1.self_attn.k_proj": "blk.1.attn_k",
        "model.norm": "output_norm",
    }.items():
        tensor, layer = tensors[f"{tensor_name}.weight"], by_name[name]
        vector = len(layer.shape) == 1
        kind = "F32" if vector else ENGINE.formats[plan.assignments.get(name, catalogue.dtype)].stored_as
        assert tensor.tensor_type.name == kind and tuple(reversed(tensor.shape.tolist())) == layer.shape
        weight = before[layer.parameter].float()
        if name.endswith("k_proj") and architecture in ("llama", "mistral"):
            # In each head of 16 rows, 0 and 8 are rotated together, 1 and 9, and so on: ggml wants them side by side.
            rows = [16 * head + i + half for head in range(2) for i in range(8) for half in (0, 8)]
            weight = weight[rows]
        expected = dequantize(quantize(weight.numpy(), GGMLQuantizationType[kind]), GGMLQuantizationType[kind])
        assert (dequantize(tensor.data, tensor.tensor_type) == expected).all()

    found = gguf.read(tmp_path / "out")
    assert differences(catalogue, plan, found, ENGINE) == []
    assert sum(stored.bytes for stored in found.values()) == weights_bytes(catalogue, plan.assignments, ENGINE)


def test_every_layer_that_is_not_stored_as_it_was_measured_is_told(tokenizer, tmp_path):
    model, catalogue = a_model()
    plan = mixed(catalogue)
    told = gguf.export(model, tokenizer, catalogue, plan, tmp_path / "out")
    assert told.keys() == plan.assignments.keys()
    assert set(told.values()) == {
        f"measured as {fmt}, rounded by llama.cpp's rules as {ENGINE.formats[fmt].stored_as}" for fmt in FORMATS if fmt
    }


@pytest.mark.parametrize(
    "name", [n for n, own in (ENGINE.formats | K_QUANTS.formats).items() if own.stored_as not in ("F32", "F16", "BF16")]
)
@needs_llama_cpp
def test_what_gguf_stores_loses_less_than_what_was_measured(name):
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)) * 0.05

    def error(values):
        return (values - weight).norm()

    measured = error(fake_quantize(weight, find_format(name)))
    for kind in {engine.formats[name].stored_as for engine in (ENGINE, K_QUANTS) if name in engine.formats}:
        encoded = encode(weight.numpy(), kind)
        if not kind.endswith("_K"):
            assert (encoded == quantize(weight.numpy(), GGMLQuantizationType[kind])).all()
        assert error(torch.from_numpy(dequantize(encoded, GGMLQuantizationType[kind]))) < measured


def test_the_file_says_all_that_llama_cpp_asks_for(tokenizer, tmp_path):
    model, catalogue = a_model("llama", rope_parameters=LLAMA_3)
    gguf.export(model, tokenizer, catalogue, mixed(catalogue), tmp_path / "out")
    fields = {n: f.contents() for n, f in GGUFReader(tmp_path / "out" / "tiny.gguf").fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.quantization_version": 2,
        "llama.vocab_size": VOCABULARY,
        "llama.context_length": 256,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": tokenizer.chat_template,
    }
    assert {name: fields.get(name) for name in expected} == expected
    assert fields["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(VOCABULARY))
    assert fields["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert len(fields["tokenizer.ggml.merges"]) == VOCABULARY - 256 - 3


def test_a_window_that_llama_cpp_does_not_slide_bounds_the_context(tokenizer, tmp_path):
    model, catalogue = a_model("mistral")
    gguf.export(model, tokenizer, catalogue, mixed(catalogue), tmp_path / "out")
    fields = GGUFReader(tmp_path / "out" / "tiny.gguf").fields
    assert fields["llama.context_length"].contents() == model.config.sliding_window == 32


# -------------------------------------------------------------------------------- what it computes


def test_transformers_alone_computes_with_it_what_was_planned(tokenizer, tmp_path):
    expected = {}
    for architecture in ("llama", "qwen2", "qwen3"):
        model, catalogue = a_model(architecture, tie_word_embeddings=architecture == "llama")
        plan = mixed(catalogue)
        gguf.export(model, tokenizer, catalogue, plan, tmp_path / architecture)
        exact = model.float()
        gguf.simulate(exact, catalogue, plan)
        expected[architecture] = log_probs(exact, PROMPTS)
    program = f"""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
found = {{}}
for name in {list(expected)}:
    model = AutoModelForCausalLM.from_pretrained(name, gguf_file="tiny.gguf", dtype=torch.float32)
    logits = [model(torch.tensor([p])).logits[0, -1].log_softmax(-1) for p in {PROMPTS}]
    tokens = AutoTokenizer.from_pretrained(name, gguf_file="tiny.gguf")({TEXT!r})["input_ids"]
    found[name] = (torch.stack(logits).detach(), tokens)
torch.save(found, "found.pt")
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for name, (found, tokens) in torch.load(tmp_path / "found.pt").items():
        assert (found - torch.stack(expected[name])).abs().max() < 1e-4, name
        if name == "llama":  # its converter for Qwen splits digits by the pattern of that model's own tokenizer
            assert tokens == tokenizer(TEXT)["input_ids"]


CASES = {
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, Llama 3 rope": ("llama", {"rope_parameters": LLAMA_3}),
    "llama, linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2, YaRN": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen3": ("qwen3", {}),
}


@pytest.mark.parametrize("case", CASES)
@needs_llama_cpp
def test_llama_cpp_computes_with_it_what_was_planned(case, tokenizer, tmp_path):
    architecture, overrides = CASES[case]
    model, catalogue = a_model(architecture, **overrides)
    plan = mixed(catalogue, formats=("int8", None))
    gguf.export(model, tokenizer, catalogue, plan, tmp_path / "out")
    exact = model.float()
    gguf.simulate(exact, catalogue, plan)
    answers = ask(tmp_path / "out" / "tiny.gguf", PROMPTS, [TEXT])
    for found, expected in zip(answers["log_probs"], log_probs(exact, PROMPTS), strict=True):
        # llama.cpp rounds what 8-bit weights are multiplied with to 8 bits, and keys and values to 16.
        assert (torch.tensor(found) - expected).abs().max() < 0.1
    assert answers["tokens"] == [tokenizer(TEXT)["input_ids"]]


def test_evaluating_the_folder_reads_the_file_back(tokenizer, tmp_path):
    a_model()[0].save_pretrained(tmp_path / "original")
    tokenizer.save_pretrained(tmp_path / "original")
    catalogue = models.load(str(tmp_path / "original"), lambda progress: None, dtype="own").catalogue
    plan = mixed(catalogue)
    told = pipeline.apply_plan(plan, "gguf", tmp_path / "out")
    assert told.keys() == plan.assignments.keys()
    found = pipeline.evaluate_source(str(tmp_path / "out"), tokens=256, seq_len=64)
    assert found.file_bytes == weights_bytes(catalogue, plan.assignments, ENGINE)
    assert found.ms_per_token is None and "de-quantized" in found.notes[0]
    assert 1 < found.perplexity < 2 * VOCABULARY


def test_applying_a_stored_plan_measures_what_is_in_the_file(tokenizer, tmp_path):
    a_model()[0].save_pretrained(tmp_path / "original")
    tokenizer.save_pretrained(tmp_path / "original")
    loaded = models.load(str(tmp_path / "original"), lambda progress: None)
    plan, store = mixed(loaded.catalogue), pipeline.open_store()
    request = ApplyRequest(plan_id=store.save_plan(plan, None), to="gguf", tokens=256, seq_len=64, baselines=())
    folder = pipeline.apply_and_evaluate(request, store)["folder"]
    found = {evaluation.variant: evaluation for evaluation in store.evaluations(request.plan_id)}
    assert found["plan"].file_bytes == weights_bytes(loaded.catalogue, plan.assignments, ENGINE)
    assert found["plan"].ms_per_token is None and found["plan"].kl_to_original > 0
    assert pipeline.apply_and_evaluate(request, store) == {"folder": folder}  # the same file is measured again


# ------------------------------------------------------------------------------------- tokenizers


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


# -------------------------------------------------------------------------------------- K-quants

K_FORMATS = ("int4_g64", "int3_g64", "int2_g64", "int8", None, "int4_g64_asym")


def a_wide_model():
    """Rows of 256, and of 320 in `down_proj`, which K-quants do not divide."""
    return a_model("llama", hidden_size=256, intermediate_size=320)


@needs_llama_cpp
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


@needs_llama_cpp
def test_without_llama_quantize_the_command_is_told_and_finishes_the_folder(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_QUANTIZE", "not-installed-here")
    model, catalogue = a_wide_model()
    plan = mixed(catalogue, K_FORMATS)
    told = gguf_k_quants.export(model, tokenizer, catalogue, plan, tmp_path / "out")
    line = "llama-quantize --tensor-type-file tensor-types.txt tiny-unquantized.gguf tiny.gguf Q8_0"
    assert all(line in reason for reason in told.values())
    with pytest.raises(ModelError, match=r"unquantized weights only: run .*llama-quantize\.sh first"):
        gguf.read(tmp_path / "out")
    quantize_program(tmp_path)
    ran = subprocess.run(
        ["sh", str(tmp_path / "out" / "llama-quantize.sh")], env={"PATH": f"{tmp_path}:/bin:/usr/bin", **_python_path()}
    )
    assert ran.returncode == 0
    assert gguf.read(tmp_path / "out")["lm_head"].bytes > 0


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


# -------------------------------------------------------------------------------------- refusals


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


@pytest.mark.parametrize("to", ["gguf", "gguf-k-quants"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tokenizer, tmp_path, to):
    a_model()[0].save_pretrained(tmp_path / "original")
    tokenizer.save_pretrained(tmp_path / "original")
    catalogue = models.load(str(tmp_path / "original"), lambda progress: None, dtype="own").catalogue
    (tmp_path / "plan.json").write_text(mixed(catalogue).model_dump_json())
    program = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
sys.argv = ["advisor", "apply", "plan.json", "--to", "{to}", "--out", "new"]
sys.path.insert(0, {str(REPOSITORY)!r})
from advisor.cli import main
main()
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 2
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and "could not be written" in errors[0], ran.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"original", "plan.json", "advisor-home"}


def test_the_command_line_writes_the_folder_and_says_what_is_rounded_otherwise(tokenizer, tmp_path):
    a_model()[0].save_pretrained(tmp_path / "original")
    tokenizer.save_pretrained(tmp_path / "original")
    catalogue = models.load(str(tmp_path / "original"), lambda progress: None, dtype="own").catalogue
    (tmp_path / "plan.json").write_text(mixed(catalogue, ("int8", None)).model_dump_json())
    command = [sys.executable, "-m", "advisor", "apply", "plan.json", "--to", "gguf", "--out", "new"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=_with_repository())
    assert ran.returncode == 0, ran.stderr
    assert "8 layers measured as int8, rounded by llama.cpp's rules as Q8_0" in ran.stdout
    assert json.loads((tmp_path / "new" / "plan.json").read_text())["assignments"]


def _with_repository():
    import os

    return os.environ | {"PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"}
