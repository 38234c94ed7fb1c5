"""Naive loop, exact sweep, Fisher and auto side by side on the demo model, and rivals on the same layers and text.

    python -m benchmarks.sensitivity [--text FILE] [--samples 16] [--folder build/sensitivity] [--every 16]
        [--peers PYTHON]

The weights are moved off the 4-bit lattice first (`off_lattice`). Everything lands in `--folder`, where a stopped run
goes on; `report.txt` there holds the tables. Seconds of the naive loop and the exact sweep are taken on every N-th
candidate, one after the other in turn, so that a machine whose speed drifts slows both alike, and scaled up to all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch
from scipy.stats import spearmanr

from advisor import models, pipeline
from advisor.knowledge import find_format
from advisor.profiler.exact import ExactSweep
from advisor.profiler.fisher import FisherPass
from advisor.profiler.run import ProfilingRun
from advisor.types import ProfileRequest, Progress, SensitivityProfile
from benchmarks.naive import naive_sweep
from benchmarks.off_lattice import write_off_lattice
from storage.engine import open_repository

PEERS = ("modelopt", "autoround")
WIDENED = 1.25 * 1.96  # 95 % bars, a quarter wider


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="python-docs")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--formats", default="int8,int4_g64,int3_g64,int2_g64")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--every", type=int, default=16, help="of the candidates, how many are timed")
    parser.add_argument("--folder", type=Path, default=Path("build/sensitivity"))
    parser.add_argument("--peers", default="", help="the Python of an environment with the peers (see peers.py)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)

    model = args.folder / "model"
    if not model.is_dir():
        write_off_lattice(model)
    request = ProfileRequest(
        model=str(model),
        text=args.text,
        samples=args.samples,
        seq_len=args.seq_len,
        formats=tuple(args.formats.split(",")),
        draws=args.draws,
    )
    report = Report(args.folder / "report.txt")
    report(f"{_processor()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    run = pipeline.prepare(request)
    report(
        f"{len(run.candidates)} candidates ({args.formats}) x {run.windows.numel()} tokens of {Path(args.text).name}"
    )
    np.save(args.folder / "windows.npy", run.windows.numpy())
    times = time_methods(run, request, args, report)
    exact = profiled(request, "exact", args.folder / "exact.sqlite")
    compare(exact, times.pop("fisher profile"), times.pop("auto profile"), report)
    if args.peers:
        compare_peers(exact, times, args, report)


class Report:
    """Prints, and keeps what it printed."""

    def __init__(self, path: Path):
        self.path = path
        path.write_text("")

    def __call__(self, line: str = "") -> None:
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


# --------------------------------------------------------------------------------------------- time


def time_methods(run: ProfilingRun, request: ProfileRequest, args: argparse.Namespace, report: Report) -> dict:
    """Seconds and memory of each method, in one process, one after the other or in turn."""
    timed = sorted(run.candidates, key=lambda c: -1 if c[0].block is None else c[0].block)[:: args.every]
    whole = len(run.candidates) / len(timed)
    rows = {}
    started = time.perf_counter()
    sweep = ExactSweep(run.reference)
    base = time.perf_counter() - started  # the unquantized model: both need it
    measuring, naive = sweep.measure(timed), naive_sweep(run.loaded.model, run.windows, timed)
    seconds, peaks, relative, absolute = {"naive": 0.0, "exact": 0.0}, {"naive": 0, "exact": 0}, 0.0, 0.0
    for _ in timed:
        with watched() as took:
            measurement = next(measuring)
        seconds["exact"] += took.seconds
        peaks["exact"] = max(peaks["exact"], took.bytes)
        with watched() as took:
            layer, fmt, _, kl = next(naive)
        seconds["naive"] += took.seconds
        peaks["naive"] = max(peaks["naive"], took.bytes)
        assert (measurement.layer, measurement.format) == (layer, fmt)
        absolute = max(absolute, abs(measurement.kl - kl))
        relative = max(relative, abs(measurement.kl - kl) / kl)
    del measuring, naive, sweep
    for name in seconds:
        rows[name] = seconds[name] * whole + base, peaks[name]
    # These load a model of their own, which is no memory of theirs.
    own = run.loaded.catalogue.parameters * run.loaded.model.dtype.itemsize
    fisher_profile, (took, peak) = once(request, "fisher", args.folder)
    rows["fisher"] = took, peak - own
    auto_profile, (took, peak) = once(request, "auto", args.folder)
    rows["auto"] = took, peak - own
    forward = run.reference.body_seconds + run.reference.head_seconds
    report(f"\n{'method':8}{'seconds':>10}{'forward passes':>16}{'extra memory':>15}{'naive / method':>16}")
    for name, (took, extra) in rows.items():
        ratio = rows["naive"][0] / took
        report(f"{name:8}{took:10.0f}{took / forward:16.0f}{extra / 2**20:11.0f} MiB{ratio:16.1f}")
    report(
        f"exact against naive on {len(timed)} candidates: KLs differ by at most {absolute:.1e} nats, {relative:.1e} of "
        "the KL"
    )
    memory_per_format(Path(request.model), request.formats, request.draws, report)
    times = {name: took for name, (took, _) in rows.items()}
    return {**times, "fisher profile": fisher_profile, "auto profile": auto_profile}


def once(request: ProfileRequest, method: str, folder: Path) -> tuple[SensitivityProfile, tuple[float, int]]:
    """A method from loading to the last score as the command line runs it, in a store of its own."""
    store = folder / f"{method}.sqlite"
    store.unlink(missing_ok=True)
    with watched() as took:
        profile = profiled(request, method, store)
    return profile, (took.seconds, took.bytes)


def profiled(request: ProfileRequest, method: str, path: Path) -> SensitivityProfile:
    store = open_repository(f"sqlite:///{path.resolve()}")
    return pipeline.profile_model(request.model_copy(update={"method": method}), store, _say_sometimes())


def memory_per_format(model: Path, formats: tuple[str, ...], draws: int, report: Report) -> None:
    """What one more format costs the Fisher pass at its peak, in units of the largest layer."""
    processes = multiprocessing.get_context("spawn")
    peaks = []
    for names in (formats[:1], formats):
        with processes.Pool(1) as pool:  # each in a process of its own: freed memory would hide the next peak
            peak, largest = pool.apply(fisher_peak, (str(model), names, draws))
        peaks.append(peak)
    extra = (peaks[1] - peaks[0]) / (len(formats) - 1)
    report(
        f"Fisher on 2 x 256 tokens: {peaks[0] / 2**20:.0f} MiB above the model with one format, "
        f"{peaks[1] / 2**20:.0f} MiB with {len(formats)}: {extra / largest:.2f} of the largest layer for each more"
    )


def fisher_peak(model: str, formats: tuple[str, ...], draws: int) -> tuple[int, int]:
    """Bytes by which a Fisher pass raises the process's peak above the loaded model, and those of the largest layer."""
    loaded = models.load(model, lambda progress: None)
    chosen = [(layer, find_format(name)) for layer in loaded.catalogue.quantizable for name in formats]
    windows = torch.randint(0, loaded.catalogue.vocabulary, (2, 256), generator=torch.Generator().manual_seed(0))
    with watched() as took:
        FisherPass(loaded.model, chosen, draws).run(windows, 0, lambda done, total: None)
    return took.bytes, max(layer.parameters for layer, _ in chosen) * loaded.model.dtype.itemsize


class Took:
    seconds = 0.0
    bytes = 0


@contextmanager
def watched() -> Iterator[Took]:
    """Seconds of the block, and how far resident memory rose above where it was."""
    process, took, over = psutil.Process(), Took(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not over.wait(0.01):
            took.bytes = max(took.bytes, process.memory_info().rss - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    started = time.perf_counter()
    try:
        yield took
    finally:
        took.seconds = time.perf_counter() - started
        over.set()
        thread.join()


# ---------------------------------------------------------------------------------------- agreement


def compare(exact: SensitivityProfile, fisher: SensitivityProfile, auto: SensitivityProfile, report: Report) -> None:
    """Rank agreement, size and coverage of the error bars, format by format."""
    true = {(m.layer, m.format): m for m in exact.measurements}
    measured = {(m.layer, m.format) for m in auto.measurements if m.method == "exact"}
    report(f"\nauto measured {len(measured)} of {len(true)} scores exactly; below are the estimated ones alone")
    report(
        f"\n{'':8}{'format':10}{'Spearman KL':>13}{'delta_nll':>11}{'median ratio':>14}{'inside bars':>13}"
        "   (bars: 95 %, widened by 25 %)"
    )
    for name, profile in (("fisher", fisher), ("auto", auto)):
        found = {(m.layer, m.format): m for m in profile.measurements}
        estimated = {key for key, m in found.items() if m.method == "fisher"}
        everything = []
        for fmt in profile.formats:
            keys = [key for key in true if key[1] == fmt and key in estimated]
            inside = [abs(found[k].kl - true[k].kl) <= WIDENED * found[k].kl_stderr + 1e-12 for k in keys]
            everything += inside
            report(
                f"{name:8}{fmt:10}{rank(true, found, keys, 'kl'):13.3f}{rank(true, found, keys, 'delta_nll'):11.3f}"
                f"{np.median([found[k].kl / true[k].kl for k in keys]):14.2f}{np.mean(inside):13.0%}"
            )
        report(f"{name:8}{'all':10}{'':38}{np.mean(everything):13.0%}")


def rank(true: dict, found: dict, keys: list, field: str) -> float:
    return spearmanr([getattr(true[k], field) for k in keys], [getattr(found[k], field) for k in keys]).statistic


def compare_peers(exact: SensitivityProfile, times: dict[str, float], args: argparse.Namespace, report: Report) -> None:
    """The peers' scores against the exact KL over the layers that they score, and their time beside ours."""
    true = {(m.layer, m.format): m.kl for m in exact.measurements}
    tokens = args.samples * args.seq_len
    report(f"\n{'':12}{'ms per token':>14}   Spearman with the exact KL, over the layers that the peer scores")
    rows = {}
    for peer in PEERS:
        out = args.folder / f"{peer}.json"
        command = [args.peers, "-m", "benchmarks.peers", peer, "--model", str(args.folder / "model")]
        command += ["--tokens", str(args.folder / "windows.npy"), "--formats", args.formats, "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        result = json.loads(out.read_text())
        rows[peer] = result["seconds"], {(s["layer"], s["format"]): s["score"] for s in result["scores"]}
    store = open_repository(f"sqlite:///{(args.folder / 'fisher.sqlite').resolve()}")
    fisher = store.profile(store.profiles()[0].id)
    rows["fisher"] = times["fisher"], {(m.layer, m.format): m.kl for m in fisher.measurements}
    scored = set(rows[PEERS[0]][1]) & set(rows[PEERS[1]][1])
    for name, (took, scores) in rows.items():
        agreement = []
        for fmt in args.formats.split(","):
            keys = [key for key in true if key[1] == fmt and key in scored]
            agreement.append(f"{fmt} {spearmanr([true[k] for k in keys], [scores[k] for k in keys]).statistic:.3f}")
        report(f"{name:12}{1000 * took / tokens:14.1f}   {'   '.join(agreement)}")


def _say_sometimes() -> Callable[[Progress], None]:
    said = [0.0]

    def say(now: Progress) -> None:
        if time.monotonic() - said[0] > 60:
            said[0] = time.monotonic()
            print(f"  {now.stage} {now.done}/{now.total}", flush=True)

    return say


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
