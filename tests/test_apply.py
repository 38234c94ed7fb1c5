"""A plan onto a model: packed values are the simulated ones, files read back as they were, sizes are the plan's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from advisor import models
from advisor.apply import pack_with_quanto, quantized_layers, quanto_type, simulate, simulated
from advisor.catalogue import catalogue_model
from advisor.errors import ModelError, PlanError, StorageError
from advisor.evaluate import tensor_bytes
from advisor.export import quanto
from advisor.export import simulated as simulated_export
from advisor.folders import QUANTO_MAP, RECORD_FILE, check_free, new_folder, zip_folder, zip_of
from advisor.formats.quantize import fake_quantize
from advisor.knowledge import find_engine, find_format, formats
from advisor.memory import weights_bytes
from advisor.planner.planning import check_plan_fits
from advisor.types import Budget, ExportRecord, MemoryEstimate, ModelRef, Plan, PlanRequest, Prediction
from advisor.weights import get_weight
from tests.full_disk import assert_nothing_is_left
from tests.tiny_models import VOCABULARY, tiny_folder, tiny_model

REF = ModelRef(source="tiny", kind="folder", name="tiny")
PACKED = [
    name for name, fmt in formats().items() if fmt.quantized and quanto_type(fmt) and (fmt.group_size or 64) <= 64
]


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def tokens():
    return torch.randint(3, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(3))


def a_plan(catalogue, assignments) -> Plan:
    return Plan(
        model=catalogue.model,
        request=PlanRequest(hardware="h100-sxm-80gb", engine="transformers", budget=Budget(weight_bits=8)),
        assignments=assignments,
        predicted=Prediction(
            delta_nll=0,
            delta_nll_stderr=0,
            kl=0,
            kl_stderr=0,
            base_perplexity=1,
            perplexity=1,
            perplexity_low=1,
            perplexity_high=1,
        ),
        memory=MemoryEstimate(
            weights_bytes=1,
            kv_cache_bytes=0,
            activation_bytes=0,
            overhead_bytes=0,
            limit_bytes=1,
            decided_bits=4,
            original_weights_bytes=1,
        ),
    )


def mixed(catalogue) -> dict[str, str]:
    """Every packed format in turn over the layers that are not embeddings or tied."""
    layers = [layer for layer in catalogue.quantizable if layer.block is not None]
    return {layer.name: PACKED[index % len(PACKED)] for index, layer in enumerate(layers)}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "gpt_neox", "opt", "mixtral", "gpt2"])
def test_a_packed_model_computes_what_the_simulated_one_computes(architecture):
    packed, plain = tiny_model(architecture), tiny_model(architecture)
    catalogue = catalogue_model(plain, REF)
    assignments = mixed(catalogue)
    not_packed = pack_with_quanto(packed, catalogue, assignments)
    simulate(plain, quantized_layers(catalogue, assignments))
    with torch.no_grad():
        assert (packed(tokens()).logits - plain(tokens()).logits).abs().max() < 1e-5
    kinds = {name: type(packed.get_submodule(name)).__name__ for name in assignments if name not in not_packed}
    assert set(kinds.values()) <= {"QLinear"}
    assert bool(not_packed) == (architecture in ("gpt2", "mixtral"))


@pytest.fixture(params=["llama bf16", "qwen2 fp16"])
def folder(request, tmp_path):
    name, dtype = request.param.split()
    return tiny_folder(tmp_path / "original", name, DTYPES[dtype], tie_word_embeddings=name == "llama")


def loaded_in_own_dtype(folder):
    return models.load(str(folder), lambda progress: None, dtype="own")


def test_a_quanto_folder_reads_back_as_it_was_and_has_the_bytes_of_the_plan(folder, tmp_path):
    loaded = loaded_in_own_dtype(folder)
    assignments = mixed(loaded.catalogue)
    plan = a_plan(loaded.catalogue, assignments)
    assert quanto.export(loaded.model, loaded.tokenizer, loaded.catalogue, plan, tmp_path / "packed") == {}
    back = quanto.load(tmp_path / "packed", torch.float32)
    expected = models.load(str(folder), lambda progress: None, dtype="fp32").model
    with simulated(expected, loaded.catalogue, assignments), torch.no_grad():
        assert (back(tokens()).logits - expected(tokens()).logits).abs().max() < 1e-5
    engine = find_engine("transformers")
    assert tensor_bytes(tmp_path / "packed") == weights_bytes(loaded.catalogue, assignments, engine)


@pytest.mark.parametrize("name", [name for name, fmt in formats().items() if fmt.quantized and quanto_type(fmt)])
def test_every_format_of_quanto_takes_the_bytes_on_disk_that_a_plan_counts(name, tmp_path):
    wide = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 1}
    loaded = loaded_in_own_dtype(tiny_folder(tmp_path / "original", **wide))
    assignments = {layer.name: name for layer in loaded.catalogue.quantizable if layer.block is not None}
    plan = a_plan(loaded.catalogue, assignments)
    assert quanto.export(loaded.model, loaded.tokenizer, loaded.catalogue, plan, tmp_path / "packed") == {}
    counted = weights_bytes(loaded.catalogue, assignments, find_engine("transformers"))
    assert tensor_bytes(tmp_path / "packed") == counted


def test_a_simulated_folder_loads_in_transformers_alone(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    loaded = loaded_in_own_dtype(folder)
    plan = a_plan(loaded.catalogue, mixed(loaded.catalogue))
    originals = {layer.name: get_weight(loaded.model, layer).clone() for layer in loaded.catalogue.quantizable}
    simulated_export.export(loaded.model, loaded.tokenizer, loaded.catalogue, plan, tmp_path / "plain")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype="auto")
    for layer, fmt in quantized_layers(loaded.catalogue, plan.assignments):
        expected = fake_quantize(originals[layer.name], fmt, layer.input_axis)
        assert torch.equal(get_weight(back, layer), expected), layer.name


def test_simulating_for_a_while_puts_the_weights_back_even_after_an_error():
    model = tiny_model("llama")
    catalogue = catalogue_model(model, REF)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(KeyboardInterrupt), simulated(model, catalogue, mixed(catalogue)):
        assert not torch.equal(get_weight(model, catalogue.quantizable[1]), before[catalogue.quantizable[1].parameter])
        raise KeyboardInterrupt
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_plan_for_another_model_or_layer_is_refused():
    catalogue = catalogue_model(tiny_model("llama"), REF)
    other = catalogue_model(tiny_model("llama", seed=1), REF)
    fitting = a_plan(catalogue, {catalogue.quantizable[0].name: "int8"})
    check_plan_fits(fitting, catalogue)
    with pytest.raises(PlanError, match="not for tiny"):
        check_plan_fits(fitting, other)
    with pytest.raises(PlanError, match=r"assignments\.nowhere: tiny has no such quantizable layer"):
        check_plan_fits(a_plan(catalogue, {"nowhere": "int8"}), catalogue)
    with pytest.raises(PlanError, match="do not split into groups of 128"):
        check_plan_fits(a_plan(catalogue, {"model.layers.0.self_attn.q_proj": "int4_g128"}), catalogue)


def test_a_taken_folder_is_left_alone(folder, tmp_path):
    loaded = loaded_in_own_dtype(folder)
    plan = a_plan(loaded.catalogue, mixed(loaded.catalogue))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="already exists"):
        quanto.export(loaded.model, loaded.tokenizer, loaded.catalogue, plan, taken)
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]


def test_files_may_be_read_by_whom_the_umask_lets(tmp_path):
    with new_folder(tmp_path / "new") as folder:
        for name, mode in (("whole", 0o644), ("private", 0o600)):
            (folder / name).write_text("")
            (folder / name).chmod(mode)
    (tmp_path / "own").write_text("")
    usual = (tmp_path / "own").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "new").iterdir()} == {usual}


def test_a_place_inside_an_export_is_refused_and_beside_another_file_of_that_name_it_is_not(tmp_path):
    (tmp_path / RECORD_FILE).write_text('{"target": "mine"')
    assert check_free(tmp_path / "inside") == tmp_path / "inside"
    (tmp_path / RECORD_FILE).write_text(ExportRecord(target="quanto").model_dump_json())
    with pytest.raises(StorageError, match="inside a folder that `apply` wrote: choose a place beside it"):
        check_free(tmp_path / "inside")


@pytest.mark.parametrize("place", ["/proc/nothing", "/proc/version/nothing"])
def test_a_place_that_takes_no_folder_is_refused_before_anything_is_read(place):
    said = f"{place} cannot be written, since {Path(place).parent} takes no new folder (.*). Choose another folder."
    with pytest.raises(StorageError, match=said):
        check_free(Path(place))


@pytest.mark.parametrize("place", ["", ".", "../here"])
def test_the_folder_that_one_is_in_is_not_replaced(place, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(StorageError, match="here is the folder that you are in: name a new folder in it"):
        check_free(Path(place))


def test_a_link_is_followed_to_the_folder_that_is_written(tmp_path):
    (tmp_path / "empty").mkdir()
    for target in ("empty", "new"):
        link = tmp_path / f"to-{target}"
        link.symlink_to(target)
        with new_folder(link) as folder:
            (folder / "weights").write_text(target)
        assert link.is_symlink() and (tmp_path / target / "weights").read_text() == target
        assert zip_of(link) is None and zip_folder(link, lambda done, total: None) == tmp_path / f"{target}.zip"
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(StorageError, match="choose another folder"):
        check_free(tmp_path / "circle")


def test_only_what_a_process_that_is_gone_left_is_swept(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    kept = [f".model.{what}.part" for what in ("abc", "9" * 30, f"v2.{ended.pid}")]
    for name in (*kept, f".model.{ended.pid}.part"):
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "model"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "model"])


def test_a_full_disk_is_one_line_and_leaves_nothing(folder, tmp_path, run):
    loaded = loaded_in_own_dtype(folder)
    (tmp_path / "plan.json").write_text(a_plan(loaded.catalogue, mixed(loaded.catalogue)).model_dump_json())
    assert_nothing_is_left(tmp_path, "quanto", "simulated", run=run)


def test_a_damaged_packed_folder_is_refused(folder, tmp_path):
    loaded = loaded_in_own_dtype(folder)
    plan = a_plan(loaded.catalogue, mixed(loaded.catalogue))
    quanto.export(loaded.model, loaded.tokenizer, loaded.catalogue, plan, tmp_path / "packed")
    names = json.loads((tmp_path / "packed" / QUANTO_MAP).read_text())
    names.pop(next(iter(names)))
    (tmp_path / "packed" / QUANTO_MAP).write_text(json.dumps(names))
    with pytest.raises(ModelError, match="apply the plan again"):
        quanto.load(tmp_path / "packed", torch.float32)


def test_formats_that_quanto_lacks_are_simulated_and_named():
    model = tiny_model("llama")
    catalogue = catalogue_model(model, REF)
    name = "model.layers.0.mlp.down_proj"
    assert pack_with_quanto(model, catalogue, {name: "nf4_g64"}) == {name: "optimum-quanto has no nf4_g64"}
    assert quanto_type(find_format("int8_g64")) is None
