"""What the command line prints: nouns in, text or JSON-ready summaries out."""

from __future__ import annotations

import io
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from advisor import preferences
from advisor.methods import NEAREST, recovery_said
from advisor.types import (
    BlindTest,
    CalibrationSpec,
    GuideTopic,
    Hardware,
    LatencyEstimate,
    Preview,
    Progress,
    Recovery,
    SensitivityProfile,
    Verification,
)
from advisor.units import duration, number, plural, size

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
    sequences = plural(calibration.samples, "sequence")
    return "\n".join(
        [
            f"text      {sequences} of {calibration.seq_len} tokens of {calibration.text}",
            *quality_lines(calibration),
            f"method    {preview.method}: {plural(estimate.scores, 'score')} from {most}"
            f"{estimate.forward_passes:,.0f} forward passes over the text",
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
        lines.append(f"measured exactly: {plural(exact, 'layer')}; the rest are estimated (marked ~)")
    of = f"{plural(len(profile.measured_layers), 'layer')} x {', '.join(profile.formats)}"
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
    return "\n".join([*lines, table(("layer", "format", *heads), rows), f"wrote {out}"])


_SIZES = {"size": "size_note", "warning": "over_limit"}


def apply_text(result: dict[str, Any]) -> str:
    method = result["method"]
    lines = [
        f"wrote {result['folder']} ({result['to']}, {size(result['weights_bytes'])} of weights)",
        *(f"{head:10}{result[name]}" for head, name in _SIZES.items() if name in result),
        f"method    {method['method']}: {method['reason']}",
    ]
    if "kl" in method:
        worse = method["kl"] > method["nearest_kl"] and method["method"] != NEAREST
        lines.append(
            f"          KL {method['kl']:.4f}, rounded to nearest {method['nearest_kl']:.4f}, on {method['tokens']:,} "
            f"tokens held back from calibration{': nearest loses less here, --method rtn takes it' if worse else ''}"
        )
    if "left_to_run" in result:
        lines.append(f"left      in that folder: {result['left_to_run']}, with llama.cpp's llama-quantize on the PATH")
    if "recovered" in result:
        lines.append(f"recovery  {recovery_said(Recovery.model_validate(result['recovered']))}")
    for reason, count in Counter(result["simulated"].values()).items():
        lines.append(f"{plural(count, 'layer')} {reason}")
    if "changed" in result:
        lines += _changed_text(result["changed"], result["predicted"])
    return "\n".join(lines)


def _changed_text(changed: dict[str, list[str | None]], predicted: dict[str, Any] | None) -> list[str]:
    """What the nearest plan has otherwise, most common change first, and its prediction."""
    counts = Counter(f"{was or 'the dtype'} -> {fmt}" for was, fmt in changed.values())
    said = ", ".join(f"{plural(count, 'layer')} {change}" for change, count in counts.most_common())
    lines = [f"nearest plan: {said}" if changed else "nearest plan: nothing had to change"]
    if changed and predicted is None:
        return [
            *lines,
            "its prediction is not known: no profile stored here has measured these layers in these formats",
        ]
    return [*lines, f"predicted perplexity {predicted['perplexity']:.2f}"] if changed else lines


def verification_text(folder: Path, found: Verification) -> str:
    far, tolerated = 100 * found.largest_row_difference, 100 * found.row_tolerance
    within = f"values within {number(far, 2)} % of a row's norm ({tolerated:g} % is tolerated)"
    return (
        f"{folder} is as planned: formats, group sizes and bytes of {found.layers:,} weights, norms among them "
        f"({size(found.bytes)}); {within if far else 'the very values that were planned'}; KL to the simulated plan "
        f"{number(found.kl, 2)} nats per token over {found.tokens:,} tokens ({number(found.kl_tolerance, 1)} is "
        "tolerated)"
    )


def answers_summary(test: BlindTest) -> dict[str, Any]:
    return {
        "test": test.id,
        "plan": test.request.plan_id,
        "pairs": len(test.request.prompts),
        "identical": len(preferences.identical(test)),
        "page": f"/blind?plan={test.request.plan_id}&test={test.id}",
    }


def answers_text(found: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"{plural(found['pairs'], 'pair')} of answers, {found['identical']} of them identical",
            f"vote on the page of `streamlit run app.py`, under {found['page']}",
            f"then: python -m advisor preferences {found['test']}",
        ]
    )


_BASES = {
    "roofline": "estimated, launches of kernels not counted",
    "bandwidth": "estimated from bandwidth alone",
    "measured": "estimated, corrected by a measured run on {device}",
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
    basis = _BASES[latency.basis].format(device=latency.device)
    notes = [basis, *([missing] if latency.missing else []), *(f"{one} not counted" for one in latency.uncounted)]
    return f"{said} ({'; '.join(notes)})"


def table_text(which: str, rows: Sequence[Any]) -> str:
    if which == "guide":
        return "\n\n".join(_topic_text(topic) for topic in rows)
    headers, cells = _TABLES[which]
    return table(headers, [cells(row) for row in rows])


def _topic_text(topic: GuideTopic) -> str:
    """A topic's statements, each with its source."""
    lines = [f"{topic.label}: {topic.question}"]
    for section in topic.sections:
        lines += ["", f"  {section.title}"]
        for one in section.statements:
            title = one.title and (one.title if one.title.endswith("?") else f"{one.title}:")
            said = f"{title} {one.says} [{one.source}]".strip()
            lines += textwrap.wrap(
                said, _WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False
            )
    return "\n".join(lines)


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
    "targets": (
        ("target", "engines", "what it is"),
        lambda row: (row.name, " ".join(row.engines) or "any", row.help),
    ),
    "scenarios": (
        ("scenario", "what it is", "formats", "what the guide says"),
        lambda row: (row.name, row.description, " ".join(row.formats) or "all", row.guide),
    ),
    "methods": (
        ("method", "what it does", "when to use it", "comes with", "for"),
        lambda row: (row.name, row.does, row.use_when, row.chosen_by, " ".join(row.targets) or "every export"),
    ),
}


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = Table(*headers, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console(file=io.StringIO(), width=_WIDTH)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().strip("\n").splitlines())
