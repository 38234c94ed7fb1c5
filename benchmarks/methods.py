"""Quantization methods side by side: the same formats rounded to nearest, and by GPTQ, AWQ and SmoothQuant; recovered.

    OMP_NUM_THREADS=1 python -m benchmarks.methods [--text FILE] [--folder build/sensitivity] [--samples 16]
        [--cases int4_g64:rtn,int4_g64:gptq,int4_g64:awq,int8:rtn,int8:gptq,int8_w8a8:rtn,int8_w8a8:smoothquant]
        [--tokens 12288] [--steps 24]

On the demo model moved off its 4-bit lattice (`off_lattice`), every layer of every block in one format. Methods are
calibrated on one part of the text, these measurements take another. A case such as `int4_g64:rtn+recovery` then
distills the original into scales and norms for so many steps. Results are appended to `methods.txt` there.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from advisor import models
from advisor.activations import rounded_inputs
from advisor.apply import quantized_layers, simulated
from advisor.evaluate import Scores, score
from advisor.export.calibrated import calibrate, put
from advisor.methods import NEAREST
from advisor.models import LoadedModel
from advisor.recover import BATCH_TOKENS, recover
from advisor.texts import token_windows
from benchmarks.off_lattice import write_off_lattice

CASES = "int4_g64:rtn,int4_g64:gptq,int4_g64:awq,int8:rtn,int8:gptq,int8_w8a8:rtn,int8_w8a8:smoothquant"
SEQUENCE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="python-docs")
    parser.add_argument("--folder", type=Path, default=Path("build/sensitivity"))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--tokens", type=int, default=12288)
    parser.add_argument("--steps", type=int, default=24)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with (args.folder / "methods.txt").open("a") as file:

        def report(line: str) -> None:
            print(line, flush=True)
            print(line, file=file, flush=True)

        _run(args, report)


def _run(args: argparse.Namespace, report: Callable[[str], None]) -> None:
    folder = args.folder / "model"
    if not folder.is_dir():
        write_off_lattice(folder)
    loaded = models.load(str(folder), lambda progress: None, dtype="own")
    held_back = args.samples // 2
    count = max(args.samples, args.steps * BATCH_TOKENS // SEQUENCE)
    windows = token_windows(args.text, loaded.tokenizer, "calibration", count + held_back, SEQUENCE)
    evaluation = token_windows(args.text, loaded.tokenizer, "evaluation", args.tokens // SEQUENCE, SEQUENCE)
    base = score(_computing(loaded), evaluation, keep=True)
    report(
        f"{len(base.nll):,} held-out tokens, perplexity {math.exp(base.nll.mean().item()):.2f} in BF16; calibrated on "
        f"{args.samples} x {SEQUENCE} tokens\n"
    )
    report(f"{'format':12}{'method':14}{'perplexity':>11}{'change':>9}{'KL':>9}{'processor s':>13}")
    for case in args.cases.split(","):
        fmt, method = case.split(":")
        found, seconds = _measured(loaded, fmt, method, windows, held_back, args, evaluation, base)
        nll = found.nll.mean().item()
        change = math.expm1(nll - base.nll.mean().item())
        report(
            f"{fmt:12}{method:14}{math.exp(nll):11.2f}{change:+9.2%}{found.kl.mean().item():9.4f}"
            + (f"{seconds:13.0f}" if method != NEAREST else "")
        )


def _measured(
    loaded: LoadedModel,
    fmt: str,
    case: str,
    windows: torch.Tensor,
    held_back: int,
    args: argparse.Namespace,
    evaluation: torch.Tensor,
    base: Scores,
) -> tuple[Scores, float]:
    """Scores of the quantized model, and the processor's seconds that the method and a recovery took."""
    assignments = {layer.name: fmt for layer in loaded.catalogue.quantizable if layer.block is not None}
    method, _, recovery = case.partition("+")
    model, started = _computing(loaded), time.process_time()
    codes, weights = {}, {}
    seen, unseen, rest = windows.split([args.samples, held_back, len(windows) - args.samples - held_back])
    if method != NEAREST:
        found = calibrate(loaded, assignments, method, seen, unseen)
        codes, weights = found.codes, found.weights
    if recovery:
        found = recover(loaded, assignments, codes, weights, torch.cat([seen, rest]), unseen, args.steps)
        codes, weights = found.codes, found.weights
    seconds = time.process_time() - started
    if not codes:
        with simulated(model, loaded.catalogue, assignments):
            return score(model, evaluation, base), seconds
    put(model, codes, weights)
    with rounded_inputs(model, quantized_layers(loaded.catalogue, assignments)):
        return score(model, evaluation, base), seconds


def _computing(loaded: LoadedModel) -> torch.nn.Module:
    """A copy in the dtype that is computed in."""
    return copy.deepcopy(loaded.model).to(models.pick_dtype("auto", loaded.device, loaded.model.dtype))


if __name__ == "__main__":
    main()
