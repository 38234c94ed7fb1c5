"""Which method a plan gets, and what GPTQ, AWQ and SmoothQuant make of one: files of the same size that lose less."""

import pytest
import torch

from advisor import knowledge, models, pipeline
from advisor.errors import JobCancelled, KnowledgeError, PlanError, TextError
from advisor.evaluate import tensor_bytes
from advisor.export.calibrated import calibrate, put
from advisor.export.compressed_tensors import read
from advisor.knowledge import find_engine, find_format
from advisor.memory import weights_bytes
from advisor.methods import choose, possible, recommend, why_not
from advisor.texts import token_windows
from advisor.types import Role
from advisor.verify import differences
from tests.stranger import Stranger
from tests.test_apply import loaded_in_own_dtype
from tests.test_compressed_tensors import mixed, vllm_plan
from tests.tiny_models import trained_folder

VLLM = find_engine("vllm")
TO = "compressed-tensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny model that has learned something: quantizing it does harm that a method can undo."""
    return trained_folder(tmp_path_factory.mktemp("trained") / "model", steps=100)


@pytest.fixture(scope="module")
def loaded(trained):
    return loaded_in_own_dtype(trained)


def with_text(plan):
    """The plan as if its scores came from a little text, so that calibrating is quick."""
    spec = {"text": "python-docs", "samples": 4, "seq_len": 64, "seed": 0}
    return plan.model_copy(update={"provenance": {"calibration": spec}})


def uniform(catalogue, fmt):
    return {layer.name: fmt for layer in catalogue.quantizable if layer.block is not None}


def mixed_with_rounded_activations(catalogue):
    """INT4, INT8 with rounded activations, and BF16 blocks side by side."""
    chosen = mixed(catalogue)
    gate_up = [layer.name for layer in catalogue.quantizable if layer.fusion == "gate_up" and layer.block == 0]
    return chosen | dict.fromkeys(gate_up, "int8_w8a8")


def plan_of(loaded, assignments):
    return with_text(vllm_plan(loaded.catalogue, assignments))


# -------------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("formats", "to", "name", "reason"),
    [
        (("int4_g64", "int8"), TO, "gptq", "int4_g64 loses enough"),
        (("int4_g64", "int8_w8a8"), TO, "smoothquant", "outliers"),
        (("int8", "bf16"), TO, "rtn", "fewer than 8 bits"),
        (("fp8_w8a8",), TO, "rtn", "fewer than 8 bits"),
        (("int4_g64", "int8"), "quanto", "rtn", "stores the very codes that were measured"),
        (("int4_g64",), "gguf", "rtn", "rounds by its engine's own rules"),
    ],
)
def test_the_recommended_method_follows_from_formats_and_target(loaded, formats, to, name, reason):
    layers = [layer.name for layer in loaded.catalogue.quantizable if layer.block == 0]
    plan = vllm_plan(loaded.catalogue, dict(zip(layers, formats, strict=False)))
    found = recommend(plan, to, loaded.catalogue)
    assert found.name == name and reason in found.reason
    assert found == choose("auto", plan, to, loaded.catalogue) and name in possible(plan, to, loaded.catalogue)


@pytest.mark.parametrize(
    ("method", "fmt", "to", "said"),
    [
        ("smoothquant", "int4_g64", TO, "no layer of this plan"),
        ("awq", "int8_w8a8", TO, "no layer of this plan"),
        ("gptq", "fp8_e4m3", TO, "no layer of this plan"),
        ("gptq", "int4_g64", "quanto", "by compressed-tensors only, not by quanto"),
        ("nf4", "int4_g64", TO, "comes with the format"),
    ],
)
def test_a_method_that_does_not_serve_is_refused_in_a_sentence(loaded, method, fmt, to, said):
    plan = vllm_plan(loaded.catalogue, uniform(loaded.catalogue, fmt))
    assert said in why_not(method, plan, to) and method not in possible(plan, to)
    with pytest.raises(PlanError, match="rtn"):
        choose(method, plan, to)


def test_experts_are_left_to_round_to_nearest(loaded):
    plan = vllm_plan(loaded.catalogue, uniform(loaded.catalogue, "int4_g64"))
    layers = (*loaded.catalogue.layers, loaded.catalogue.layers[0].model_copy(update={"role": Role.EXPERT}))
    catalogue = loaded.catalogue.model_copy(update={"layers": layers})
    found = recommend(plan, TO, catalogue)
    assert found.name == "rtn" and "experts" in found.reason


def test_every_method_has_an_approach_and_targets_that_exist():
    assert {row.approach for row in knowledge.methods().values()} == set(knowledge.approaches())
    for row in knowledge.methods().values():
        assert set(row.targets) <= set(knowledge.targets()), row.name
    with pytest.raises(KnowledgeError, match="tables methods"):
        knowledge.find_method("gtpq")


# ----------------------------------------------------------------------------------------- what they do


@pytest.mark.parametrize(
    ("method", "assign"),
    [
        ("gptq", mixed),
        ("awq", mixed),
        ("smoothquant", mixed_with_rounded_activations),
    ],
)
def test_a_method_writes_what_it_found_at_the_plans_size_and_transformers_alone_computes_with_it(
    method, assign, trained, loaded, tmp_path
):
    plan, folder = plan_of(loaded, assign(loaded.catalogue)), tmp_path / "packed"
    pipeline.apply_plan(plan, TO, folder, method=method)
    assert differences(loaded.catalogue, plan, read(folder), VLLM) == []
    assert tensor_bytes(folder) == weights_bytes(loaded.catalogue, plan.assignments, VLLM)
    applied = pipeline.method_in(folder)
    assert (applied.asked, applied.method, applied.samples) == (method, method, 4)
    assert applied.kl < applied.nearest_kl
    if method == "gptq":
        windows = token_windows("python-docs", loaded.tokenizer, "calibration", 6, 64)
        found = calibrate(loaded, plan.assignments, method, windows[:4], windows[4:])
        model = models.load(str(trained), lambda progress: None, dtype="fp32").model
        put(model, found.codes, found.weights)
        ids = torch.randint(3, 256, (2, 20), generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            expected = model(ids).logits
        with Stranger(tmp_path) as stranger:
            assert (stranger.logits(folder, ids) - expected).abs().max() < 1e-4


def test_gptq_is_closer_than_rounding_to_nearest_where_it_was_calibrated(trained, loaded):
    assignments = uniform(loaded.catalogue, "int4_g64")
    windows = token_windows("python-docs", loaded.tokenizer, "calibration", 12, 64)
    found = calibrate(loaded, assignments, "gptq", windows[:8], windows[8:])
    assert found.codes.keys() == assignments.keys() and found.weights == {}
    for name, codes in found.codes.items():
        fmt = find_format(assignments[name])
        assert codes.values.abs().max() <= 2 ** (fmt.bits - 1) and codes.scale.dtype == torch.bfloat16
    assert found.kl < 0.9 * found.nearest_kl


def test_auto_rounds_to_nearest_and_says_why_where_the_plans_text_is_gone_but_what_is_named_is_refused(
    loaded, tmp_path
):
    plan = plan_of(loaded, mixed(loaded.catalogue))
    plan.provenance["calibration"]["text"] = str(tmp_path / "gone.txt")
    pipeline.apply_plan(plan, TO, tmp_path / "packed")
    applied = pipeline.method_in(tmp_path / "packed")
    assert applied.method == "rtn" and "gone.txt" in applied.reason
    with pytest.raises(TextError, match="gone"):
        pipeline.apply_plan(plan, TO, tmp_path / "other", method="gptq")
    (tmp_path / "short.txt").write_text("Too little text.")
    for asked in ("nowhere.txt", "short.txt"):
        with pytest.raises(TextError, match=asked):
            pipeline.apply_plan(plan, TO, tmp_path / "other", calibration=str(tmp_path / asked))
    with pytest.raises(PlanError, match="Nothing here reads the calibration text python-chat: .* by Round to nearest"):
        pipeline.apply_plan(plan, TO, tmp_path / "other", method="rtn", calibration="python-chat")
    assert not (tmp_path / "other").exists()


def test_the_original_is_left_as_it_is_and_work_stops_where_it_is_told_to(loaded):
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    windows = token_windows("python-docs", loaded.tokenizer, "calibration", 3, 64)

    def stop(done, total):
        raise JobCancelled("Stopped as asked.")

    with pytest.raises(JobCancelled):
        calibrate(loaded, uniform(loaded.catalogue, "int4_g64"), "gptq", windows[:2], windows[2:], stop)
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
