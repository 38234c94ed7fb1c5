"""What the command line prints of an evaluation: a line of what was measured, and tables of what stands beside it."""

from __future__ import annotations

from collections.abc import Mapping

from advisor.cli.output import speed_text, table
from advisor.marks import mark_within
from advisor.types import Evaluation, Prediction, Speed, Spread, TaskScore, relative_change
from advisor.units import number, size

_Z95 = 1.96


def evaluation_text(found: Evaluation) -> str:
    """Everything that was measured, beside the original where that was."""
    variants = [one for one in (found, found.original) if one is not None]
    lines = [_headline(found)]
    if found.original is not None:
        lines += [*_against(found), _beside(variants)]
    if found.tasks:
        lines.append(_tasks(found))
    if any(one.speed for one in variants):
        lines.append(_speeds(variants))
    if found.latency:
        lines.append(f"as planned for: {speed_text(found.latency)}")
    return "\n".join([*lines, *found.notes])


def applied_text(measured: Mapping[str, Evaluation], predicted: Prediction | None, above: str = "") -> str:
    """An applied plan beside its prediction, the original and the uniform plans; the prediction where it is known.

    Args:
        above: what is printed already; notes that stand there are not told again.
    """
    plan = measured["plan"]
    expected = [] if predicted is None else [f"predicted {_change_of(predicted.delta_nll, predicted.delta_nll_stderr)}"]
    notes = [note for note in plan.notes if note not in above]
    return "\n".join([*_against(plan), *expected, _beside(list(measured.values())), _on(plan), *notes])


def _headline(found: Evaluation) -> str:
    parts = [f"{found.variant}: perplexity {found.perplexity:.3f} ± {found.perplexity_stderr:.3f} {_on(found)}"]
    if found.weights_bytes is not None:
        parts.append(f"weights {size(found.weights_bytes)}")
    if found.ms_per_token is not None and found.speed is None:  # which says it of longer runs
        parts.append(f"{found.ms_per_token:.1f} ms per token on {found.device}")
    return ", ".join(parts)


def _on(found: Evaluation) -> str:
    overlapping = f", windows of {found.text.seq_len} every {found.text.stride}" if found.text.stride else ""
    return f"on {found.text.tokens:,} held-out tokens of {found.text.text}{overlapping}"


def _against(found: Evaluation) -> list[str]:
    """The paired change of perplexity with its 95 % interval, and what it means."""
    change, error = found.delta_nll or 0.0, found.delta_nll_stderr or 0.0
    middle, highest = (100 * relative_change(value) for value in (change, change + _Z95 * error))
    return [f"perplexity changes by {_change_of(change, error)}: {mark_within(middle, highest).text}"]


def _change_of(delta_nll: float, stderr: float) -> str:
    """Of perplexity, in percent, with its 95 % interval."""
    middle, low, high = (100 * relative_change(delta_nll + sign * _Z95 * stderr) for sign in (0, -1, 1))
    return f"{middle:+.2f} % ({low:+.2f} to {high:+.2f} %)"


def _beside(variants: list[Evaluation]) -> str:
    heads = (
        "beside the original",
        "perplexity",
        "KL, nats per token",
        "99 % below",
        "largest",
        "same top-1",
        "weights",
    )
    return table(heads, [(one.variant, *_numbers(one)) for one in variants])


def _numbers(one: Evaluation) -> tuple[str, ...]:
    shown = f"{one.perplexity:.3f} ± {one.perplexity_stderr:.3f}"
    weights = size(one.weights_bytes) if one.weights_bytes else "not known"
    if one.kl_to_original is None:
        return shown, "", "", "", "", weights
    return (
        shown,
        f"{one.kl_to_original:.4f} ± {one.kl_stderr or 0.0:.4f}",
        f"{one.kl_p99:.3f}" if one.kl_p99 is not None else "",
        f"{one.kl_max:.3f}" if one.kl_max is not None else "",
        f"{100 * one.same_top1:.1f} %" if one.same_top1 is not None else "",
        weights,
    )


def _tasks(found: Evaluation) -> str:
    before = {(score.task, score.metric): score for score in found.original.tasks} if found.original else {}
    rows = []
    for score in found.tasks:
        row = [score.task, score.metric, _with_error(score)]
        if found.original is not None:
            original = before.get((score.task, score.metric))
            row += [_with_error(original) if original else "", _change(score)]
        rows.append([*row, f"{score.samples:,}"])
    heads = ("original", "change, paired") if found.original is not None else ()
    return table(("task", "metric", found.variant, *heads, "documents"), rows)


def _change(score: TaskScore) -> str:
    if score.change is None:
        return ""
    return f"{score.change:+.3f}" + (f" ± {score.change_stderr:.3f}" if score.change_stderr is not None else "")


def _with_error(score: TaskScore) -> str:
    return f"{score.value:.3f}" + (f" ± {score.stderr:.3f}" if score.stderr is not None else "")


def _speeds(variants: list[Evaluation]) -> str:
    timed = [(one.variant, one.speed) for one in variants if one.speed is not None]
    first = timed[0][1]
    heads = (
        f"median of {first.runs} runs",
        f"prefill of {first.prompt_tokens}, tokens/s",
        "decoding, tokens/s",
        "first token, s",
        f"memory of the {first.memory_of}",
    )
    return table(heads, [(variant, *_speed(speed)) for variant, speed in timed])


def _speed(speed: Speed) -> tuple[str, ...]:
    spreads = (speed.prefill_tokens_per_s, speed.decode_tokens_per_s, speed.first_token_s)
    return *(_spread(spread) for spread in spreads), size(speed.peak_memory_bytes)


def _spread(spread: Spread) -> str:
    return f"{number(spread.median)} ({number(spread.low)} to {number(spread.high)})"
