"""Quantized checkpoints that other tools wrote are evaluated as they are: weighed, and timed where packed."""

import json
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file

from advisor import models, pipeline, ready_made
from advisor.errors import ModelError
from advisor.folders import PLAN_FILE
from advisor.knowledge import find_engine
from advisor.memory import weights_bytes
from advisor.models import resolve
from tests.gguf_cases import VOCABULARY, a_model
from tests.test_apply import a_plan
from tests.tiny_models import byte_tokenizer, merging_tokenizer, tiny_folder

SHORT = {"tokens": 128, "seq_len": 64}
needs_gptqmodel = pytest.mark.skipif(
    find_spec("gptqmodel") is None, reason="gptqmodel, which asks for another numpy, is not installed"
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "original")


def saved(original, folder, **how):
    """The model as the quantizing library saves it through transformers."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(original, dtype=torch.bfloat16, **how).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def checked(original, folder, method, most_kl):
    found = pipeline.evaluate_source(str(folder), against=str(original), **SHORT)
    assert ready_made.method_of(resolve(str(folder))) == method
    assert found.notes[0] == f"quantized by {method}, as its files say"
    assert 0 < found.kl_to_original < most_kl and found.original.variant == "original"
    assert found.file_bytes == found.weights_bytes < found.original.weights_bytes
    return found


@pytest.mark.parametrize(("bits", "most_kl"), [(4, 0.1), (8, 0.01)])
def test_bitsandbytes_checkpoints_compute_with_their_packed_weights(original, tmp_path, bits, most_kl):
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    found = checked(original, saved(original, tmp_path / "bnb", quantization_config=config), "bitsandbytes", most_kl)
    assert found.ms_per_token > 0


def test_compressed_tensors_and_gguf_are_unpacked_and_not_timed(tmp_path):
    model, catalogue = a_model()
    model.save_pretrained(tmp_path / "original")
    merging_tokenizer(VOCABULARY).save_pretrained(tmp_path / "original")
    catalogue = models.load(str(tmp_path / "original"), lambda progress: None, dtype="own").catalogue
    every = [layer.name for layer in catalogue.quantizable if layer.block is not None]
    for to, method, fmt in (("compressed-tensors", "compressed-tensors", "int8"), ("gguf", "gguf", "int4_g32")):
        plan = a_plan(catalogue, dict.fromkeys(every, fmt))
        pipeline.apply_plan(plan, to, tmp_path / to)
        (tmp_path / to / PLAN_FILE).unlink()  # now it is anybody's
        found = pipeline.evaluate_source(str(tmp_path / to), **SHORT)
        assert found.notes[0] == f"quantized by {method}, as its files say" and found.ms_per_token is None
        assert found.file_bytes == found.weights_bytes < weights_bytes(catalogue, {}, find_engine("transformers"))


def test_torchao_checkpoints_compute_in_the_dtype_that_they_were_written_with(original, tmp_path):
    catalogue = models.load(str(original), lambda progress: None, dtype="own").catalogue
    every = [layer.name for layer in catalogue.quantizable if layer.block is not None]
    pipeline.apply_plan(a_plan(catalogue, dict.fromkeys(every, "int8")), "torchao", tmp_path / "torchao")
    (tmp_path / "torchao" / PLAN_FILE).unlink()
    checked(original, tmp_path / "torchao", "torchao", 0.01)


@needs_gptqmodel
@pytest.mark.parametrize(("fmt", "most_kl"), [("int4_g64", 0.1), ("int8", 0.01)])
def test_gptq_checkpoints_compute_with_their_packed_weights(fmt, most_kl, original, tmp_path, capsys):
    catalogue = models.load(str(original), lambda progress: None, dtype="own").catalogue
    every = [layer.name for layer in catalogue.quantizable if layer.block is not None]
    pipeline.apply_plan(a_plan(catalogue, dict.fromkeys(every, fmt)), "gptqmodel", tmp_path / "gptq")
    (tmp_path / "gptq" / PLAN_FILE).unlink()
    capsys.readouterr()
    assert checked(original, tmp_path / "gptq", "gptq", most_kl).ms_per_token > 0
    assert capsys.readouterr().out == ""  # where a command writes JSON


@needs_gptqmodel
def test_awq_checkpoints_compute_with_their_packed_weights(original, tmp_path):
    folder = saved(original, tmp_path / "awq")
    state = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if "proj" in name:
            state |= awq(name.removesuffix(".weight"), weight.float(), group=32)
        else:
            state[name] = weight
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    described(folder, config)
    assert checked(original, folder, "awq", 0.1).ms_per_token > 0


def awq(name, weight, group):
    """A matrix `(rows, features)` in AWQ's "gemm" layout: eight outputs a word, even ones first, down the inputs."""
    groups = weight.view(len(weight), -1, group)
    least, most = groups.aminmax(dim=-1)
    scale = ((most - least) / 15).half().float()
    zero = (-least / scale).round()
    codes = ((groups / scale[..., None]).round() + zero[..., None]).clamp(0, 15).flatten(1)

    def packed(values):
        words = values.T.long().unflatten(1, (-1, 8))[..., [0, 2, 4, 6, 1, 3, 5, 7]] << torch.arange(0, 32, 4)
        return words.sum(-1).to(torch.uint32).view(torch.int32)

    parts = {"qweight": packed(codes), "qzeros": packed(zero), "scales": scale.T.half()}
    return {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}


def described(folder, quantization):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))


@pytest.mark.parametrize(("method", "package"), [("aqlm", "aqlm"), ("awq", "gptqmodel==7.6.0")])
def test_a_way_of_quantizing_whose_package_is_missing_names_it(method, package, original, tmp_path, monkeypatch):
    folder = saved(original, tmp_path / "packed")
    described(folder, {"quant_method": method})
    monkeypatch.setattr(ready_made, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=f"`pip install {package}`, in another"):
        pipeline.evaluate_source(str(folder), **SHORT)


def test_damaged_checkpoints_and_ways_that_nobody_knows_are_refused_in_a_sentence(original, tmp_path):
    folder = saved(original, tmp_path / "strange")
    described(folder, {"quant_method": "handmade"})
    with pytest.raises(ModelError, match="transformers knows no way of quantizing called handmade"):
        pipeline.evaluate_source(str(folder), **SHORT)
