"""Formats that round activations: what they do to an input, and that every way of measuring sees it."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from advisor import estimates
from advisor.activations import rounded_inputs
from advisor.apply import pack_with_quanto, quanto_type, simulated
from advisor.catalogue import catalogue_model
from advisor.errors import PlanError
from advisor.export import simulated as simulated_export
from advisor.formats.quantize import fake_quantize, fake_quantize_input
from advisor.formats.table import fits, packed_bytes
from advisor.knowledge import find_format
from advisor.profiler.exact import ExactSweep
from advisor.profiler.reference import Reference, batches_of
from advisor.profiler.run import choose_candidates
from advisor.types import ModelRef, ProfileRequest
from advisor.weights import get_weight
from tests.test_apply import a_plan
from tests.test_fisher import scored
from tests.test_profiler import windows
from tests.tiny_models import tiny_model

REF = ModelRef(source="tiny", kind="folder", name="tiny")
TWINS = {"int8_w8a8": "int8", "fp8_w8a8": "fp8_e4m3"}
DOWN = "model.layers.0.mlp.down_proj"


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def linears(catalogue):
    """The layers that have an input to round."""
    return [layer for layer in catalogue.quantizable if fits(find_format("int8_w8a8"), layer)]


# ---------------------------------------------------------------------------------------- arithmetic


def test_int8_inputs_are_those_of_torchs_fake_quantization_with_a_scale_per_token():
    x = inputs(7, 64)
    scale = x.abs().amax(1) / 127
    expected = torch.fake_quantize_per_channel_affine(x, scale, torch.zeros(7, dtype=torch.int32), 0, -128, 127)
    torch.testing.assert_close(fake_quantize_input(x, find_format("int8_w8a8")), expected, rtol=1e-6, atol=1e-7)


def test_fp8_inputs_are_torchs_e4m3_with_a_scale_per_token():
    x = inputs(7, 64)
    scale = x.abs().amax(1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    expected = (x / scale).to(torch.float8_e4m3fn).float() * scale
    assert torch.equal(fake_quantize_input(x, find_format("fp8_w8a8")), expected)


@pytest.mark.parametrize("name", TWINS)
def test_every_token_is_rounded_alone_and_zeros_stay_zero(name):
    x = inputs(2, 3, 64).bfloat16()
    x[0, 1] = 0
    found = fake_quantize_input(x, find_format(name))
    assert found.dtype == x.dtype and found.shape == x.shape
    assert torch.equal(found[0, 1], x[0, 1])
    assert torch.equal(found[1, 2], fake_quantize_input(x[1, 2], find_format(name)))
    x[0, 0] *= 1000
    assert torch.equal(fake_quantize_input(x, find_format(name))[1], found[1])


def test_formats_that_leave_activations_alone_give_the_same_tensor():
    x = inputs(3, 64)
    assert all(fake_quantize_input(x, find_format(name)) is x for name in ("bf16", "int8", "int4_g64"))


@pytest.mark.parametrize(("name", "twin"), TWINS.items())
def test_weights_and_bytes_are_those_of_the_weight_only_twin(name, twin):
    weight, layer = inputs(48, 128), catalogue_model(tiny_model("llama"), REF).quantizable[1]
    assert torch.equal(fake_quantize(weight, find_format(name)), fake_quantize(weight, find_format(twin)))
    assert packed_bytes(find_format(name), layer) == packed_bytes(find_format(twin), layer)


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_embeddings_and_fused_experts_are_no_candidates(architecture):
    catalogue = catalogue_model(tiny_model(architecture, tie_word_embeddings=True), REF)
    chosen = choose_candidates(catalogue, ProfileRequest(model="tiny", formats=("int8", "int8_w8a8")))
    rounded = {layer.name for layer, fmt in chosen if fmt.name == "int8_w8a8"}
    assert rounded == {layer.name for layer in linears(catalogue)}
    left_out = {layer.name for layer in catalogue.quantizable} - rounded
    assert all("embed_tokens" in name or "experts" in name for name in left_out) and left_out


# --------------------------------------------------------------------------------------- measurement


def by_hand(model, layer, fmt, ids) -> torch.Tensor:
    """Logits of the model with one linear module computed as an engine would: rounded input times rounded weight."""
    module = model.get_submodule(layer.name)
    weight = fake_quantize(module.weight.data, fmt)
    own = module.forward

    def forward(x):
        return torch.nn.functional.linear(fake_quantize_input(x, fmt), weight, module.bias)

    module.forward = forward
    try:
        with torch.no_grad():
            return model(ids).logits[:, :-1].float()
    finally:
        module.forward = own


def kl(full: torch.Tensor, quantized: torch.Tensor) -> float:
    full, quantized = full.log_softmax(-1), quantized.log_softmax(-1)
    return torch.nn.functional.kl_div(quantized, full, log_target=True, reduction="none").sum(-1).mean().item()


def sweep(model, catalogue, ids, around=()):
    return ExactSweep(Reference(model, catalogue, batches_of(ids, model, catalogue)), around)


@pytest.mark.parametrize("name", TWINS)
def test_the_exact_sweep_measures_the_rounding_of_activations(name):
    model = tiny_model("llama")
    catalogue, fmt = catalogue_model(model, REF), find_format(name)
    chosen = [(layer, fmt) for layer in linears(catalogue)]
    found = {m.layer: m.kl for m in sweep(model, catalogue, windows()).measure(chosen)}
    with torch.no_grad():
        full = model(windows()).logits[:, :-1].float()
    for layer, _ in chosen:
        assert found[layer.name] == pytest.approx(kl(full, by_hand(model, layer, fmt, windows())), rel=1e-2, abs=1e-8)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_giving_a_layer_back_gives_its_input_back_too():
    model = tiny_model("llama")
    catalogue, fmt = catalogue_model(model, REF), find_format("int8_w8a8")
    plan = [(layer, fmt) for layer in linears(catalogue)]
    with torch.no_grad():
        full = model(windows()).logits[:, :-1].float()

        def loss_of(layers) -> float:
            with simulated(model, catalogue, {layer.name: fmt.name for layer in layers}):
                return kl(full, model(windows()).logits[:, :-1].float())

        everything = loss_of(layer for layer, _ in plan)
        for m in list(sweep(model, catalogue, windows(), plan).measure(plan)):
            without = loss_of(layer for layer, _ in plan if layer.name != m.layer)
            assert m.kl == pytest.approx(everything - without, rel=0.02, abs=2e-7), m.layer
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def both(request):
    """Exact and Fisher scores of W8A8 and of its weight-only twin, on the same text."""
    model = tiny_model(request.param, num_hidden_layers=3)
    catalogue, ids = catalogue_model(model, REF), windows(24, 48)
    chosen = [(layer, find_format(name)) for layer in linears(catalogue) for name in ("int8", "int8_w8a8", "fp8_w8a8")]
    exact = {(m.layer, m.format): m.kl for m in sweep(model, catalogue, ids).measure(chosen)}
    scores = scored(model, chosen, ids, draws=16)
    fisher = {
        key: estimates.fisher_measurement(*key, values.numpy() / np.sqrt(2 * 47), 47).kl
        for key, values in scores.items()
    }
    return exact, fisher


@pytest.mark.parametrize("name", TWINS)
def test_fisher_scores_agree_with_exact_ones(both, name):
    exact, fisher = both
    keys = [key for key in exact if key[1] == name]
    assert spearmanr([exact[k] for k in keys], [fisher[k] for k in keys]).statistic > 0.9
    assert np.median([fisher[k] / exact[k] for k in keys]) == pytest.approx(1, abs=0.15)


def test_rounding_activations_costs_more_than_rounding_weights_alone(both):
    for scores in both:
        ratios = [scores[layer, "int8_w8a8"] / kl for (layer, fmt), kl in scores.items() if fmt == "int8"]
        assert np.median(ratios) > 1.2


# ------------------------------------------------------------------------------------------ applying


def test_a_simulated_model_rounds_activations_and_is_itself_again_afterwards():
    model = tiny_model("llama")
    catalogue, ids = catalogue_model(model, REF), windows()
    layer = catalogue.by_name()[DOWN]
    with torch.no_grad():
        before = model(ids).logits
        outputs = {}
        for name in ("int8", "int8_w8a8"):
            with simulated(model, catalogue, {DOWN: name}):
                outputs[name] = model(ids).logits
        assert torch.equal(model(ids).logits, before)
    assert not torch.equal(outputs["int8"], outputs["int8_w8a8"])
    torch.testing.assert_close(outputs["int8_w8a8"][:, :-1], by_hand(model, layer, find_format("int8_w8a8"), ids))


def test_inputs_are_left_alone_again_after_an_error():
    model = tiny_model("llama")
    layer = catalogue_model(model, REF).by_name()[DOWN]
    with pytest.raises(KeyboardInterrupt), rounded_inputs(model, [(layer, find_format("int8_w8a8"))]):
        raise KeyboardInterrupt
    assert not model.get_submodule(DOWN)._forward_pre_hooks


def test_files_that_hold_weights_only_refuse_such_a_plan(tmp_path):
    model = tiny_model("llama")
    catalogue = catalogue_model(model, REF)
    before = get_weight(model, catalogue.by_name()[DOWN]).clone()
    assert quanto_type(find_format("int8_w8a8")) is None
    with pytest.raises(PlanError, match=r"down_proj has int8_w8a8, which rounds activations .* plan without"):
        pack_with_quanto(model, catalogue, {DOWN: "int8_w8a8"})
    with pytest.raises(PlanError, match="a simulated export holds weights only"):
        simulated_export.export(model, None, catalogue, a_plan(catalogue, {DOWN: "fp8_w8a8"}), tmp_path / "new")
    assert torch.equal(get_weight(model, catalogue.by_name()[DOWN]), before) and not list(tmp_path.iterdir())
