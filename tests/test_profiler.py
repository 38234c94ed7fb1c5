"""The exact sweep against the naive loop, on tiny models of every architecture that can be catalogued."""

import math

import pytest
import torch
from accelerate import cpu_offload

from advisor.catalogue import catalogue_model
from advisor.errors import ModelError, PlanError
from advisor.knowledge import find_engine, find_format
from advisor.models import LoadedModel
from advisor.planner.locks import resolve_locks
from advisor.profiler import exact, reference
from advisor.profiler.exact import ExactSweep
from advisor.profiler.reference import Reference, batches_of
from advisor.profiler.run import ProfilingRun, choose_candidates, requested_part
from advisor.types import ModelRef, ProfileRequest
from advisor.weights import get_weight
from benchmarks.naive import naive_sweep
from tests.tiny_models import CONTEXT, VOCABULARY, tiny_model

ARCHITECTURES = (
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3 phi3 gpt2 gpt_neox opt falcon mixtral qwen2_moe qwen3_moe gpt_oss "
    "deepseek_v3 qwen3_next bamba"
).split()
REF = ModelRef(source="tiny", kind="folder", name="tiny")


def windows(sequences: int = 3, length: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (sequences, min(length, CONTEXT)), generator=generator)


def candidates(catalogue, formats=("int8", "int4_g32")):
    return [(layer, find_format(name)) for layer in catalogue.quantizable for name in formats]


def compared(model, catalogue, keep: bool = True) -> Reference:
    return Reference(model, catalogue, batches_of(windows(), model, catalogue), keep)


def measured(model, catalogue, chosen, around=(), keep: bool = True):
    sweep = ExactSweep(compared(model, catalogue, keep), around)
    return {(m.layer, m.format): m for m in sweep.measure(chosen)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_sweep_gives_what_the_naive_loop_gives(architecture):
    model = tiny_model(architecture)
    catalogue = catalogue_model(model, REF)
    chosen = candidates(catalogue)
    found = measured(model, catalogue, chosen)
    assert len(found) == len(chosen)
    for layer, fmt, delta_nll, kl in naive_sweep(model, windows(), chosen):
        assert found[layer, fmt].delta_nll == pytest.approx(delta_nll, abs=2e-6)
        assert found[layer, fmt].kl == pytest.approx(kl, rel=1e-2, abs=1e-7)


def test_small_memory_gives_the_same_scores(monkeypatch):
    model = tiny_model("llama", tie_word_embeddings=True)
    catalogue = catalogue_model(model, REF)
    chosen = candidates(catalogue)
    roomy = measured(model, catalogue, chosen)
    monkeypatch.setattr(reference, "REFERENCE_CACHE_BYTES", 0)
    monkeypatch.setattr(reference, "_CPU_BATCH_TOKENS", 1)
    monkeypatch.setattr("advisor.scoring._SLICE_BYTES", 1)
    tight = measured(model, catalogue, chosen)
    for key, measurement in roomy.items():
        assert tight[key].kl == pytest.approx(measurement.kl, rel=1e-3, abs=1e-7)
        assert tight[key].delta_nll == pytest.approx(measurement.delta_nll, abs=1e-6)


def test_an_architecture_whose_later_blocks_read_earlier_ones_is_measured_from_the_start(monkeypatch):
    monkeypatch.setattr(reference, "_CPU_BATCH_TOKENS", 1)  # several batches: what stays inside is then another one's
    model = tiny_model("llama")
    inside = {}

    def keep_values(module, args, output):
        inside["values"] = output

    # As where blocks share key-value states: the second block adds what the first one had inside.
    model.model.layers[0].self_attn.v_proj.register_forward_hook(keep_values)
    model.model.layers[1].mlp.down_proj.register_forward_hook(
        lambda module, args, output: output + inside["values"].repeat(1, 1, 2)
    )
    catalogue = catalogue_model(model, REF)
    chosen = candidates(catalogue)
    found = measured(model, catalogue, chosen)
    inside.clear()
    for layer, fmt, _, kl in naive_sweep(model, windows(), chosen):
        assert found[layer, fmt].kl == pytest.approx(kl, rel=1e-2, abs=1e-7)


def test_weights_kept_off_the_device_score_the_same():
    model = tiny_model("llama", tie_word_embeddings=True)
    catalogue = catalogue_model(model, REF)
    chosen = candidates(catalogue)
    alone, around = measured(model, catalogue, chosen), measured(model, catalogue, chosen, around=chosen, keep=False)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    for plan, before in ((), alone), (chosen, around):
        now = measured(model, catalogue, chosen, around=plan, keep=False)
        assert {key: m.kl for key, m in now.items()} == pytest.approx(
            {key: m.kl for key, m in before.items()}, abs=1e-9
        )


def test_weights_are_untouched_after_a_sweep_and_after_a_broken_one():
    model = tiny_model("llama")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    catalogue = catalogue_model(model, REF)
    sweep = ExactSweep(compared(model, catalogue)).measure(candidates(catalogue))
    next(sweep)
    sweep.close()
    measured(model, catalogue, candidates(catalogue))
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert "forward" not in model.base_model.__dict__


def test_standard_errors_are_those_of_the_paired_differences():
    model = tiny_model("llama")
    catalogue = catalogue_model(model, REF)
    layer = catalogue.quantizable[3]
    found = measured(model, catalogue, [(layer, find_format("int2_g64"))])[layer.name, "int2_g64"]
    tokens = windows()
    nll = []
    for quantized in (False, True):
        if quantized:
            parameter = get_weight(model, layer)
            parameter.data = exact.fake_quantize(parameter.data, find_format("int2_g64"))
        with torch.no_grad():
            logits = model(tokens).logits[:, :-1]
        nll.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none"))
    delta = (nll[1] - nll[0]).flatten()
    assert found.delta_nll_stderr == pytest.approx(delta.std().item() / math.sqrt(len(delta)), rel=1e-3)
    assert found.delta_nll_by_sequence == pytest.approx((nll[1] - nll[0]).mean(1).tolist(), abs=1e-6)


def test_bf16_states_its_noise_floor_and_fp32_has_none():
    model = tiny_model("llama")
    assert compared(model, catalogue_model(model, REF)).baseline().noise_floor_kl == 0
    model = model.bfloat16()
    assert compared(model, catalogue_model(model, REF)).baseline().noise_floor_kl > 0


def test_giving_a_layer_back_wins_what_the_naive_loop_says():
    model = tiny_model("llama", tie_word_embeddings=True)
    catalogue = catalogue_model(model, REF)
    plan = candidates(catalogue, ("int4_g32",))
    found = measured(model, catalogue, plan, around=plan)
    originals = {layer.name: get_weight(model, layer).data for layer, _ in plan}
    with torch.no_grad():
        full = torch.log_softmax(model(windows()).logits[:, :-1].float(), -1)
        for layer, fmt in plan:
            parameter = get_weight(model, layer)
            parameter.data = exact.fake_quantize(parameter.data, fmt, layer.input_axis)
        whole = kl_to(full, model)
        for layer, fmt in plan:
            parameter = get_weight(model, layer)
            quantized, parameter.data = parameter.data, originals[layer.name]
            won = whole - kl_to(full, model)
            parameter.data = quantized
            assert found[layer.name, fmt.name].kl == pytest.approx(won, rel=1e-2, abs=1e-7)


def kl_to(full: torch.Tensor, model) -> float:
    log_p = torch.log_softmax(model(windows()).logits[:, :-1].float(), -1)
    return torch.nn.functional.kl_div(log_p, full, log_target=True, reduction="none").sum(-1).mean().item()


class Words:
    """A tokenizer for tiny models: one token per character, so that text decides which tokens are met."""

    bos_token_id = None

    def __call__(self, text, add_special_tokens=True):
        from types import SimpleNamespace

        return SimpleNamespace(input_ids=[min(ord(character), VOCABULARY - 1) for character in text])


def a_run(**changes) -> ProfilingRun:
    model = tiny_model("llama")
    request = {"samples": 2, "seq_len": 32, "formats": ("int8", "int4_g32"), "method": "exact"} | changes
    loaded = LoadedModel(model, Words(), catalogue_model(model, REF))
    return ProfilingRun(loaded, ProfileRequest(model="tiny", **request))


def measure_all(run: ProfilingRun, stored=None):
    stored = stored or run.header("exact")
    return [m for found in run.exact(stored, run.candidates, lambda done, total: None) for m in found]


def test_what_is_stored_is_not_measured_again():
    whole = a_run()
    all_at_once = measure_all(whole)
    kept = all_at_once[:5]
    second = a_run()
    header = second.header("exact")
    assert header.id == whole.header("exact").id
    rest = measure_all(second, header.model_copy(update={"measurements": tuple(kept)}))
    assert not {(m.layer, m.format) for m in kept} & {(m.layer, m.format) for m in rest}
    scores = {(m.layer, m.format): (m.kl, m.delta_nll) for m in kept + rest}
    assert scores == {(m.layer, m.format): (m.kl, m.delta_nll) for m in all_at_once}


def test_other_text_seed_draws_or_plan_is_another_profile():
    assert a_run().header("exact").id == a_run().header("exact").id
    assert a_run().header("exact").id != a_run(seed=1).header("exact").id
    assert a_run().header("exact").id != a_run().header("fisher").id
    assert a_run().header("fisher").id != a_run(draws=2).header("fisher").id
    assert a_run().header("exact").id != a_run(around={"model.embed_tokens": "int8"}).header("exact").id


def test_a_request_gets_its_part_of_a_larger_profile():
    run = a_run(layers="down_proj")
    whole = a_run()
    stored = whole.header("exact").model_copy(update={"measurements": tuple(measure_all(whole))})
    part = requested_part(stored, run.candidates)
    assert {m.layer.rsplit(".", 1)[-1] for m in part.measurements} == {"down_proj"}
    assert len(part.measurements) == len(run.candidates)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "nothing_like_this"}, "The choice of layers 'nothing_like_this' matches no layer"),
        ({"layers": "proj"}, "matches no layer"),
        ({"layers": "blocks 0-9"}, "goes beyond"),
        ({"layers": "model.norm"}, "is never quantized"),
        ({"layers": "("}, "valid regular expression"),
        ({"formats": ("int4_g128",)}, "None of the chosen formats fits"),
        ({"around": {"nothing": "int8"}, "method": "exact"}, "the plan is for another model"),
        ({"around": {"lm_head": "fp32"}, "method": "exact"}, "nothing to give back"),
    ],
)
def test_a_request_that_measures_nothing_is_refused(changes, message):
    catalogue = catalogue_model(tiny_model("llama", intermediate_size=192), REF)
    with pytest.raises((ModelError, PlanError), match=message):
        choose_candidates(catalogue, ProfileRequest(model="tiny", **changes))


@pytest.mark.parametrize("layers", ["block 1", "down_proj", r".*\.mlp\..*", "lm_head"])
def test_layers_to_measure_are_named_as_those_of_locks(layers):
    catalogue = catalogue_model(tiny_model("llama"), REF)
    chosen = choose_candidates(catalogue, ProfileRequest(model="tiny", layers=layers))
    locked = resolve_locks(catalogue, find_engine("transformers"), {layers: "int8"})
    assert {layer.name for layer, _ in chosen} == locked.keys()
