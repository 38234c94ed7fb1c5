"""A small Llama-shaped catalogue and sensitivity profile written by hand, for tests of rules and plans."""

from __future__ import annotations

import math
import random

import numpy as np
from hypothesis import settings

from advisor import estimates
from advisor.planner.planning import make_plan
from advisor.types import (
    AttentionGeometry,
    Baseline,
    Budget,
    CalibrationSpec,
    Catalogue,
    Layer,
    Measurement,
    ModelRef,
    Plan,
    PlanRequest,
    Role,
    SensitivityProfile,
)

HIDDEN, MLP, VOCABULARY = 576, 1536, 1024
BLOCK = "model.layers.0"
FORMATS = ("int8", "int4_g64", "int3_g64")
# Planning takes a while: properties of it are tried on fewer examples.
FEW = settings(max_examples=25, deadline=None)
_DAMAGE = {
    "int8": 1e-5,
    "int8_w8a8": 3e-5,
    "int8_g64": 8e-6,
    "int4_g32": 1.5e-3,
    "int4_g64": 2e-3,
    "int4_g128": 3e-3,
    "nf4_g64": 1.8e-3,
    "int3_g64": 1.2e-2,
    "int2_g64": 8e-2,
    "int4_g64_asym": 1.9e-3,
    "fp8_e4m3": 4e-5,
    "fp8_w8a8": 5e-5,
}
_MODULES = (
    ("self_attn.q_proj", Role.ATTENTION_QKV, (HIDDEN, HIDDEN), "qkv"),
    ("self_attn.k_proj", Role.ATTENTION_QKV, (192, HIDDEN), "qkv"),
    ("self_attn.v_proj", Role.ATTENTION_QKV, (192, HIDDEN), "qkv"),
    ("self_attn.o_proj", Role.ATTENTION_OUTPUT, (HIDDEN, HIDDEN), None),
    ("mlp.gate_proj", Role.MLP_GATE_UP, (MLP, HIDDEN), "gate_up"),
    ("mlp.up_proj", Role.MLP_GATE_UP, (MLP, HIDDEN), "gate_up"),
    ("mlp.down_proj", Role.MLP_DOWN, (HIDDEN, MLP), None),
)


def layer(name: str, role: Role, shape: tuple[int, ...], **fields) -> Layer:
    """One weight; norms and routers are not quantizable, everything else is."""
    quantizable = role not in (Role.NORM, Role.ROUTER)
    known = {"parameter": f"{name}.weight", "block": None, "quantizable": quantizable} | fields
    return Layer(name=name, role=role, shape=shape, **known)


def catalogue(blocks: int = 2) -> Catalogue:
    layers = [layer("model.embed_tokens", Role.EMBEDDING, (VOCABULARY, HIDDEN), tied_names=("lm_head",))]
    for block in range(blocks):
        path = f"model.layers.{block}"
        layers.append(layer(f"{path}.input_layernorm", Role.NORM, (HIDDEN,), block=block))
        for module, role, shape, fusion in _MODULES:
            owner = f"{path}.{module.split('.')[0]}"
            fused = {"fused_with": f"{owner}:{fusion}", "fusion": fusion} if fusion else {}
            layers.append(layer(f"{path}.{module}", role, shape, block=block, **fused))
    return Catalogue(
        model=ModelRef(source="tiny", kind="folder", name="tiny-llama", fingerprint="ab" * 32),
        architecture="LlamaForCausalLM",
        dtype="bf16",
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        vocabulary=VOCABULARY,
        max_context=8192,
        attention=AttentionGeometry(blocks=blocks, attention_heads=9, kv_heads=3, head_dim=64),
        layers=tuple(layers),
    )


def profile(
    blocks: int = 2, formats: tuple[str, ...] = FORMATS, seed: int = 0, measured: str = "", sequences: int = 4
) -> SensitivityProfile:
    """Seeded random losses for the layers whose name contains `measured`, in every format that fits their groups."""
    model, chance = catalogue(blocks), random.Random(seed)
    measurements = [
        _measurement(one, fmt, chance, sequences)
        for one in model.quantizable
        for fmt in formats
        if measured in one.name and not (fmt == "int4_g128" and one.matrix_shape[1] % 128)
    ]
    return SensitivityProfile(
        id="profile-1",
        catalogue=model,
        calibration=CalibrationSpec(text="python-docs", samples=sequences, seq_len=64),
        method="exact",
        dtype="bf16",
        baseline=Baseline(nll=math.log(20), nll_stderr=0.02, tokens=63 * sequences),
        measurements=tuple(measurements),
    )


def _measurement(one: Layer, fmt: str, chance: random.Random, sequences: int) -> Measurement:
    kl = _DAMAGE[fmt] * one.parameters / 1e6 * chance.lognormvariate(0, 1)
    by_sequence = tuple(kl * chance.gauss(0.8, 0.5) for _ in range(sequences))
    return Measurement(
        layer=one.name,
        format=fmt,
        delta_nll=sum(by_sequence) / sequences,
        delta_nll_stderr=0.2 * kl,
        kl=kl,
        kl_stderr=0.1 * kl,
        tokens=63 * sequences,
        delta_nll_by_sequence=by_sequence,
    )


def fisher_profile(
    blocks: int = 2,
    formats: tuple[str, ...] = FORMATS,
    seed: int = 0,
    sequences: int = 16,
    draws: int = 8,
    texts: int | None = None,
) -> SensitivityProfile:
    """Like `profile`, with the projections of Fisher estimates: half of a layer's slopes is common to its formats.

    `texts` draws other sequences for layers of the same damage.
    """
    model, rng, measurements = catalogue(blocks), np.random.default_rng(seed), []
    text = rng if texts is None else np.random.default_rng(texts)
    for one in model.quantizable:
        common = text.standard_normal((sequences, 1 + draws))
        for fmt in formats:
            kl = _DAMAGE[fmt] * one.parameters / 1e6 * rng.lognormal(0, 1)
            own = text.standard_normal(common.shape)
            projections = math.sqrt(kl / 2) * (common + own)
            measurements.append(estimates.fisher_measurement(one.name, fmt, projections, 63))
    calibration = CalibrationSpec(text="python-docs", samples=sequences, seq_len=64, draws=draws)
    changes = {"measurements": tuple(measurements), "method": "fisher", "calibration": calibration}
    return profile(blocks, formats).model_copy(update=changes)


def request(engine: str = "transformers", hardware: str = "h100-sxm-80gb", **fields) -> PlanRequest:
    """A request; without a budget it asks for 5 bits on average."""
    limits = {name: fields.pop(name) for name in tuple(fields) if name in Budget.model_fields}
    budget = Budget(**limits) if limits else Budget(weight_bits=5.0)
    return PlanRequest(hardware=hardware, engine=engine, budget=budget, **fields)


WHOLE = profile()


def plan_for(sensitivity: SensitivityProfile = WHOLE, **fields) -> Plan:
    """The plan of a request with these fields."""
    return make_plan(sensitivity, request(**fields))
