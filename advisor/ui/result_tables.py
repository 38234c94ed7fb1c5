"""Tables of what was measured, for pages and reports alike: perplexity, downstream tasks, speed. Pure, no streamlit."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from advisor.types import Evaluation, Spread, TaskScore
from advisor.ui import verdict, wording


def perplexities(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """A row for each variant: perplexity, distance from the original, size and time of a token."""
    rows = [
        {
            "Variant": wording.labelled(evaluation.variant),
            "Perplexity": wording.with_error(evaluation.perplexity, evaluation.perplexity_stderr),
            "Change": wording.percent(verdict.change_pct(evaluation)) if evaluation.delta_nll is not None else "–",
            "KL to the original": _optional(evaluation.kl_to_original, evaluation.kl_stderr),
            "KL, 99 % below": _optional(evaluation.kl_p99),
            "KL, largest": _optional(evaluation.kl_max),
            "Same top-1": f"{100 * evaluation.same_top1:.1f} %" if evaluation.same_top1 is not None else "–",
            "Size": wording.size(evaluation.weights_bytes) if evaluation.weights_bytes else "not known",
            "On disk": wording.size(evaluation.file_bytes) if evaluation.file_bytes else "–",
            "ms per token": wording.number(evaluation.ms_per_token) if evaluation.ms_per_token else "not timed",
            "Device": evaluation.device,
        }
        for evaluation in evaluations.values()
    ]
    return pd.DataFrame(rows)


def tasks(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """A row for each task and metric, a column for each variant that answered it."""
    rows: dict[tuple[str, str, int], dict[str, str]] = {}
    for variant, evaluation in evaluations.items():
        for score in evaluation.tasks:
            rows.setdefault((score.task, score.metric, score.samples), {})[wording.labelled(variant)] = _score(score)
    variants = [wording.labelled(variant) for variant, evaluation in evaluations.items() if evaluation.tasks]
    return pd.DataFrame(
        [
            {"Task": task, "Metric": metric, "Documents": samples}
            | {variant: found.get(variant, "–") for variant in variants}
            for (task, metric, samples), found in rows.items()
        ]
    )


def speeds(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """A row for each variant that was timed."""
    rows = [
        {
            "Variant": wording.labelled(variant),
            "Prefill, tokens/s": _spread(speed.prefill_tokens_per_s),
            "Decoding, tokens/s": _spread(speed.decode_tokens_per_s),
            "First token, s": _spread(speed.first_token_s),
            "Prompt, tokens": speed.prompt_tokens,
            f"Memory of the {speed.memory_of}": wording.size(speed.peak_memory_bytes),
            "Device": speed.device,
        }
        for variant, evaluation in evaluations.items()
        if (speed := evaluation.speed) is not None
    ]
    return pd.DataFrame(rows)


def _score(score: TaskScore) -> str:
    said = _optional(score.value, score.stderr)
    if score.change is None:
        return said
    error = f" ± {wording.number(score.change_stderr, 2)}" if score.change_stderr is not None else ""
    return f"{said} ({wording.signed(score.change)}{error})"


def _spread(spread: Spread) -> str:
    return f"{wording.number(spread.median)} ({wording.number(spread.low)} to {wording.number(spread.high)})"


def _optional(value: float | None, error: float | None = None) -> str:
    return "–" if value is None else wording.with_error(value, error or 0.0)
