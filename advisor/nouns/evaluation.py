"""The nouns of confirming: the held-out text, downstream tasks, speed, and what was measured of each."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from pydantic import Field

from advisor.nouns.base import Noun, now
from advisor.nouns.expectation import LatencyEstimate
from advisor.nouns.model import ModelRef


class EvaluationOptions(Noun):
    """What an evaluation measures beyond perplexity on windows side by side.

    Attributes:
        stride: score only the last `stride` tokens of windows that overlap, so that each token is read with context;
            None scores windows side by side, every token once.
        tasks: names of lm-eval's downstream tasks and groups, or of those in `tasks_from`.
        limit: documents of each task; None takes them all.
        tasks_from: a folder of task files of one's own.
        speed: whether reading and writing are timed.
    """

    stride: int | None = Field(default=None, gt=0)
    tasks: tuple[str, ...] = ()
    limit: int | None = Field(default=None, gt=0)
    tasks_from: str | None = None
    speed: bool = False


class TextSpec(Noun):
    """Text that an evaluation read: held out from the calibration text of the plan that it judges.

    Attributes:
        tokens: that were scored.
        stride: of overlapping windows, of which only the last `stride` tokens were scored; None where none overlap.
    """

    text: str
    tokens: int
    seq_len: int
    text_sha256: str = ""
    stride: int | None = None

    @property
    def one_sequence(self) -> bool:
        """Whether all tokens lie in one stretch, no longer than a sequence: errors over sequences have no spread then.

        Without such a spread they are those of independent tokens, which is too little.
        """
        return self.tokens < 2 * self.seq_len - (2 if self.stride is None else 1)


class TaskScore(Noun):
    """What lm-eval measured of one downstream task by one metric.

    Attributes:
        task: name of the task or group.
        metric: as lm-eval names it, with the filter of answers where there is one: `acc`, `exact_match,strict-match`.
        stderr: standard error over the documents; None where lm-eval knows none.
        samples: documents that were answered; limit: the most that were asked for, of each task.
        shots: solved examples before each question.
        change, change_stderr: of the value against the original model, paired document by document; None where that
            was not at hand.
    """

    task: str
    metric: str
    value: float
    stderr: float | None = None
    samples: int
    limit: int | None = None
    shots: int | None = None
    higher_is_better: bool = True
    change: float | None = None
    change_stderr: float | None = None


class Spread(Noun):
    """Several runs of one measurement: the middle one, the smallest and the largest."""

    median: float
    low: float
    high: float


class Speed(Noun):
    """How fast one sequence is read and written by transformers on `device`, after a warm-up.

    Attributes:
        prefill_tokens_per_s: tokens of the prompt over the time until the first new token.
        decode_tokens_per_s: tokens that follow, one at a time, over their time.
        first_token_s: seconds until the first new token.
        peak_memory_bytes: the most that was in use during the runs, by the `process` or on the `accelerator`.
    """

    prompt_tokens: int
    new_tokens: int
    runs: int
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread
    first_token_s: Spread
    peak_memory_bytes: int
    memory_of: Literal["process", "accelerator"]
    device: str


class Evaluation(Noun):
    """What was measured on held-out text, for one variant of a model.

    Standard errors are over sequences of text: tokens of one sequence depend on each other.

    Attributes:
        variant: `original`, `plan`, `uniform int4_g64`, ... or a folder's name.
        kl_to_original, kl_p99, kl_max, same_top1: against the unquantized model, where it was at hand: the mean over
            tokens of KL in nats, its 99th percentile and its largest, and the share of tokens whose likeliest
            successor is the same.
        weights_bytes: bytes of all weights as the files hold them; of what is not packed, in the layout of the plan's
            engine.
        file_bytes: bytes of all tensors in the files that were written for this variant, None where none were.
        ms_per_token: median time of one decoding step at batch 1 on `device`; None where the weights that would run
            on it are only simulated.
        latency: the speed of the plan at its own load, corrected by `ms_per_token`; None where the plan is for another
            device or engine than this ran on.
        original: the unquantized model's own evaluation, where it was evaluated beside this one.
    """

    variant: str
    model: ModelRef
    text: TextSpec
    nll: float
    nll_stderr: float
    perplexity: float
    perplexity_stderr: float
    delta_nll: float | None = None
    delta_nll_stderr: float | None = None
    kl_to_original: float | None = None
    kl_stderr: float | None = None
    kl_p99: float | None = None
    kl_max: float | None = None
    same_top1: float | None = None
    tasks: tuple[TaskScore, ...] = ()
    weights_bytes: int | None = None
    file_bytes: int | None = None
    ms_per_token: float | None = None
    speed: Speed | None = None
    latency: LatencyEstimate | None = None
    device: str = "cpu"
    seconds: float = 0.0
    created: datetime = Field(default_factory=now)
    notes: tuple[str, ...] = ()
    original: Evaluation | None = None


def latest_evaluations(evaluations: Iterable[Evaluation]) -> dict[str, Evaluation]:
    """The newest evaluation of each variant that read the same text as the newest of all: original, plan, others."""
    newest: dict[str, Evaluation] = {}
    for found in reversed(list(evaluations)):
        if not newest or found.text == next(iter(newest.values())).text:
            newest.setdefault(found.variant, found)
    ranks = {"original": 0, "plan": 1}
    return {variant: newest[variant] for variant in sorted(newest, key=lambda name: (ranks.get(name, 2), name))}
