"""Does the first-order term help a plan? Plans by KL, by KL plus that term, and by the term shrunk, on held-out text.

    python -m benchmarks.first_order [--text FILE] [--folder build/sensitivity] [--bits 4.625,5.25] [--tokens 16384]

Takes the Fisher profile that `benchmarks.sensitivity` left in its folder. Plans choose INT8 or INT4 (group 64) for all
layers but the embedding, and are compared at equal size, as simulated weights, on text that no score saw.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from advisor import estimates, models
from advisor.apply import simulated
from advisor.planner.candidates import prepare
from advisor.planner.case import Case
from advisor.planner.measures import Candidate
from advisor.planner.solver import solve_min_loss
from advisor.profiler.reference import Reference, batches_of
from advisor.texts import token_windows
from advisor.types import Budget, LayerGroup, Measurement, PlanRequest
from storage.engine import open_repository

_FORMATS = ("int8", "int4_g64")
LOSSES: dict[str, Callable[[Measurement], float]] = {
    "KL": lambda m: m.kl,
    "KL + first order": lambda m: m.delta_nll,
    "KL + shrunk first order": estimates.expected_loss,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="python-docs")
    parser.add_argument("--folder", type=Path, default=Path("build/sensitivity"))
    parser.add_argument("--bits", default="4.625,5.25")
    parser.add_argument("--tokens", type=int, default=16384)
    args = parser.parse_args()

    store = open_repository(f"sqlite:///{(args.folder / 'fisher.sqlite').resolve()}")
    profile = store.profile(store.profiles()[0].id)
    loaded = models.load(str(args.folder / "model"), lambda progress: None)
    windows = token_windows(args.text, loaded.tokenizer, "evaluation", args.tokens // 256, 256)
    batches = batches_of(windows, loaded.model, loaded.catalogue)

    def nll(assignments: dict[str, str]) -> float:
        with simulated(loaded.model, loaded.catalogue, assignments):
            return Reference(loaded.model, loaded.catalogue, batches, keep=False).nll.mean().item()

    base = nll({})
    print(f"{windows.numel()} held-out tokens, perplexity {math.exp(base):.2f}")
    print(f"{'bits':>6}  {'plan by':26}{'perplexity':>11}{'nll above':>11}{'differs from KL':>17}")
    for bits in map(float, args.bits.split(",")):
        request = PlanRequest(
            hardware="rtx-4090", engine="transformers", budget=Budget(weight_bits=bits), formats=_FORMATS
        )
        case = prepare(profile, request)
        by_kl: dict[str, str] = {}
        for name, loss in LOSSES.items():
            plan = solved(case, loss)
            by_kl = by_kl or plan
            found = nll(plan)
            changed = sum(plan[layer] != by_kl[layer] for layer in plan)
            print(f"{bits:6.3f}  {name:26}{math.exp(found):11.2f}{found - base:11.4f}{changed:10} layers")
        uniform = nll({layer: "int4_g64" for layer in by_kl})
        print(f"{'':6}  {'(all INT4)':26}{math.exp(uniform):11.2f}{uniform - base:11.4f}")


def solved(case: Case, loss: Callable[[Measurement], float]) -> dict[str, str]:
    """The plan of least summed loss within the budget, layer -> format."""
    groups = [
        [Candidate(o.format.name, group_loss(case, group, o.format.name, loss), o.cost, o.delta_nll) for o in options]
        for group, options in zip(case.groups, case.options, strict=True)
    ]
    choice = solve_min_loss(groups, case.limit_bytes - case.fixed_bytes).choice
    return {
        layer.name: options[index].format.name
        for group, options, index in zip(case.groups, case.options, choice, strict=True)
        for layer in group.layers
    }


def group_loss(case: Case, group: LayerGroup, fmt: str, loss: Callable[[Measurement], float]) -> float:
    if fmt == case.original.name:
        return 0.0
    return sum(max(loss(case.scores[layer.name, fmt]), 0.0) for layer in group.layers)


if __name__ == "__main__":
    main()
