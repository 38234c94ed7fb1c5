"""A plan as GGUF: the file holds what was planned, and transformers and llama.cpp compute with it what they should."""

import shutil
import subprocess
import sys

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize

from advisor import models, pipeline
from advisor.export import gguf
from advisor.formats.quantize import fake_quantize
from advisor.knowledge import find_format
from advisor.memory import weights_bytes
from advisor.types import ApplyRequest
from advisor.verify import differences
from tests import gguf_cases
from tests.gguf_cases import ENGINE, FORMATS, K_QUANTS, LLAMA_3, PROMPTS, TEXT, VOCABULARY, a_model, log_probs, mixed
from tests.llama_cpp import ask, encode, needs_llama_cpp

tokenizer = gguf_cases.tokenizer


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


def test_a_file_of_ones_own_is_the_model_that_it_holds_under_any_name(tokenizer, tmp_path):
    model, catalogue = a_model()
    plan = mixed(catalogue)
    gguf.export(model, tokenizer, catalogue, plan, tmp_path / "out")
    renamed = shutil.copy(tmp_path / "out" / "tiny.gguf", tmp_path / "own.gguf")
    own, same = (models.load(str(path), lambda _: None, "fp32") for path in (renamed, tmp_path / "out" / "tiny.gguf"))
    assert own.catalogue.model.fingerprint == same.catalogue.model.fingerprint
    exact = model.float()
    gguf.simulate(exact, catalogue, plan)
    kept = dict(own.model.named_parameters())
    for name, parameter in exact.named_parameters():
        assert torch.equal(kept[name], parameter.bfloat16().float()), name  # the copy that is kept is in BF16


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


def test_reading_a_file_draws_no_bars_of_other_hands(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ADVISOR_MODELS", str(tmp_path / "models"))
    model, catalogue = a_model()
    gguf.export(model, tokenizer, catalogue, mixed(catalogue), tmp_path / "out")
    capsys.readouterr()
    models.load(str(next((tmp_path / "out").glob("*.gguf"))), lambda progress: None)
    assert capsys.readouterr().err == ""


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
