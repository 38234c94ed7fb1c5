"""Results written by hand, shaped like SmolLM2's, for tests of what draws and stores them: no model is run."""

from __future__ import annotations

import math
import random

import numpy as np

from advisor import estimates
from advisor.types import (
    AttentionGeometry,
    Baseline,
    CalibrationSpec,
    Catalogue,
    Contender,
    Evaluation,
    Layer,
    Measurement,
    ModelRef,
    Plan,
    Refinement,
    RefinementRound,
    Role,
    SensitivityProfile,
    TextQuality,
    TextSpec,
)

FINGERPRINT = "ab" * 32
_MODULES = (
    ("self_attn.q_proj", Role.ATTENTION_QKV, 576, 576),
    ("self_attn.k_proj", Role.ATTENTION_QKV, 192, 576),
    ("self_attn.v_proj", Role.ATTENTION_QKV, 192, 576),
    ("self_attn.o_proj", Role.ATTENTION_OUTPUT, 576, 576),
    ("mlp.gate_proj", Role.MLP_GATE_UP, 1536, 576),
    ("mlp.up_proj", Role.MLP_GATE_UP, 1536, 576),
    ("mlp.down_proj", Role.MLP_DOWN, 576, 1536),
)
_FORMAT_DAMAGE = {"int8": 1e-5, "int4_g64": 2e-3, "int3_g64": 1.2e-2}
_ROLE_DAMAGE = {Role.EMBEDDING: 30.0, Role.ATTENTION_OUTPUT: 1.5, Role.MLP_DOWN: 2.5}


def catalogue(blocks: int = 30, fingerprint: str = FINGERPRINT, source: str = "smollm2") -> Catalogue:
    """A Llama-like model with a tied embedding."""
    return Catalogue(
        model=ModelRef(source=source, kind="demo", name="SmolLM2-135M-Instruct", fingerprint=fingerprint),
        architecture="LlamaForCausalLM",
        dtype="bf16",
        hidden_size=576,
        intermediate_size=1536,
        vocabulary=49152,
        max_context=8192,
        attention=AttentionGeometry(blocks=blocks, attention_heads=9, kv_heads=3, head_dim=64),
        layers=tuple(_layers(blocks)),
    )


def profile(
    blocks: int = 30,
    formats: tuple[str, ...] = ("int8", "int4_g64"),
    measured: int | None = None,
    fingerprint: str = FINGERPRINT,
) -> SensitivityProfile:
    """A sensitivity profile with the first `measured` measurements of every layer in every format (None is all)."""
    model = catalogue(blocks, fingerprint)
    chance = random.Random(0)
    everything = [_measurement(layer, name, chance) for layer in model.quantizable for name in formats]
    return SensitivityProfile(
        id=f"sample-{blocks}-{fingerprint[:4]}-{measured}",
        catalogue=model,
        calibration=CalibrationSpec(text="python-docs", samples=8, seq_len=256, text_sha256="cd" * 32),
        method="exact",
        dtype="bf16",
        baseline=Baseline(nll=math.log(18.4), nll_stderr=0.031, tokens=2040, noise_floor_kl=6e-6),
        measurements=tuple(everything[:measured]),
    )


def estimated_profile(blocks: int = 4, sequences: int = 16, warnings: tuple[str, ...] = ()) -> SensitivityProfile:
    """The same model's layers, estimated from drawn projections of `sequences` sequences, with a report on the text."""
    exact = profile(blocks)
    draws, predicted = 4, exact.calibration.seq_len - 1
    chance = np.random.default_rng(0)
    found = tuple(
        estimates.fisher_measurement(
            m.layer, m.format, chance.normal(0, math.sqrt(m.kl), (sequences, 1 + draws)), predicted
        )
        for m in exact.measurements
    )
    calibration = exact.calibration.model_copy(
        update={"samples": sequences, "draws": draws, "quality": quality(warnings)}
    )
    return exact.model_copy(
        update={
            "id": f"sample-fisher-{blocks}",
            "method": "fisher",
            "measurements": found,
            "calibration": calibration,
            "baseline": exact.baseline.model_copy(update={"tokens": sequences * predicted}),
        }
    )


def auto_profile(blocks: int = 4, exact: int = 11) -> SensitivityProfile:
    """The estimates, of which the first `exact` were measured."""
    estimated = estimated_profile(blocks)
    draws = estimated.calibration.draws
    measured = [
        estimates.with_projections(m.model_copy(update={"tokens": estimate.tokens}), estimate, draws)
        for m, estimate in zip(profile(blocks).measurements[:exact], estimated.measurements, strict=False)
    ]
    everything = (*measured, *estimated.measurements[exact:])
    return estimated.model_copy(update={"id": f"sample-auto-{blocks}", "method": "auto", "measurements": everything})


def around_profile(assignments: dict[str, str], blocks: int = 4) -> SensitivityProfile:
    """What giving back each layer of a plan was measured to win; every third wins less than nothing."""
    whole = profile(blocks)
    wanted = [m for m in whole.measurements if assignments.get(m.layer) == m.format]
    won = tuple(
        m.model_copy(update={"kl": -0.2 * m.kl if number % 3 == 2 else m.kl}) for number, m in enumerate(wanted)
    )
    return whole.model_copy(update={"id": f"sample-around-{blocks}", "around": assignments, "measurements": won})


def quality(warnings: tuple[str, ...] = ()) -> TextQuality:
    """What a sound text is like."""
    return TextQuality(
        tokens=4096,
        distinct_tokens=1203,
        vocabulary=49152,
        repetition=0.021,
        divergence=0.21,
        expected_divergence=0.18,
        perplexity=18.4,
        warnings=warnings,
    )


def evaluation(variant: str, delta_nll: float | None, weights_bytes: int, stderr: float = 0.004) -> Evaluation:
    """An evaluation of a variant whose loss is `delta_nll` above the original's."""
    nll = math.log(19.2) + (delta_nll or 0.0)
    return Evaluation(
        variant=variant,
        model=catalogue().model,
        text=TextSpec(text="python-docs", tokens=4096, seq_len=256, text_sha256="ef" * 32),
        nll=nll,
        nll_stderr=0.03,
        perplexity=math.exp(nll),
        perplexity_stderr=0.03 * math.exp(nll),
        delta_nll=delta_nll,
        delta_nll_stderr=None if delta_nll is None else stderr,
        kl_to_original=None if delta_nll is None else abs(delta_nll) * 1.1,
        kl_stderr=None if delta_nll is None else stderr / 2,
        same_top1=None if delta_nll is None else 0.92,
        weights_bytes=weights_bytes,
        ms_per_token=41.3 if variant in ("original", "plan") else None,
    )


def refined(plan: Plan, winner: str = "refined") -> Plan:
    """The plan as a refinement of two rounds leaves it; the second step gained on the gradients' text alone.

    Where `winner` is another contender, no step was better than it.
    """
    losses = {"scores alone": 0.26, "uniform int4_g64": 0.45, "role rule": 0.31}
    steps = [(0.5, 0.21, 0.25), (1.0, 0.17, 0.24)] if winner == "refined" else [(None, 0.29, 0.26)]
    if winner == "refined":
        losses["refined"] = steps[-1][2]
    else:
        losses[winner] = 0.2
    contenders = tuple(
        Contender(
            name=name,
            decided_bits=plan.memory.decided_bits,
            weights_bytes=plan.memory.model_weights_bytes,
            kl=loss,
            kl_stderr=0.05 * loss,
            delta_nll=0.8 * loss,
            delta_nll_stderr=0.1 * loss,
            expected_loss=1.02 * loss,
        )
        for name, loss in losses.items()
    )
    rounds = tuple(
        RefinementRound(
            tried=3,
            changed=0 if damping is None else 14,
            damping=damping,
            calibration_kl=own,
            kl=held_back,
            delta_nll=0.8 * held_back,
            expected_loss=1.02 * held_back,
        )
        for damping, own, held_back in steps
    )
    refinement = Refinement(
        winner=winner,
        contenders=contenders,
        rounds=rounds,
        calibration_kl_before=0.29,
        tokens=4080,
        held_back_tokens=8160,
        text="python-docs",
        seconds=412.0,
    )
    predicted = plan.predicted.model_copy(update={"measured": True})
    return plan.model_copy(update={"refinement": refinement, "predicted": predicted})


def _layers(blocks: int) -> list[Layer]:
    layers = [
        Layer(
            name="model.embed_tokens",
            parameter="model.embed_tokens.weight",
            role=Role.EMBEDDING,
            block=None,
            shape=(49152, 576),
            quantizable=True,
            tied_names=("lm_head",),
        )
    ]
    for block in range(blocks):
        path = f"model.layers.{block}"
        layers += [
            Layer(
                name=f"{path}.{module}",
                parameter=f"{path}.{module}.weight",
                role=role,
                block=block,
                shape=(rows, columns),
                quantizable=True,
                fused_with=f"{path}.self_attn:qkv" if role is Role.ATTENTION_QKV else None,
                fusion="qkv" if role is Role.ATTENTION_QKV else None,
            )
            for module, role, rows, columns in _MODULES
        ]
        layers.append(
            Layer(
                name=f"{path}.input_layernorm",
                parameter=f"{path}.input_layernorm.weight",
                role=Role.NORM,
                block=block,
                shape=(576,),
                quantizable=False,
            )
        )
    return layers


def _measurement(layer: Layer, name: str, chance: random.Random) -> Measurement:
    depth = 1.0 if layer.block is None else 3.0 if layer.block in (0, 29) else 1.0
    kl = _FORMAT_DAMAGE[name] * _ROLE_DAMAGE.get(layer.role, 1.0) * depth * chance.lognormvariate(0, 0.5)
    kl *= layer.parameters / 1_000_000 if layer.block is not None else 1.0
    by_sequence = tuple(kl * 0.6 + chance.gauss(0, 0.4 * kl) for _ in range(8))
    return Measurement(
        layer=layer.name,
        format=name,
        delta_nll=sum(by_sequence) / 8,
        delta_nll_stderr=0.2 * kl,
        kl=kl,
        kl_stderr=0.1 * kl,
        tokens=2040,
        delta_nll_by_sequence=by_sequence,
        seconds=0.4,
    )
