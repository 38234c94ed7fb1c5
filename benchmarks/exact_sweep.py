"""Times the exact sweep against the naive loop, candidate by candidate in turn, over the whole of SmolLM2.

    python -m benchmarks.exact_sweep [--samples 2] [--seq-len 256] [--formats int4_g64] [--layers REGEX]

Both measure the same layers, on the same tokens, in the same process: first one, then the other, so that a machine
whose speed drifts slows both alike.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import torch

from advisor import models
from advisor.profiler.exact import ExactSweep
from advisor.profiler.run import choose_candidates
from advisor.texts import token_windows
from advisor.types import ProfileRequest
from benchmarks.naive import naive_sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--formats", default="int4_g64")
    parser.add_argument("--layers", default="")
    parser.add_argument("--dtype", default="fp32")
    args = parser.parse_args()

    loaded = models.load("smollm2", lambda progress: None, dtype=args.dtype)
    request = ProfileRequest(model="smollm2", formats=tuple(args.formats.split(",")), layers=args.layers)
    windows = token_windows("python-docs", loaded.tokenizer, "calibration", args.samples, args.seq_len)
    candidates = choose_candidates(loaded.catalogue, request)
    candidates.sort(key=lambda c: -1 if c[0].block is None else c[0].block)

    exact_seconds, sweep = timed(lambda: ExactSweep(loaded.model, loaded.catalogue, windows).measure(candidates))
    naive_seconds, naive = timed(lambda: naive_sweep(loaded.model, windows, candidates))
    worst = 0.0
    for _ in candidates:
        seconds, measurement = timed(lambda: next(sweep))
        exact_seconds += seconds
        seconds, (layer, fmt, _, kl) = timed(lambda: next(naive))
        naive_seconds += seconds
        assert (measurement.layer, measurement.format) == (layer, fmt)
        worst = max(worst, abs(measurement.kl - kl) / max(kl, 1e-6))

    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {args.dtype}"
    )
    print(f"{len(candidates)} candidates, {windows.numel()} tokens")
    print(f"naive loop   {naive_seconds:8.1f} s   {naive_seconds / len(candidates):.3f} s per candidate")
    print(f"exact sweep  {exact_seconds:8.1f} s   {exact_seconds / len(candidates):.3f} s per candidate")
    print(f"naive / exact = {naive_seconds / exact_seconds:.2f}; largest relative difference of a KL {worst:.1e}")


def timed(work):
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
