"""Seconds to solve large planning problems: `python -m benchmarks.solver`. Prints; asserts nothing.

Losses are random: log-normal per layer, growing fourfold with each bit taken away, as quantization noise does. Seconds
are of one processor, which is what the clock shows where nothing else runs.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from advisor.errors import InfeasibleBudget
from advisor.estimates import fisher_measurement
from advisor.knowledge import find_format
from advisor.planner.front import POINTS, pareto_front
from advisor.planner.measures import Candidate
from advisor.planner.planning import make_plan
from advisor.planner.solver import solve_min_cost, solve_min_loss, solve_min_time
from advisor.quiet import silenced_stdout
from advisor.types import (
    AttentionGeometry,
    Baseline,
    Budget,
    CalibrationSpec,
    Catalogue,
    Layer,
    ModelRef,
    PlanRequest,
    Role,
    SensitivityProfile,
)

_BITS = {4: (16.0, 8.03, 4.25, 3.3), 8: (16.0, 8.25, 6.5, 4.5, 4.25, 4.125, 3.3, 2.28)}
_WEIGHTS = (4096 * 4096, 4096 * 1024, 4096 * 14336)
_SEEDS = range(5)
_SHARES = (0.02, 0.1, 0.25, 0.6)
# Seconds on the clock that the bare questions may take until they are proven, however busy the machine.
_PATIENCE = 60.0

_HIDDEN, _KV, _MLP = 8192, 1024, 28672
_MODULES = (
    ("self_attn.q_proj", Role.ATTENTION_QKV, (_HIDDEN, _HIDDEN)),
    ("self_attn.k_proj", Role.ATTENTION_QKV, (_KV, _HIDDEN)),
    ("self_attn.v_proj", Role.ATTENTION_QKV, (_KV, _HIDDEN)),
    ("self_attn.o_proj", Role.ATTENTION_OUTPUT, (_HIDDEN, _HIDDEN)),
    ("mlp.gate_proj", Role.MLP_GATE_UP, (_MLP, _HIDDEN)),
    ("mlp.up_proj", Role.MLP_GATE_UP, (_MLP, _HIDDEN)),
    ("mlp.down_proj", Role.MLP_DOWN, (_HIDDEN, _MLP)),
)
# With the model's own dtype, eight formats that MLX stores; it fuses nothing, so every layer is decided alone.
_FORMATS = ("int8", "int8_g64", "int4_g32", "int4_g64", "int4_g128", "int3_g64", "int2_g64")


def instance(groups: int, candidates: int, seed: int) -> list[list[Candidate]]:
    """`groups` layers of an 8B model's shapes, each with `candidates` formats from 16 bits down.

    Side losses differ from losses by chance, and time follows the bytes but for what is bound by compute.
    """
    chance = random.Random(seed)
    return [_group(chance.choice(_WEIGHTS), _BITS[candidates], chance) for _ in range(groups)]


def _group(weights: int, widths: tuple[float, ...], chance: random.Random) -> list[Candidate]:
    scale = chance.lognormvariate(-6, 2)
    losses = [0.0] + [scale * 4.0 ** (4 - bits) * chance.lognormvariate(0, 0.2) for bits in widths[1:]]
    return [
        Candidate(
            str(b), loss, int(weights * b / 8), loss * chance.uniform(0.7, 1.3), int(weights * max(b, 3.0)) // 4096
        )
        for b, loss in zip(widths, losses, strict=True)
    ]


def large_profile(blocks: int, seed: int, formats: tuple[str, ...] = _FORMATS) -> SensitivityProfile:
    """A Llama of 70B's shapes with Fisher scores of 16 sequences and 8 draws."""
    rng = np.random.default_rng(seed)
    layers, measurements = [], []
    for block in range(blocks):
        for module, role, shape in _MODULES:
            name = f"model.layers.{block}.{module}"
            layers.append(
                Layer(name=name, parameter=f"{name}.weight", role=role, block=block, shape=shape, quantizable=True)
            )
            common, scale = rng.standard_normal((16, 9)), rng.lognormal(-6, 1) * 560 / (blocks * len(_MODULES))
            for fmt in formats:
                kl = scale * 4.0 ** (4 - find_format(fmt).bits) * rng.lognormal(0, 0.2)
                projections = math.sqrt(kl / 2) * (common + rng.standard_normal(common.shape))
                measurements.append(fisher_measurement(name, fmt, projections, 255))
    return SensitivityProfile(
        id="benchmark",
        catalogue=Catalogue(
            model=ModelRef(source="benchmark", kind="folder", name="large"),
            architecture="LlamaForCausalLM",
            dtype="bf16",
            hidden_size=_HIDDEN,
            intermediate_size=_MLP,
            vocabulary=32000,
            max_context=8192,
            attention=AttentionGeometry(blocks=blocks, attention_heads=64, kv_heads=8, head_dim=128),
            layers=tuple(layers),
        ),
        calibration=CalibrationSpec(text="random", samples=16, seq_len=256, draws=8),
        method="fisher",
        dtype="bf16",
        baseline=Baseline(nll=2.0, nll_stderr=0.02, tokens=16 * 255),
        measurements=tuple(measurements),
    )


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """(processor seconds, result); the result is None where nothing keeps the limits."""
    started = time.process_time()
    try:
        with silenced_stdout():
            found = call(*arguments)
    except InfeasibleBudget:
        found = None
    return time.process_time() - started, found


def solver_rows(groups: int, candidates: int) -> Iterable[tuple[str, list[float], list[float]]]:
    """(question, seconds, gaps) over seeds and budgets."""
    seconds: dict[str, list[float]] = {}
    gaps: dict[str, list[float]] = {}
    for seed in _SEEDS:
        problem = instance(groups, candidates, seed)
        least, most = (sum(pick(c.cost for c in group) for group in problem) for pick in (min, max))
        for share in _SHARES:
            limit = least + int(share * (most - least))
            spent, first = timed(solve_min_loss, problem, limit, _PATIENCE)
            allowed = 1.05 * first.loss
            questions = {
                "least loss": (spent, first),
                "least bytes": timed(solve_min_cost, problem, allowed, allowed, _PATIENCE),
                "least time": timed(solve_min_time, problem, limit, allowed, allowed, _PATIENCE),
            }
            for name, (taken, solution) in questions.items():
                seconds.setdefault(name, []).append(taken)
                gaps.setdefault(name, []).append(solution.gap if solution else math.nan)
    return [(name, seconds[name], gaps[name]) for name in seconds]


def main() -> None:
    print(
        f"{'groups':>6} {'formats':>7}  {'question':<12} {'median s':>8} {'worst s':>8} {'proven':>7} {'worst gap':>9}"
    )
    for groups, candidates in ((224, 4), (560, 8)):
        for name, seconds, gaps in solver_rows(groups, candidates):
            proven = sum(gap == 0 for gap in gaps)
            print(
                f"{groups:6} {candidates:7}  {name:<12} {statistics.median(seconds):8.2f} {max(seconds):8.2f} "
                f"{proven:3}/{len(gaps):<3} {max(gaps):9.1e}",
                flush=True,
            )
    print("\nWhole plans and fronts, from scores to reasons and predictions:")
    for blocks in (32, 80):
        _whole(blocks)


def _whole(blocks: int) -> None:
    rows: dict[str, list[tuple[float, float | None]]] = {}
    for seed in _SEEDS:
        profile = large_profile(blocks, seed)
        limits = {
            "least loss": {"weight_bits": 4.5},
            "least bytes": {"max_ppl_increase": 0.2},
            "least time": {"weight_bits": 8.0, "max_ppl_increase": 0.2},
        }
        for name, limit in limits.items():
            request = PlanRequest(hardware="m3-ultra-512gb", engine="mlx", budget=Budget(**limit, sequences=4))
            spent, plan = timed(make_plan, profile, request)
            rows.setdefault(f"plan of {name}", []).append((spent, plan.optimality_gap))
        spent, front = timed(partial(pareto_front, time_limit=POINTS * _PATIENCE), profile, request)
        rows.setdefault("front", []).append((spent, max(point.gap for point in front.points)))
    for name, found in rows.items():
        seconds, gaps = zip(*found, strict=True)
        stated = [gap for gap in gaps if gap is not None]
        worst_gap = f"worst gap {max(stated):.1e}" if stated else "no gap known"
        print(
            f"{7 * blocks:6} {len(_FORMATS) + 1:7}  {name:<24} median {statistics.median(seconds):6.2f} s, "
            f"worst {max(seconds):6.2f} s, {worst_gap}",
            flush=True,
        )


if __name__ == "__main__":
    main()
