"""What the command line prints: nouns in, text or JSON-ready summaries out."""

from __future__ import annotations

import io
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from advisor import knowledge
from advisor.types import (
    CalibrationSpec,
    Catalogue,
    Evaluation,
    Front,
    FrontPoint,
    Hardware,
    LatencyEstimate,
    Plan,
    Prediction,
    Preview,
    Progress,
    Refinement,
    SensitivityProfile,
)
from advisor.units import duration, size

_SHOWN_LAYERS = 10
_WIDTH = 110
_SHOWN_FAMILIES = ("bf16", "fp16", "fp8", "int8", "int4")
_QUIET_SECONDS = 60
_METHODS = {"exact": "measured exactly", "fisher": "estimated by Fisher", "auto": "estimated, and measured where open,"}


@contextmanager
def progress() -> Iterator[Callable[[Progress], None]]:
    """A progress bar on standard error; without a terminal, one line per stage."""
    if not sys.stderr.isatty():
        yield _line_per_stage()
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Bar(
        *columns, TimeRemainingColumn(), TextColumn("{task.fields[message]}"), console=Console(stderr=True)
    ) as bar:
        tasks: dict[str, Any] = {}

        def report(now: Progress) -> None:
            if now.stage not in tasks:
                tasks[now.stage] = bar.add_task(now.stage, message="")
            bar.update(tasks[now.stage], completed=now.done, total=now.total or None, message=now.message)

        yield report


def _line_per_stage() -> Callable[[Progress], None]:
    """A line for every new stage, and now and then one with the time left."""
    stage, started, said, first = "", 0.0, 0.0, 0

    def report(now: Progress) -> None:
        nonlocal stage, started, said, first
        clock = time.monotonic()
        if now.stage != stage:
            stage, started, said, first = now.stage, clock, clock, now.done
            print(f"{now.stage}: {now.message}".rstrip(": "), file=sys.stderr, flush=True)
        elif now.done > first and clock - said > _QUIET_SECONDS:
            said = clock
            left = (clock - started) / (now.done - first) * (now.total - now.done)
            print(f"{now.stage}: {now.done} of {now.total}, {left / 60:.0f} min left", file=sys.stderr, flush=True)

    return report


def profile_summary(profile: SensitivityProfile) -> dict[str, Any]:
    return {
        "id": profile.id,
        "model": profile.catalogue.model.model_dump(),
        "perplexity": profile.baseline.perplexity,
        "tokens": profile.baseline.tokens,
        "formats": profile.formats,
        "measured_layers": len(profile.measured_layers),
        "measurements": len(profile.measurements),
    }


def preview_text(preview: Preview) -> str:
    estimate, calibration = preview.estimate, preview.calibration
    most = "at most " if estimate.at_most else "about "
    return "\n".join(
        [
            f"text      {calibration.samples} sequences of {calibration.seq_len} tokens of {calibration.text}",
            *quality_lines(calibration),
            f"method    {preview.method}: {estimate.scores:,} scores from {most}{estimate.forward_passes:,.0f} forward "
            "passes over the text",
            f"time      {most}{duration(estimate.seconds)}",
            f"memory    about {size(estimate.memory_bytes)} at the peak, the model included",
        ]
    )


def quality_lines(calibration: CalibrationSpec) -> list[str]:
    """What the text is like, and what is wrong with it."""
    quality = calibration.quality
    if quality is None:
        return []
    said = f"quality   {quality.distinct_tokens:,} distinct tokens, {100 * quality.repetition:.0f} % repeated"
    if quality.perplexity is not None:
        said += f", perplexity {quality.perplexity:.1f}"
    if quality.divergence is not None:
        said += f", {quality.divergence:.2f} bits from the evaluation text (chance: {quality.expected_divergence:.2f})"
    return [said, *(f"warning   {warning}" for warning in quality.warnings)]


def profile_text(profile: SensitivityProfile, out: Path) -> str:
    base = profile.baseline
    lines = [
        f"{profile.catalogue.model.name}: perplexity {base.perplexity:.2f} on {base.tokens:,} tokens of "
        f"{profile.calibration.text}, {_METHODS[profile.method]} in {profile.dtype}",
        *quality_lines(profile.calibration),
    ]
    if profile.method == "auto":
        exact = len({m.layer for m in profile.measurements if m.method == "exact"})
        lines.append(f"{exact} layers were measured exactly, the rest estimated (marked ~)")
    of = f"{len(profile.measured_layers)} layers x {', '.join(profile.formats)}"
    if profile.around:
        lines.append(f"{of}, around a plan; giving these back wins the most:")
    else:
        lines.append(f"{of}; the most sensitive (± one standard error):")
    worst = sorted(profile.measurements, key=lambda m: -m.kl)[:_SHOWN_LAYERS]
    tilde = {"exact": "", "fisher": "~" if profile.method == "auto" else ""}
    rows = [
        (
            m.layer,
            m.format,
            f"{tilde[m.method]}{m.kl:.5f} ± {m.kl_stderr:.5f}",
            f"{m.delta_nll:+.5f}" if profile.around else f"{m.delta_ppl_pct:+.2f} %",
        )
        for m in worst
    ]
    heads = ("KL won, nats per token", "NLL won") if profile.around else ("KL, nats per token", "perplexity")
    return "\n".join([*lines, _table(("layer", "format", *heads), rows), f"wrote {out}"])


def plan_summary(plan: Plan) -> dict[str, Any]:
    return {
        "model": plan.model.model_dump(),
        "formats": dict(Counter(plan.assignments.values())),
        "predicted": plan.predicted.model_dump(),
        "memory": plan.memory.model_dump()
        | {
            "total_bytes": plan.memory.total_bytes,
            "all_gpus_bytes": plan.memory.all_gpus_bytes,
            "fits": plan.memory.fits,
        },
        "latency": plan.latency and plan.latency.model_dump() | {"tokens_per_s": plan.latency.tokens_per_s},
        "optimality_gap": plan.optimality_gap,
        "refinement": plan.refinement and plan.refinement.model_dump(),
    }


def plan_text(plan: Plan, catalogue: Catalogue, out: Path, simple: Mapping[str, Plan]) -> str:
    memory, predicted = plan.memory, plan.predicted
    roles: dict[str, Counter] = defaultdict(Counter)
    layers = catalogue.by_name()
    for name, fmt in plan.assignments.items():
        roles[layers[name].role.value][fmt] += 1
    formats = sorted(set(plan.assignments.values()), key=lambda name: knowledge.find_format(name).bits)
    rows = [(role, *(str(counts[fmt] or "") for fmt in formats)) for role, counts in roles.items()]
    parts = (
        ("weights", memory.weights_bytes),
        ("KV cache", memory.kv_cache_bytes),
        ("activations", memory.activation_bytes),
        ("overhead", memory.overhead_bytes),
    )
    device = plan.request.hardware if memory.gpus == 1 else f"{memory.gpus} x {plan.request.hardware}"
    held = f"the weights were {size(memory.original_weights_bytes)}"
    if memory.gpus > 1:
        held = f"on each of {memory.gpus} GPUs, weights {size(memory.model_weights_bytes)} in all; {held}"
    return "\n".join(
        [
            f"{plan.model.name} on {device} with {plan.request.engine}",
            _table(("role (layers)", *formats), rows),
            f"average bits    {memory.decided_bits:.3f} over {len(plan.assignments)} layers",
            f"perplexity      {predicted.perplexity:.2f} {_how(predicted)} ({predicted.perplexity_low:.2f} to "
            f"{predicted.perplexity_high:.2f}), {predicted.base_perplexity:.2f} unquantized",
            "memory          " + ", ".join(f"{name} {size(value)}" for name, value in parts),
            f"                {size(memory.total_bytes)} of {size(memory.limit_bytes)} usable; {held}",
            *([f"speed           {speed_text(plan.latency)}"] if plan.latency else []),
            *([refinement_text(plan.refinement)] if plan.refinement else []),
            *([_simple_text(plan, simple)] if simple else []),
            f"wrote {out}",
        ]
    )


def _how(predicted: Prediction) -> str:
    return "on text that took no part" if predicted.measured else "predicted"


def _simple_text(plan: Plan, simple: Mapping[str, Plan]) -> str:
    """The simple plans beside a plan, by what the scores predict of each."""
    rows = [_simple_row(name, other) for name, other in [("this plan", plan), *simple.items()]]
    return _table(("beside simple plans", "bits", "weights", "perplexity"), rows)


def _simple_row(name: str, plan: Plan) -> tuple[str, ...]:
    predicted = plan.predicted
    interval = f"{predicted.perplexity_low:.2f} to {predicted.perplexity_high:.2f}"
    weights = size(plan.memory.model_weights_bytes)
    return name, f"{plan.memory.decided_bits:.3f}", weights, f"{predicted.perplexity:.2f} ({interval})"


def refinement_text(found: Refinement) -> str:
    """Who won on the held-back text and by how much, and what each round did to both parts of the text."""
    best = min(found.contenders, key=lambda one: one.expected_loss)
    rows = [
        (
            one.name,
            f"{one.decided_bits:.3f}",
            f"{one.kl:.4f} ± {one.kl_stderr:.4f}",
            f"{one.delta_nll:.4f} ± {one.delta_nll_stderr:.4f}",
            "" if one is best else f"+{one.expected_loss - best.expected_loss:.4f}",
        )
        for one in sorted(found.contenders, key=lambda one: one.expected_loss)
    ]
    kl = next(one.kl for one in found.contenders if one.name == "scores alone")
    last = found.rounds[-1] if found.rounds else None
    fitted = (
        f"KL went from {found.calibration_kl_before:.4f} to {last.calibration_kl:.4f} where gradients were taken, from "
        f"{kl:.4f} to {last.kl:.4f} where they were not"
        if last
        else "no round was run"
    )
    return "\n".join(
        [
            f"refined         {len(found.rounds)} rounds in {duration(found.seconds)}: {found.winner} wins; {fitted}",
            _table((f"on {found.held_back_tokens:,} held-back tokens", "bits", "KL", "nats", "behind by"), rows),
        ]
    )


_BASES = {
    "roofline": "estimated, launches of kernels not counted",
    "bandwidth": "estimated from bandwidth alone",
    "measured": "corrected by a measured run",
}


def speed_text(latency: LatencyEstimate) -> str:
    """Tokens per second and the time to the first one, or what is not stated to tell them."""
    missing = f"{' and '.join(latency.missing)} {'is' if len(latency.missing) == 1 else 'are'} not stated"
    if latency.tokens_per_s is None:
        return f"unknown: {missing}"
    said = f"{latency.tokens_per_s:,.0f} tokens per second"
    if latency.sequences > 1:
        said += f", {latency.tokens_per_s_per_sequence:,.1f} for each of {latency.sequences} sequences"
    said += f", bound by {latency.decode_bound}"
    if latency.prefill_s is not None:
        said += f"; {latency.prefill_s:.3g} s to read a whole context"
    return f"{said} ({_BASES[latency.basis]}{f': {missing}' if latency.missing else ''})"


def front_text(front: Front, points: int, out: Path | None) -> str:
    """About `points` evenly spaced points of the front, and the simple plans between them, smallest first."""
    rows = [("", point) for point in _spaced(front.points, points)] + list(front.simple.items())
    rows.sort(key=lambda row: row[1].bytes)
    smallest, largest = front.points[0], front.points[-1]
    lines = [
        f"{front.model.name} on {front.request.hardware} with {front.request.engine}",
        f"{len(front.points)} plans, each of the least loss at its size; some of them, and simple ones:",
        _table(("bits", "size", "perplexity", "tokens/s", ""), [_front_row(name, point) for name, point in rows]),
        f"sizes are of the whole deployment; from {size(smallest.bytes)} to {size(largest.bytes)}",
    ]
    if front.limit_bytes is not None:
        missing = smallest.bytes - front.limit_bytes
        fits = f"the smallest plan misses it by {size(missing)}" if missing > 0 else "plans up to that fit"
        lines.append(f"{size(front.limit_bytes)} may be used: {fits}")
    gap = max(point.gap for point in front.points)
    if gap:
        lines.append(f"not all were proven in time: losses are within {100 * gap:.2g} % of the least at their size")
    if out:
        lines.append(f"wrote {out}")
    return "\n".join(lines)


def _spaced(points: Sequence[FrontPoint], count: int) -> list[FrontPoint]:
    """The ends, and of those between them the nearest to evenly spaced sizes."""
    first, last = points[0].bytes, points[-1].bytes
    wanted = [first + (last - first) * number / (count + 1) for number in range(count + 2)]
    near = [min(points, key=lambda point: abs(point.bytes - size)) for size in wanted]
    return list(dict.fromkeys(near))


def _front_row(name: str, point: FrontPoint) -> tuple[str, ...]:
    predicted = point.predicted
    return (
        f"{point.decided_bits:.3f}",
        size(point.bytes),
        f"{predicted.perplexity:.2f} ({predicted.perplexity_low:.2f} to {predicted.perplexity_high:.2f})",
        f"{point.tokens_per_s:,.0f}" if point.tokens_per_s is not None else "",
        name,
    )


def apply_text(result: dict[str, Any]) -> str:
    lines = [f"wrote {result['folder']} ({result['to']})"]
    for reason, count in Counter(result["simulated"].values()).items():
        lines.append(f"{count} layers are simulated: {reason}")
    return "\n".join(lines)


def evaluation_text(found: Evaluation) -> str:
    parts = [
        f"{found.variant}: perplexity {found.perplexity:.3f} ± {found.perplexity_stderr:.3f} on {found.text.tokens:,} "
        f"held-out tokens of {found.text.text}"
    ]
    if found.weights_bytes is not None:
        parts.append(f"weights {size(found.weights_bytes)}")
    if found.ms_per_token is not None:
        parts.append(f"{found.ms_per_token:.1f} ms per token on {found.device}")
    return "\n".join([", ".join(parts), *found.notes])


def table_text(which: str, rows: Sequence[Any]) -> str:
    headers, cells = _TABLES[which]
    return _table(headers, [cells(row) for row in rows])


def _status(row: Hardware, family: str) -> str:
    """How the device computes with a family, and the guide's word where it is another one."""
    support, said = row.support[family], row.guide.get(family)
    return support.replace("_", " ") + (f" (guide: {said})" if said and said != support else "")


_TABLES = {
    "hardware": (
        ("device", "memory", "bandwidth", *_SHOWN_FAMILIES),
        lambda row: (
            row.name,
            f"{row.memory_gb.value:.4g} GB",
            f"{row.bandwidth_gb_s.value:g} GB/s" if row.bandwidth_gb_s else "not stated",
            *(_status(row, family) for family in _SHOWN_FAMILIES),
        ),
    ),
    "engines": (
        ("engine", "versions", "formats", "fuses"),
        lambda row: (row.name, row.versions, " ".join(row.formats), " ".join(row.fuses) or "nothing"),
    ),
    "formats": (
        ("format", "bits", "group", "scale bits", "zero point bits", "what it is"),
        lambda row: (
            row.name,
            str(row.bits),
            str(row.group_size or ("channel" if row.quantized else "")),
            str(row.scale_bits or ""),
            str(row.zero_point_bits or ""),
            row.description,
        ),
    ),
    "roles": (
        ("role", "sensitivity", "least bits", "advice"),
        lambda row: (row.role.value, row.sensitivity, str(row.minimum_bits), row.advice),
    ),
    "scenarios": (
        ("scenario", "what it is", "formats", "what the guide says"),
        lambda row: (row.name, row.description, " ".join(row.formats) or "all", row.guide),
    ),
}


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = Table(*headers, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console(file=io.StringIO(), width=_WIDTH)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().strip("\n").splitlines())
