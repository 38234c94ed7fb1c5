"""What a target cannot hold is refused by the model's configuration: its weights are not read before."""

import pytest

from advisor import pipeline
from advisor.errors import PlanError
from advisor.types import ApplyRequest
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
