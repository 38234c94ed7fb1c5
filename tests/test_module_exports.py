"""torchao, MLX, GPTQ and bitsandbytes folders hold the plan to the byte, compute it, or are not there at all."""

import importlib
import json

import pytest
import torch
from safetensors.torch import load_file

from advisor import models
from advisor.errors import PlanError, UnfitPlan
from advisor.evaluate import tensor_bytes
from advisor.export.bits import pack_rows, unpack_rows
from advisor.export.registry import target_of
from advisor.knowledge import find_engine, find_format
from advisor.memory import weights_bytes
from advisor.verify import differences
from tests.full_disk import assert_nothing_is_left
from tests.test_apply import a_plan, loaded_in_own_dtype, tokens
from tests.tiny_models import tiny_folder

MODULES = {
    name: importlib.import_module(f"advisor.export.{name}")
    for name in ("torchao", "torchao_cuda", "mlx", "gptqmodel", "bitsandbytes")
}
CASES = [
    (name, fmt)
    for name, module in MODULES.items()
    for fmt in find_engine(module.ENGINE).formats
    if find_format(fmt).quantized
]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    wide = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "rope_theta": 777.0}
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "original", **wide)


def exported(module, original, to, fmt):
    loaded = loaded_in_own_dtype(original)
    chosen = [layer.name for layer in loaded.catalogue.quantizable if layer.block is not None]
    # Every other layer stays as it is.
    plan = a_plan(loaded.catalogue, dict.fromkeys(chosen[::2], fmt))
    module.export(loaded.model, loaded.tokenizer, loaded.catalogue, plan, to)
    return loaded.catalogue, plan


def bytes_of_states(folder):
    from advisor.export import bitsandbytes, module_files

    states = module_files.tensors_of(folder, lambda name: name.endswith(bitsandbytes.STATE))
    return sum(state.nbytes for state in states.values())


@pytest.mark.parametrize(("name", "fmt"), CASES)
def test_files_hold_the_plan_to_the_byte_and_compute_it(name, fmt, original, tmp_path):
    module, engine = MODULES[name], find_engine(MODULES[name].ENGINE)
    catalogue, plan = exported(module, original, tmp_path / "packed", fmt)
    assert module.is_one(tmp_path / "packed")
    taken_for = target_of(tmp_path / "packed").name.replace("-", "_")
    # Without INT4, both targets of torchao write the same.
    assert taken_for == name or (name, taken_for) == ("torchao_cuda", "torchao")
    assert differences(catalogue, plan, module.read(tmp_path / "packed"), engine) == []
    on_disk = tensor_bytes(tmp_path / "packed") - bytes_of_states(tmp_path / "packed")
    assert on_disk == weights_bytes(catalogue, plan.assignments, engine)
    reference = models.load(str(original), lambda progress: None, dtype="fp32").model
    module.simulate(reference, catalogue, plan, tmp_path / "packed")
    with torch.no_grad():
        found, wanted = module.load(tmp_path / "packed", torch.float32)(tokens()).logits, reference(tokens()).logits
    # bitsandbytes also rounds what INT8 multiplies.
    assert (found - wanted).abs().max() < (0.05 if (name, fmt) == ("bitsandbytes", "int8") else 1e-5)


def test_mlx_lm_computes_what_was_planned(original, tmp_path):
    mx = pytest.importorskip("mlx.core")
    load_model = pytest.importorskip("mlx_lm.utils").load_model
    for fmt in ("int8", "int4_g64_asym", "int3_g64"):
        catalogue, plan = exported(MODULES["mlx"], original, tmp_path / fmt, fmt)
        reference = models.load(str(original), lambda progress: None, dtype="fp32").model
        MODULES["mlx"].simulate(reference, catalogue, plan, tmp_path / fmt)
        model, _ = load_model(tmp_path / fmt)
        model.set_dtype(mx.float32)
        with torch.no_grad():
            wanted = reference(tokens()).logits
        found = torch.tensor(model(mx.array(tokens().tolist())).tolist())
        assert (found - wanted).abs().max() < 1e-4, fmt


@pytest.mark.parametrize("fmt", [fmt for name, fmt in CASES if name == "gptqmodel"])
def test_auto_rounds_reader_of_gptq_checkpoints_unpacks_what_was_planned(fmt, original, tmp_path):
    from auto_round_extension.torch.qlinear_torch_zp import QuantLinear

    catalogue, plan = exported(MODULES["gptqmodel"], original, tmp_path / "packed", fmt)
    planned = models.load(str(original), lambda progress: None, dtype="fp32").model
    MODULES["gptqmodel"].simulate(planned, catalogue, plan, tmp_path / "packed")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    state = load_file(tmp_path / "packed" / "model.safetensors")
    for name in plan.assignments:
        wanted = planned.get_submodule(name).weight
        rows, features = wanted.shape
        module = QuantLinear(config["bits"], config["group_size"], features, rows, bias=False)
        module.load_state_dict({part: state[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales")})
        # It multiplies in fp16, which rounds once more.
        assert torch.equal(module(torch.eye(features)).T, wanted.half().float()), name


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_come_out_of_their_words_as_they_went_in(bits):
    codes = torch.randint(0, 2**bits, (5, 96), generator=torch.Generator().manual_seed(bits), dtype=torch.int32)
    assert torch.equal(unpack_rows(pack_rows(codes, bits), bits, 96), codes)


@pytest.mark.parametrize(
    ("name", "fmt"),
    [("torchao", "nf4_g64"), ("mlx", "fp8_e4m3"), ("gptqmodel", "int3_g64"), ("bitsandbytes", "int4_g64")],
)
def test_a_format_that_the_engine_lacks_is_refused_and_nothing_is_written(name, fmt, original, tmp_path):
    with pytest.raises(PlanError, match=fmt):
        exported(MODULES[name], original, tmp_path / "packed", fmt)
    assert not (tmp_path / "packed").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(original, tmp_path, run):
    catalogue = loaded_in_own_dtype(original).catalogue
    chosen = {layer.name: "int8" for layer in catalogue.quantizable if layer.block is not None}
    (tmp_path / "plan.json").write_text(a_plan(catalogue, chosen).model_dump_json())
    assert_nothing_is_left(tmp_path, *(name.replace("_", "-") for name in MODULES), run=run)


def test_two_formats_in_bitsandbytes_are_refused_with_the_nearest_plan(original):
    loaded = loaded_in_own_dtype(original)
    catalogue = loaded.catalogue
    first, second = [layer.name for layer in catalogue.quantizable if layer.block is not None][:2]
    with pytest.raises(UnfitPlan, match="one quantized format") as refused:
        MODULES["bitsandbytes"].check(loaded.model, catalogue, a_plan(catalogue, {first: "int8", second: "nf4_g64"}))
    assert refused.value.nearest == {first: "int8", second: "int8"}
