"""A recovery wins back some of what a plan loses, in files of the same size, and says what it cost and won."""

import importlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from advisor import knowledge, models, pipeline
from advisor.errors import JobCancelled, ModelError, PlanError
from advisor.evaluate import score, tensor_bytes
from advisor.knowledge import find_target
from advisor.methods import recovery_said, why_not_recovered
from advisor.recover import recover
from advisor.texts import token_windows
from advisor.types import ApplyRequest, Job, PlanRequest, Recovery
from advisor.ui import apply_steps
from tests.page_driver import opened, said
from tests.test_apply import a_plan, loaded_in_own_dtype, tokens
from tests.test_pages import profile, saved_plan, store  # noqa: F401 - fixtures
from tests.tiny_models import tiny_folder, trained_folder

STEPS = 8
# Target -> formats of the two kinds of layers of a block; None leaves the layer in BF16.
FORMATS = {
    "simulated": ("int4_g64", "fp8_e4m3"),
    "quanto": ("int4_g64_asym", "int2_g64"),
    "compressed-tensors": ("int4_g64", "int8"),
    "torchao": ("int3_g64", "int8"),
    "torchao-cuda": ("int4_g64", "int8"),
    "mlx": ("int3_g64", "int4_g64_asym"),
    "gptqmodel": ("int4_g64", "int8"),
    "bitsandbytes": ("nf4_g64", None),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny model that has learned something: quantizing it does harm that training can undo."""
    return trained_folder(tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture(scope="module")
def loaded(trained):
    return loaded_in_own_dtype(trained)


def plan_for(loaded, to, formats=None):
    """Attention in one format, the MLP in another; scores as if from a little text."""
    attention, mlp = formats or FORMATS[to]
    chosen = {
        layer.name: (attention if "attn" in layer.name else mlp) or "bf16"
        for layer in loaded.catalogue.quantizable
        if layer.block is not None
    }
    engine = next(iter(find_target(to).engines), "transformers")
    request = PlanRequest(hardware="h100-sxm-80gb", engine=engine, budget={"weight_bits": 8})
    spec = {"text": "python-docs", "samples": 8, "seq_len": 64, "seed": 0}
    plan = a_plan(loaded.catalogue, chosen)
    return plan.model_copy(update={"request": request, "provenance": {"calibration": spec}})


def windows_of(loaded, count=200):
    """As a recovery reads them for the plans of this file: what is trained on, and what is held back."""
    windows = token_windows("python-docs", loaded.tokenizer, "calibration", count, 64)
    return torch.cat([windows[:8], windows[12:]]), windows[8:12]


def recovered_model(trained, loaded, plan):
    """The simulated model of a recovery's codes and norms, in fp32, and what was found."""
    training, held_back = windows_of(loaded, 12 + STEPS * 16 - 8)
    found = recover(loaded, plan.assignments, {}, {}, training, held_back, STEPS)
    model = models.load(str(trained), lambda progress: None, dtype="fp32").model
    parameters = dict(model.named_parameters())
    values = {f"{name}.weight": codes.dequantize() for name, codes in found.codes.items()} | found.weights
    for name, value in values.items():
        parameters[name].data = value.float()
    return model, found


@pytest.mark.parametrize("to", FORMATS)
def test_files_compute_what_the_recovery_found_at_the_size_that_they_had(to, trained, loaded, tmp_path):
    plan, folder = plan_for(loaded, to), tmp_path / "recovered"
    pipeline.apply_plan(plan, to, folder, method="rtn", recover=STEPS)
    module, fresh = importlib.import_module(f"advisor.export.{to.replace('-', '_')}"), loaded_in_own_dtype(trained)
    module.export(fresh.model, fresh.tokenizer, fresh.catalogue, plan, tmp_path / "plain")
    assert tensor_bytes(folder) == tensor_bytes(tmp_path / "plain")
    recovery = pipeline.recovery_in(folder)
    assert recovery.kept and recovery.kl < 0.9 * recovery.kl_before and recovery.steps == STEPS
    assert recovery.tokens == STEPS * 1024 and recovery.seconds > 0
    model, found = recovered_model(trained, loaded, plan)
    assert recovery.kl == pytest.approx(found.after.kl.mean().item(), rel=1e-6)
    with torch.no_grad():
        wanted = model(tokens()).logits
        written = module.load(folder, torch.float32)(tokens()).logits
        plain = module.load(tmp_path / "plain", torch.float32)(tokens()).logits
    # Simulated values are stored in BF16, and MLX rounds products with zero points; elsewhere it is the same product.
    tolerance = 0.05 if to in ("simulated", "quanto", "mlx") else 1e-4
    assert (written - wanted).abs().max() < tolerance * wanted.abs().max()
    assert (plain - wanted).abs().max() > 2 * (written - wanted).abs().max()
    assert pipeline.verify_export(folder, plan).layers == len(loaded.catalogue.layers)


def test_what_is_reported_is_what_a_fresh_measurement_of_the_files_gives(trained, loaded, tmp_path):
    plan, folder = plan_for(loaded, "compressed-tensors"), tmp_path / "recovered"
    stages = []
    pipeline.apply_plan(plan, "compressed-tensors", folder, stages.append, method="awq", recover=STEPS)
    recovery = pipeline.recovery_in(folder)
    # AWQ's codes and norms are what is trained from, and both were measured on the same text.
    assert recovery.kl_before == pytest.approx(pipeline.method_in(folder).kl, rel=1e-3)
    _, held_back = windows_of(loaded)
    original = models.load(str(trained), lambda progress: None, dtype="fp32").model
    base = score(original, held_back, keep=True)
    module = importlib.import_module("advisor.export.compressed_tensors")
    found = score(module.load(folder, torch.float32), held_back, base)
    assert recovery.kept
    assert found.kl.mean().item() == pytest.approx(recovery.kl, rel=1e-3)
    assert found.summary()["perplexity"] == pytest.approx(recovery.perplexity, rel=1e-4)
    assert len(found.nll) == recovery.held_back
    told = [progress for progress in stages if progress.stage == "recover"]
    assert [progress.done for progress in told] == [0, *range(STEPS)] and {p.total for p in told} == {STEPS}
    sentence = recovery_said(recovery)
    assert sentence[1:] in (folder / "README.md").read_text() and "8,192 tokens of python-docs" in sentence


def test_a_recovery_that_wins_nothing_leaves_the_codes_as_they_were_and_says_so(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr("advisor.recover._LEARNING_RATE", 5.0)
    plan = plan_for(loaded, "quanto")
    pipeline.apply_plan(plan, "quanto", tmp_path / "recovered", recover=2)
    pipeline.apply_plan(plan, "quanto", tmp_path / "plain")
    recovery = pipeline.recovery_in(tmp_path / "recovered")
    assert not recovery.kept and recovery.kl > recovery.kl_before
    assert "won nothing and was left out" in (tmp_path / "recovered" / "README.md").read_text()
    name = "model.safetensors"
    assert (tmp_path / "recovered" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert pipeline.verify_export(tmp_path / "recovered", plan)


def test_verifying_finds_a_code_that_was_not_planned_whatever_its_scale(loaded, tmp_path):
    plan, folder = plan_for(loaded, "mlx"), tmp_path / "recovered"
    pipeline.apply_plan(plan, "mlx", folder, recover=2)
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"][3, 0] = 0
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        notes = file.metadata()
    save_file(state, folder / "model.safetensors", notes)
    record = (folder / "export.json").read_text()
    assert '"tensors"' in record
    with pytest.raises(ModelError, match=r"up_proj\.weight: its bytes"):
        pipeline.verify_export(folder, plan)
    (folder / "export.json").write_text(json.dumps(json.loads(record) | {"tensors": {}, "files": {}}))
    with pytest.raises(ModelError, match="up_proj: its values are not those of the plan"):
        pipeline.verify_export(folder, plan)


@pytest.mark.parametrize("to", ["gguf", "gguf-k-quants"])
def test_a_target_with_scales_of_its_own_refuses_in_a_sentence_before_anything_is_loaded(to, loaded, tmp_path):
    plan = plan_for(loaded, "gguf", ("int8", "int8"))
    with pytest.raises(PlanError, match="scales of its own"):
        pipeline.apply_plan(plan, to, tmp_path / "packed", recover=5)
    assert not (tmp_path / "packed").exists()


def test_plans_that_cannot_be_trained_refuse_in_a_sentence(loaded):
    rounded = plan_for(loaded, "compressed-tensors", ("int8_w8a8", "int8"))
    assert "rounds activations" in why_not_recovered(rounded, "compressed-tensors")
    assert "has none" in why_not_recovered(plan_for(loaded, "mlx", ("bf16", None)), "mlx")
    assert {why_not_recovered(plan_for(loaded, to), to) for to in FORMATS} == {""}


def test_the_original_is_left_as_it_is_and_work_stops_where_it_is_told_to(loaded):
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    training, held_back = windows_of(loaded, 20)

    def stop(done, total):
        if done == 1:
            raise JobCancelled("Stopped as asked.")

    with pytest.raises(JobCancelled):
        recover(loaded, plan_for(loaded, "quanto").assignments, {}, {}, training, held_back, 3, stop)
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())


def test_an_export_is_taken_up_again_only_for_the_same_recovery(loaded, tmp_path):
    folder, plan = tmp_path / "recovered", plan_for(loaded, "quanto")
    pipeline.apply_plan(plan, "quanto", folder, recover=2)
    assert pipeline.recovery_in(folder).steps == 2
    asked = {steps: ApplyRequest(plan_id="p", to="quanto", recover=steps) for steps in (0, 2, 3)}
    held = [
        steps for steps, request in asked.items() if pipeline.holds_export(folder, plan, find_target("quanto"), request)
    ]
    assert held == [2]
    assert len({pipeline.own_export_folder(request) for request in asked.values()}) == 3
    assert ApplyRequest.model_validate({"plan_id": "p"}).recover == 0


def test_fused_experts_keep_their_nearest_codes(tmp_path):
    loaded = loaded_in_own_dtype(tiny_folder(tmp_path / "experts", "mixtral"))
    assignments = {layer.name: "int2_g64" for layer in loaded.catalogue.quantizable if layer.block is not None}
    training, held_back = windows_of(loaded, 20)
    found = recover(loaded, assignments, {}, {}, training, held_back, 1)
    fused = {layer.name for layer in loaded.catalogue.layers if len(layer.shape) == 3}
    assert fused and found.codes.keys() == assignments.keys() - fused


def test_a_recovery_is_plain_data():
    stated = Recovery(
        steps=1,
        kept=True,
        text="t",
        tokens=9,
        held_back=9,
        kl_before=2,
        kl=1,
        perplexity_before=3,
        perplexity=2,
        seconds=61,
    )
    assert "KL 2.0000 before, 1.0000 after" in recovery_said(stated) and "1 min 01 s" in recovery_said(stated)
    assert knowledge.find_method("recovery").approach == "qat"


def test_the_page_offers_a_recovery_that_is_off_and_says_when_it_pays(store, saved_plan):  # noqa: F811
    app = opened("apply", plan=saved_plan, to="quanto")
    field = app.number_input(key="recover")
    assert field.value == 0 and "4 bits and less" in field.help and "forward" in field.help and not field.disabled
    assert "distillation into scales" not in said(app)
    assert opened("apply", plan=saved_plan, to="gguf", recover="8").number_input(key="recover").disabled
    app = opened("apply", plan=saved_plan, to="quanto", recover="8")
    assert app.number_input(key="recover").value == 8 and "8 steps" in said(app)


def test_its_step_is_told_only_by_jobs_that_recover():
    fields = {"id": "j", "kind": "apply", "status": "running", "created": "2026-11-24T00:00:00Z"}
    lines = [apply_steps.line(Job(params={"recover": steps}, **fields)) for steps in (0, 8)]
    assert ["Recover" in line for line in lines] == [False, True]
