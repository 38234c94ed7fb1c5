"""What cannot be is refused before a model is fetched, and what a target cannot hold before its weights are read."""

import pytest

from advisor import models, pipeline
from advisor.errors import AdvisorError, ModelError, PlanError, TextError
from advisor.types import ApplyRequest, ProfileRequest
from tests.planning_cases import plan_for
from tests.test_apply import a_plan, loaded_in_own_dtype
from tests.tiny_models import tiny_folder


@pytest.fixture
def plan(tmp_path):
    """Makes a plan of these formats in turn, for a model whose weights nobody can read any more."""

    def made(architecture, *formats):
        folder = tiny_folder(tmp_path / "original", architecture)
        catalogue = loaded_in_own_dtype(folder).catalogue
        layers = [layer.name for layer in catalogue.quantizable if layer.block is not None]
        for weights in folder.glob("*.safetensors"):
            weights.write_bytes(b"")
        return a_plan(catalogue, {name: formats[i % len(formats)] for i, name in enumerate(layers)})

    return made


@pytest.mark.parametrize(
    ("to", "architecture", "formats", "said"),
    [
        ("compressed-tensors", "llama", ["int8", "int4_g64"], "they share one kernel"),
        ("compressed-tensors", "falcon", ["int8"], "this is FalconLinear"),
        ("compressed-tensors", "gpt_oss", ["int8"], "this is one tensor for all experts"),
        ("gptqmodel", "llama", ["int3_g64"], "there is no kernel for int3_g64"),
        ("gptqmodel", "falcon", ["int8"], "this is FalconLinear"),
        ("bitsandbytes", "llama", ["int8", "nf4_g64"], "holds one quantized format"),
        ("torchao", "llama", ["nf4_g64"], "there is no kernel for nf4_g64"),
        ("mlx", "opt", ["int8"], "models were tried in mlx-lm"),
        ("gguf", "opt", ["int8"], "cannot be written as GGUF"),
        ("gguf-k-quants", "llama", ["nf4_g64"], "which GGUF lacks"),
    ],
)
def test_what_a_target_cannot_hold_is_refused_before_a_weight_is_read(
    to, architecture, formats, said, plan, store, tmp_path
):
    unfit = plan(architecture, *formats)
    with pytest.raises(PlanError, match=said):
        pipeline.apply_plan(unfit, to, tmp_path / "out")
    request = ApplyRequest(plan_id=store.save_plan(unfit, None), to=to, out=str(tmp_path / "out"), seq_len=32)
    with pytest.raises(PlanError, match=said):
        pipeline.apply_and_evaluate(request, store)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def nothing_is_fetched(monkeypatch):
    def fetch(*_):
        raise AssertionError("a model was fetched")

    monkeypatch.setattr(models, "_safetensors_source", fetch)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"formats": ("int8", "int5")}, "Unknown format 'int5'"),
        ({"layers": "("}, "nor a valid regular expression"),
        ({"device": "nosuch"}, "The device 'nosuch' is not available"),
        ({"text": "damaged.jsonl"}, "damaged.jsonl could not be read as text"),
    ],
)
def test_a_wrong_value_is_told_before_the_model_is_fetched(
    wrong, said, nothing_is_fetched, store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.jsonl").write_text("{")
    request = ProfileRequest(model="smollm2", **wrong)
    for told in (lambda: pipeline.preview_profile(request), lambda: pipeline.profile_model(request, store)):
        with pytest.raises(AdvisorError, match=said):
            told()


def test_what_is_evaluated_and_its_text_are_looked_at_before_the_original_is_measured(nothing_is_fetched, tmp_path):
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    with pytest.raises(ModelError, match="There is no file or folder './typo'"):
        pipeline.evaluate_source("./typo", against="smollm2")
    with pytest.raises(TextError, match="damaged.parquet could not be read as text"):
        pipeline.evaluate_source("smollm2", str(tmp_path / "damaged.parquet"), against="smollm2")


def test_a_taken_place_is_told_before_the_nearest_plan_is_looked_for(run, tmp_path, monkeypatch):  # noqa: F811
    def looked_for(*_):
        raise AssertionError("the model may have been loaded")

    monkeypatch.setattr(pipeline, "nearest_plan", looked_for)
    (tmp_path / "plan.json").write_text(plan_for().model_dump_json())
    command = ("apply", tmp_path / "plan.json", "--to", "mlx", "--nearest", "--out")
    assert "already exists" in run(*command, tmp_path)[2]
    assert "There is no text" in run(*command, tmp_path / "out", "--evaluate", "typo")[2]
    assert "There is no text" in run(*command, tmp_path / "out", "--calibration", "typo")[2]
