"""The Fisher estimate against autograd, against exact scores, and against what it promises of its error bars."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from scipy.stats import spearmanr

from advisor import estimates
from advisor.catalogue import catalogue_model
from advisor.errors import ModelError
from advisor.formats.quantize import fake_quantize
from advisor.knowledge import find_format
from advisor.profiler.exact import ExactSweep
from advisor.profiler.fisher import FisherPass, draw_labels
from advisor.profiler.reference import Reference, batches_of
from advisor.types import ModelRef
from advisor.weights import get_weight
from tests.test_profiler import ARCHITECTURES, candidates, windows
from tests.tiny_models import tiny_model

REF = ModelRef(source="tiny", kind="folder", name="tiny")


def quiet(done: int, total: int) -> None:
    """Progress that nobody watches."""


def scored(model, chosen, ids, draws=2, first=0):
    return FisherPass(model.requires_grad_(False), chosen, draws, fast=False).run(ids, first, quiet)


def true_slopes(model, chosen, ids) -> dict:
    """<gradient on the text, dW> of each sequence by plain autograd: the whole gradient, one sequence at a time."""
    model.requires_grad_(True)
    found = {}
    for index, row in enumerate(ids):
        model.zero_grad()
        logits = model(row[None]).logits[0, :-1].float()
        torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum").backward()
        for layer, fmt in chosen:
            weight = get_weight(model, layer)
            error = fake_quantize(weight.data, fmt, layer.input_axis) - weight.data
            scale = (weight.grad.norm() * error.norm()).item()
            found[layer.name, fmt.name, index] = (weight.grad * error).sum().item(), scale
    model.zero_grad()
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_slopes_are_those_of_plain_autograd(architecture):
    model = tiny_model(architecture)
    chosen = candidates(catalogue_model(model, REF))
    found = scored(model, chosen, windows())
    for (layer, fmt, index), (slope, scale) in true_slopes(model, chosen, windows()).items():
        assert found[layer, fmt][index, 0].item() == pytest.approx(slope, abs=1e-5 * scale + 1e-9)


def test_a_model_that_cannot_be_run_from_the_middle_is_walked_whole():
    model = tiny_model("llama")
    inside = {}

    def keep_values(module, args, output):
        inside["values"] = output

    model.model.layers[0].self_attn.v_proj.register_forward_hook(keep_values)
    model.model.layers[1].mlp.down_proj.register_forward_hook(
        lambda module, args, output: output + inside["values"].repeat(1, 1, 2)
    )
    chosen = candidates(catalogue_model(model, REF))
    found = scored(model, chosen, windows())
    for (layer, fmt, index), (slope, scale) in true_slopes(model, chosen, windows()).items():
        assert found[layer, fmt][index, 0].item() == pytest.approx(slope, abs=1e-5 * scale + 1e-9)


def test_weights_kept_off_the_device_score_the_same():
    model = tiny_model("llama", tie_word_embeddings=True)
    chosen = candidates(catalogue_model(model, REF))
    before = scored(model, chosen, windows())
    cpu_offload(model, execution_device=torch.device("cpu"))
    for key, values in scored(model, chosen, windows()).items():
        assert values.numpy() == pytest.approx(before[key].numpy(), rel=1e-5)


def test_fused_experts_off_the_device_are_refused_with_what_to_do():
    model = tiny_model("mixtral")
    chosen = candidates(catalogue_model(model, REF))
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(ModelError, match="--method exact"):
        scored(model, chosen, windows())


def test_a_sequence_scores_the_same_in_whatever_batch_it_is():
    model = tiny_model("llama")
    chosen = candidates(catalogue_model(model, REF))
    together = scored(model, chosen, windows())
    alone = scored(model, chosen, windows()[2:], first=2)
    for key, values in alone.items():
        assert values[0].tolist() == pytest.approx(together[key][2].tolist(), rel=1e-3, abs=1e-5)


def test_gradients_and_hooks_are_gone_afterwards():
    model = tiny_model("mixtral")
    scored(model, candidates(catalogue_model(model, REF)), windows())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_drawn_labels_follow_the_distribution():
    chances = torch.tensor([[0.1, 0.2, 0.7]]).repeat(4000, 1)
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    labels = draw_labels(chances, uniform, 3)
    assert labels.shape == (3, 4000)
    for draw in labels:
        shares = torch.bincount(draw, minlength=3) / 4000
        assert shares.tolist() == pytest.approx([0.1, 0.2, 0.7], abs=0.03)


@pytest.fixture(scope="module")
def both():
    """Exact and Fisher scores of a tiny model in formats whose errors are small, on the same text."""
    model = tiny_model("llama", num_hidden_layers=3)
    catalogue = catalogue_model(model, REF)
    ids = windows(24, 48)
    chosen = candidates(catalogue, ("int4_g32", "int2_g64"))
    reference = Reference(model, catalogue, batches_of(ids, model, catalogue))
    exact = {(m.layer, m.format): m for m in ExactSweep(reference).measure(chosen)}
    scores = scored(model, chosen, ids, draws=16)
    fisher = {
        key: estimates.fisher_measurement(*key, values.numpy() / np.sqrt(2 * 47), 47) for key, values in scores.items()
    }
    return model, catalogue, ids, exact, fisher


def test_estimates_agree_with_exact_scores(both):
    _, _, _, exact, fisher = both
    keys = [key for key in exact if key[1] == "int2_g64"]
    assert spearmanr([exact[k].kl for k in keys], [fisher[k].kl for k in keys]).statistic > 0.95
    assert np.median([fisher[k].kl / exact[k].kl for k in keys]) == pytest.approx(1, abs=0.1)
    # Text that the model does not believe in has another curvature; to first order the two agree on any text.
    keys = [key for key in exact if key[1] == "int4_g32"]
    assert spearmanr([exact[k].delta_nll for k in keys], [fisher[k].delta_nll for k in keys]).statistic > 0.95


def test_error_bars_cover_the_exact_scores(both):
    _, _, _, exact, fisher = both
    inside = [abs(fisher[key].kl - exact[key].kl) <= 1.25 * 1.96 * fisher[key].kl_stderr for key in exact]
    assert np.mean(inside) >= 0.9


def test_a_set_of_layers_is_scored_with_its_interactions(both):
    model, catalogue, ids, exact, fisher = both
    chosen = [(layer, find_format("int2_g64")) for layer in catalogue.quantizable]
    with torch.no_grad():
        full = torch.log_softmax(model(ids).logits[:, :-1].float(), -1)
        kept = {layer.name: get_weight(model, layer).data for layer, _ in chosen}
        for layer, fmt in chosen:
            get_weight(model, layer).data = fake_quantize(kept[layer.name], fmt, layer.input_axis)
        log_p = torch.log_softmax(model(ids).logits[:, :-1].float(), -1)
        for layer, _ in chosen:
            get_weight(model, layer).data = kept[layer.name]
    true = torch.nn.functional.kl_div(log_p, full, log_target=True, reduction="none").sum(-1).mean().item()
    measurements = [fisher[layer.name, fmt.name] for layer, fmt in chosen]
    found, stderr = estimates.set_kl(measurements, 16)
    assert found == pytest.approx(true, abs=3 * stderr + 0.1 * true)
    # The gain of giving a layer back is what it takes off the whole.
    for layer, (won, _) in estimates.give_back(measurements, 16).items():
        rest, _ = estimates.set_kl([m for m in measurements if m.layer != layer], 16)
        assert won == pytest.approx(found - rest, rel=1e-6, abs=1e-12)


def test_a_format_that_changes_nothing_leaves_the_weights_alone():
    model = tiny_model("llama").bfloat16()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    scores = scored(model, candidates(catalogue_model(model, REF), ("bf16",)), windows())
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert not any(values.any() for values in scores.values())


def test_scores_come_block_by_block_from_the_last_to_the_first_and_are_those_of_the_whole():
    model = tiny_model("llama").requires_grad_(False)
    catalogue = catalogue_model(model, REF)
    chosen = candidates(catalogue)
    parts = list(FisherPass(model, chosen, 2, fast=False).walk(windows(), 0, quiet))
    *blocks, rest = [{catalogue.by_name()[layer].block for layer, _ in part} for part in parts]
    assert blocks == [{number} for number in reversed(range(catalogue.attention.blocks))]
    assert rest <= {None}
    whole = scored(model, chosen, windows())
    assert sum(map(len, parts)) == len(whole)
    for part in parts:
        assert all(torch.equal(found, whole[key]) for key, found in part.items())
