"""compressed-tensors folders: transformers alone computes what was planned, and the files hold it to the byte."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from advisor import models, pipeline
from advisor.apply import simulated
from advisor.errors import ModelError, PlanError, StorageError, UnfitPlan
from advisor.evaluate import tensor_bytes
from advisor.export import compressed_tensors
from advisor.export.compressed_tensors import read
from advisor.folders import PLAN_FILE
from advisor.formats.quantize import fake_quantize
from advisor.knowledge import find_engine, find_format
from advisor.memory import weights_bytes
from advisor.types import ApplyRequest, PlanRequest, Role
from advisor.verify import differences
from advisor.weights import get_weight
from tests.full_disk import assert_nothing_is_left
from tests.stranger import Stranger
from tests.test_apply import a_plan, loaded_in_own_dtype, tokens
from tests.tiny_models import tiny_folder

VLLM = find_engine("vllm")
# Where transformers computes in fp32, every product is the simulated one: what is left is the order of sums.
TOLERANCE = 1e-5
UP, GATE = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj"


def vllm_plan(catalogue, assignments):
    request = PlanRequest(hardware="h100-sxm-80gb", engine="vllm", budget={"weight_bits": 8})
    return a_plan(catalogue, assignments).model_copy(update={"request": request})


def mixed(catalogue):
    """Several layouts; fused layers alike, and of what is fused whole sets in BF16."""
    first = {"qkv": "int4_g64", "gate_up": "int8"}
    chosen = {}
    for layer in catalogue.quantizable:
        if layer.block == 0:
            chosen[layer.name] = first.get(layer.fusion, "int4_g32")
        elif layer.block == 1:
            chosen[layer.name] = "fp8_e4m3" if layer.fusion == "gate_up" else catalogue.dtype
    return chosen


def exported(folder, to, assign=mixed):
    loaded = loaded_in_own_dtype(folder)
    plan = vllm_plan(loaded.catalogue, assign(loaded.catalogue))
    assert compressed_tensors.export(loaded.model, loaded.tokenizer, loaded.catalogue, plan, to) == {}
    return loaded.catalogue, plan


def logits_of_the_simulated_plan(folder, catalogue, plan, dtype="fp32"):
    model = models.load(str(folder), lambda progress: None, dtype=dtype).model
    with simulated(model, catalogue, plan.assignments), torch.no_grad():
        return model(tokens()).logits


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    with Stranger(tmp_path_factory.mktemp("stranger")) as stranger:
        yield stranger


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "original", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def packed(original, tmp_path_factory):
    """A folder of a mixed plan, its catalogue, its plan; tests copy what they change."""
    folder = tmp_path_factory.mktemp("packed") / "packed"
    return folder, *exported(original, folder)


def test_transformers_alone_computes_what_the_simulated_plan_computes(original, packed, stranger):
    folder, catalogue, plan = packed
    expected = logits_of_the_simulated_plan(original, catalogue, plan)
    assert (stranger.logits(folder, tokens()) - expected).abs().max() < TOLERANCE


def test_the_configuration_is_what_vllm_needs(packed):
    folder, _, plan = packed
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    targets = {name: group for group in config["config_groups"].values() for name in group["targets"]}
    assert targets.keys() == {name for name, fmt in plan.assignments.items() if find_format(fmt).quantized}
    assert {targets[name]["format"] for name in targets} == {"pack-quantized", "naive-quantized"}
    assert (config["quant_method"], config["format"]) == ("compressed-tensors", "mixed-precision")
    assert config["quantization_status"] == "compressed" and config["kv_cache_scheme"] is None
    kept = {name for name, fmt in plan.assignments.items() if not find_format(fmt).quantized}
    assert {f"model.layers.1.self_attn.{name}_proj" for name in "qkvo"} <= kept
    assert set(config["ignore"]) == kept | {"lm_head"}


def test_a_plan_of_one_layout_names_it_at_the_top(original, tmp_path):
    exported(original, tmp_path / "one", lambda catalogue: {UP: "int8", GATE: "int8"})
    config = json.loads((tmp_path / "one" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "pack-quantized"


@pytest.mark.parametrize("name", [name for name in VLLM.formats if find_format(name).quantized])
def test_every_format_takes_the_bytes_on_disk_that_a_plan_counts_and_reads_back_as_planned(name, tmp_path):
    wide = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 1}
    folder = tiny_folder(tmp_path / "original", **wide)
    catalogue, plan = exported(
        folder, tmp_path / "packed", lambda c: {layer.name: name for layer in c.quantizable if layer.block is not None}
    )
    assert differences(catalogue, plan, read(tmp_path / "packed")) == []
    assert tensor_bytes(tmp_path / "packed") == weights_bytes(catalogue, plan.assignments, VLLM)


@pytest.mark.parametrize("name", ["int8_w8a8", "fp8_w8a8"])
def test_rounded_inputs_are_in_the_configuration_and_the_weights_are_as_measured(name, original, stranger, tmp_path):
    catalogue, plan = exported(
        original, tmp_path / "packed", lambda c: {layer.name: name for layer in c.quantizable if layer.block == 0}
    )
    config = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    inputs = group["input_activations"]
    assert (inputs["num_bits"], inputs["strategy"], inputs["dynamic"], inputs["symmetric"]) == (8, "token", True, True)
    model = compressed_tensors.load(tmp_path / "packed", torch.bfloat16)
    weights = loaded_in_own_dtype(original).model
    for layer in catalogue.quantizable[1:]:
        own = get_weight(weights, layer)
        wanted = fake_quantize(own, find_format(name)) if layer.name in plan.assignments else own
        assert torch.equal(get_weight(model, layer), wanted), layer.name
    # transformers divides a token's largest INT8 input by 127.5, vLLM by 127: the same inputs, rounded otherwise.
    expected = logits_of_the_simulated_plan(original, catalogue, plan)
    found = stranger.logits(tmp_path / "packed", tokens())
    assert (found - expected).abs().max() < (TOLERANCE if name == "fp8_w8a8" else 0.02)


def test_fp16_models_and_renamed_tensors_read_back_as_planned(tmp_path):
    folder = tiny_folder(tmp_path / "original", "gpt_neox", torch.float16)
    catalogue, plan = exported(
        folder, tmp_path / "packed", lambda c: {layer.name: "int8" for layer in c.quantizable if layer.block == 0}
    )
    assert "embed_out.weight" in load_file(tmp_path / "packed" / "model.safetensors")
    assert differences(catalogue, plan, read(tmp_path / "packed")) == []
    with torch.no_grad():
        found = compressed_tensors.load(tmp_path / "packed", torch.float32)(tokens()).logits
    assert (found - logits_of_the_simulated_plan(folder, catalogue, plan)).abs().max() < TOLERANCE


def with_experts(experts):
    def assign(catalogue):
        return {
            layer.name: experts if layer.role is Role.EXPERT else "fp8_e4m3"
            for layer in catalogue.quantizable
            if layer.block is not None
        }

    return assign


def test_experts_are_stored_as_the_checkpoint_names_them_and_compute_what_was_planned(stranger, tmp_path):
    folder = tiny_folder(tmp_path / "original", "mixtral")
    catalogue, plan = exported(folder, tmp_path / "packed", with_experts("int4_g64"))
    names = load_file(tmp_path / "packed" / "model.safetensors").keys()
    assert {f"model.layers.1.block_sparse_moe.experts.3.w{i}.weight_packed" for i in (1, 2, 3)} <= names
    assert differences(catalogue, plan, read(tmp_path / "packed")) == []
    assert tensor_bytes(tmp_path / "packed") == weights_bytes(catalogue, plan.assignments, VLLM)
    config = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    assert "model.layers.0.block_sparse_moe.gate" in config["ignore"]
    expected = logits_of_the_simulated_plan(folder, catalogue, plan, "own").float()
    assert (stranger.logits(tmp_path / "packed", tokens(), "auto") - expected).abs().max() < TOLERANCE


def test_experts_that_transformers_would_read_in_a_wrong_format_are_refused(tmp_path):
    loaded = loaded_in_own_dtype(tiny_folder(tmp_path / "original", "qwen3_moe"))
    plan = vllm_plan(loaded.catalogue, with_experts("bf16")(loaded.catalogue))
    with pytest.raises(PlanError, match="would read all experts .* in one quantized format"):
        compressed_tensors.export(loaded.model, loaded.tokenizer, loaded.catalogue, plan, tmp_path / "packed")


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("falcon", "FalconLinear"), ("gpt2", "this is a Conv1D"), ("gpt_oss", "one tensor for all experts")],
)
def test_modules_that_cannot_be_packed_are_refused_by_name(architecture, reason, tmp_path):
    loaded = loaded_in_own_dtype(tiny_folder(tmp_path / "original", architecture))
    plan = vllm_plan(
        loaded.catalogue, {layer.name: "int8" for layer in loaded.catalogue.quantizable if layer.block is not None}
    )
    with pytest.raises(PlanError, match=reason):
        compressed_tensors.export(loaded.model, loaded.tokenizer, loaded.catalogue, plan, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def in_tensors(change):
    def tamper(folder):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return tamper


def in_config(change):
    def tamper(folder):
        config = json.loads((folder / "config.json").read_text())
        group = next(one for one in config["quantization_config"]["config_groups"].values() if UP in one["targets"])
        change(group)
        (folder / "config.json").write_text(json.dumps(config))

    return tamper


def cut(state):
    state[f"{UP}.weight_packed"] = state[f"{UP}.weight_packed"][:-1].contiguous()


def rename(state):
    state[f"{UP}.weight_scales"] = state.pop(f"{UP}.weight_scale")


def widen(state):
    state[f"{UP}.weight_scale"] = state[f"{UP}.weight_scale"].float()


def unpack(state):
    codes = [f"{UP}.{local}" for local in ("weight_packed", "weight_scale", "weight_shape")]
    state[f"{UP}.weight"] = torch.zeros(128, 64, dtype=torch.bfloat16)
    for name in codes:
        del state[name]


@pytest.mark.parametrize(
    "tamper",
    [
        in_tensors(cut),
        in_tensors(rename),
        in_tensors(widen),
        in_tensors(unpack),
        in_config(lambda group: group["weights"].update(num_bits=4)),
        in_config(lambda group: group["weights"].update(strategy="group", group_size=32)),
        in_config(lambda group: group["targets"].remove(UP)),
    ],
    ids=["codes cut", "scale renamed", "scale in fp32", "unpacked", "other bits", "other groups", "no scheme"],
)
def test_a_tampered_folder_is_found_with_the_layers_name(tamper, packed, tmp_path):
    folder, catalogue, plan = packed
    copy = shutil.copytree(folder, tmp_path / "copy")
    tamper(copy)
    try:
        found = differences(catalogue, plan, read(copy))
    except ModelError as error:
        found = [str(error)]
    # A scheme is that of all layers with UP's format.
    assert found and all(sentence.startswith((UP, GATE)) for sentence in found), found


def test_another_plan_than_the_stored_one_is_found(packed):
    folder, catalogue, plan = packed
    other = plan.model_copy(update={"assignments": plan.assignments | {UP: "int4_g64"}})
    found = differences(catalogue, other, read(folder))
    assert len(found) == 1 and found[0].startswith(f"{UP}: int4_g64 ") and "the files hold int8 " in found[0]


def test_a_folder_that_is_not_whole_is_refused(packed, tmp_path):
    copy = shutil.copytree(packed[0], tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match="cannot be read back"):
        read(copy)
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match="cannot be read back"):
        read(copy)


def test_a_taken_folder_is_left_alone(original, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="already exists"):
        exported(original, taken)
    assert [path.name for path in tmp_path.iterdir() if path.name != "advisor-home"] == ["taken"]
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]


def test_a_full_disk_is_one_line_and_leaves_nothing(original, tmp_path, run):
    loaded = loaded_in_own_dtype(original)
    plan = vllm_plan(loaded.catalogue, mixed(loaded.catalogue))
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    assert_nothing_is_left(tmp_path, "compressed-tensors", limit=1 << 15, run=run)


def test_applying_and_evaluating_measures_the_folder_and_refuses_an_unfit_plan_before_it_measures(original, store):
    loaded = loaded_in_own_dtype(original)
    plan = vllm_plan(loaded.catalogue, mixed(loaded.catalogue))
    request = ApplyRequest(
        plan_id=store.save_plan(plan, None), to="compressed-tensors", tokens=64, seq_len=32, baselines=()
    )
    pipeline.apply_and_evaluate(request, store)
    found = {evaluation.variant: evaluation for evaluation in store.evaluations(request.plan_id)}
    assert found["plan"].kl_to_original > 0 and found["plan"].file_bytes == found["plan"].weights_bytes
    unfit = plan.model_copy(update={"assignments": {UP: "int8"}})
    request = request.model_copy(update={"plan_id": store.save_plan(unfit, None)})
    with pytest.raises(UnfitPlan, match="gate_up"):
        pipeline.apply_and_evaluate(request, store)
    assert store.evaluations(request.plan_id) == []


def test_an_applied_folder_is_evaluated_with_its_own_bytes_and_holds_its_plan(original, tmp_path):
    loaded = loaded_in_own_dtype(original)
    plan = vllm_plan(loaded.catalogue, mixed(loaded.catalogue))
    assert pipeline.apply_plan(plan, "compressed-tensors", tmp_path / "packed") == {}
    applied = json.loads((tmp_path / "packed" / PLAN_FILE).read_text())
    found = pipeline.evaluate_source(str(tmp_path / "packed"), tokens=64, seq_len=32)
    assert found.file_bytes == found.weights_bytes == applied["memory"]["model_weights_bytes"]
    assert found.ms_per_token is None and "not timed" in found.notes[0]
