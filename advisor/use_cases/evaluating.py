"""The use case that evaluates what a person names: a model, a folder that `apply` wrote, or a quantized checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor import models, texts
from advisor.errors import ModelError, TaskError
from advisor.types import Evaluation, EvaluationOptions, ModelRef, TextSpec
from advisor.use_cases.exports import check_evaluated, load_for_evaluation
from advisor.use_cases.profiling import check_context
from advisor.use_cases.reporting import Report, silent

if TYPE_CHECKING:
    from advisor.evaluate import Measuring, Scores
    from advisor.tasks import Tasks


def evaluate_source(
    source: str,
    text: str = "python-docs",
    tokens: int = 4096,
    seq_len: int = 256,
    report: Report = silent,
    against: str | None = None,
    options: EvaluationOptions = EvaluationOptions(),  # noqa: B008 - it is frozen
) -> Evaluation:
    """Perplexity of any model, folder or checkpoint on text held out from calibration, and what `options` add.

    Args:
        against: the unquantized model, evaluated first on the same tokens: for KL and paired changes.

    Raises:
        ModelError: a model cannot be loaded, or is no variant of the one it is held against. TextError, TaskError.
    """
    texts.check_readable(text, "evaluation")
    texts.check_stride(text, options.stride, seq_len)
    check_evaluated(source)
    if against is not None:
        models.resolve(against)
    wanted = _Wanted(text, tokens, seq_len, report, options, load_tasks(options))
    if against is None:
        return wanted.of(source)[0]
    original, reference = wanted.of(against, "original")
    evaluation, _ = wanted.of(source, reference=reference, tokens_read=original.text)
    return evaluation.model_copy(update={"original": original})


@dataclass(frozen=True)
class _Wanted:
    """What is measured of every model that a request names."""

    text: str
    tokens: int
    seq_len: int
    report: Report
    options: EvaluationOptions
    tasks: Tasks

    def of(
        self,
        source: str,
        variant: str = "",
        reference: Scores | None = None,
        tokens_read: TextSpec | None = None,
    ) -> tuple[Evaluation, Scores]:
        """Load and evaluate; `tokens_read` is what the reference read, and the model is gone when this returns."""
        found = load_for_evaluation(source, self.report)
        check_context(self.seq_len, found.max_context, found.ref.name)
        measuring = measuring_of(
            found.ref, self.text, found.tokenizer, self.tokens, self.seq_len, self.report, self.options, self.tasks
        )
        if reference is not None:
            vocabulary = found.model.config.get_text_config().vocab_size
            if measuring.text_spec != tokens_read or reference.log_probs[0].shape[-1] != vocabulary:
                raise ModelError(
                    f"{found.ref.name} has another vocabulary than the model it is held against: give the one that it "
                    "was made of."
                )
        evaluation, scores = measuring.of(
            variant or found.ref.name,
            found.model,
            reference,
            keep=variant == "original",
            notes=(*found.notes, *measuring.notes),
            **found.sizes,
        )
        return found.with_speed(evaluation), scores


def load_tasks(options: EvaluationOptions) -> Tasks:
    """The downstream tasks that are asked for, with their documents; raises TaskError."""
    from advisor import tasks

    if not options.tasks and options.tasks_from:
        known = ", ".join(tasks.names_in(Path(options.tasks_from).expanduser()))
        raise TaskError(f"A folder of tasks says nothing without names of --tasks: it has {known}.")
    if not options.tasks and options.limit:
        raise TaskError("A limit of documents says nothing without --tasks: name at least one.")
    if options.tasks:
        models.quiet_libraries()  # lm-eval imports transformers' model classes
    return tasks.load_tasks(options.tasks, options.limit, options.tasks_from)


def measuring_of(
    ref: ModelRef,
    text: str,
    tokenizer: Any,
    tokens: int,
    seq_len: int,
    report: Report,
    options: EvaluationOptions,
    tasks: Tasks,
) -> Measuring:
    """What to measure, with the held-out text as the model's tokenizer has it; raises TextError."""
    from advisor.evaluate import Measuring

    step = options.stride or seq_len
    count = 1 + max(0, math.ceil((tokens - seq_len) / step))
    windows = texts.token_windows(text, tokenizer, "evaluation", count, seq_len, stride=options.stride)
    return Measuring(
        ref, text, tokenizer, windows, report, options.stride, asked=tokens, tasks=tasks, timing=options.speed
    )
