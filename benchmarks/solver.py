"""Seconds to solve large allocation problems exactly: `python -m benchmarks.solver`. Prints; asserts nothing.

Losses are random: log-normal per group, growing fourfold with each bit taken away, as quantization noise does.
"""

from __future__ import annotations

import random
import time

from advisor.knapsack import Candidate
from advisor.solver import solve_min_cost, solve_min_loss

_BITS = {4: (16.0, 8.03, 4.25, 3.3), 8: (16.0, 8.25, 6.5, 4.5, 4.25, 4.125, 3.3, 2.28)}
_WEIGHTS = (4096 * 4096, 4096 * 1024, 4096 * 14336)


def instance(groups: int, candidates: int, seed: int) -> list[list[Candidate]]:
    """`groups` layers of an 8B model's shapes, each with `candidates` formats from 16 bits down."""
    chance = random.Random(seed)
    return [_group(chance.choice(_WEIGHTS), _BITS[candidates], chance) for _ in range(groups)]


def _group(weights: int, widths: tuple[float, ...], chance: random.Random) -> list[Candidate]:
    scale = chance.lognormvariate(-6, 2)
    losses = [0.0] + [scale * 4.0 ** (4 - bits) * chance.lognormvariate(0, 0.2) for bits in widths[1:]]
    return [Candidate(str(b), loss, int(weights * b / 8)) for b, loss in zip(widths, losses, strict=True)]


def main() -> None:
    print(f"{'groups':>6} {'formats':>7} {'budget':>6} {'least loss s':>12} {'least bytes s':>13} {'gap':>8}")
    for groups, candidates in ((224, 4), (560, 8)):
        for seed, share in enumerate((0.02, 0.1, 0.25, 0.6)):
            problem = instance(groups, candidates, seed)
            least, most = (sum(pick(c.cost for c in group) for group in problem) for pick in (min, max))
            started = time.perf_counter()
            solution = solve_min_loss(problem, least + int(share * (most - least)))
            between = time.perf_counter()
            reverse = solve_min_cost(problem, solution.loss)
            ended = time.perf_counter()
            gap = max(solution.gap, reverse.gap)
            print(
                f"{groups:6} {candidates:7} {share:6.0%} {between - started:12.3f} {ended - between:13.3f} {gap:8.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
