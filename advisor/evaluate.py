"""Confirms what a plan predicted: perplexity and KL on held-out text, downstream tasks, speed, and stored bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from advisor.marks import errors_said
from advisor.scoring import (
    REFERENCE_CACHE_BYTES,
    Head,
    final_hidden,
    kl_of,
    log_probs,
    mean_and_clustered_stderr,
    nll_of,
    rows_and_targets,
)
from advisor.speed import measure_speed, ms_per_token
from advisor.tasks import Answers, Tasks, score_tasks
from advisor.texts import check_vocabulary, text_sha256
from advisor.types import Evaluation, ModelRef, Progress, TextSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Scores:
    """One model on the evaluation text, token by token; fp32 on the CPU.

    Attributes:
        nll: `(tokens,)` negative log-likelihoods in nats.
        clusters: `(tokens,)` the number of the stretch of text that each token belongs to, one sequence long.
        log_probs: per batch `(rows, vocabulary)`, for the first batches that fit the cache; only of a reference.
        kl, same_top1: `(tokens covered by the reference,)`, or None without a reference.
        answers: what downstream tasks were answered, document by document.
    """

    nll: torch.Tensor
    clusters: torch.Tensor
    log_probs: tuple[torch.Tensor, ...] = ()
    kl: torch.Tensor | None = None
    same_top1: torch.Tensor | None = None
    answers: Answers = field(default_factory=dict)

    def summary(self, reference: Scores | None = None) -> dict[str, float | None]:
        """The fields of an `Evaluation` that follow from the scores; differences are paired with `reference`."""
        nll, stderr = mean_and_clustered_stderr(self.nll, self.clusters)
        found = {"nll": nll, "nll_stderr": stderr, "perplexity": math.exp(nll)}
        found["perplexity_stderr"] = found["perplexity"] * stderr  # first order: d exp(x) = exp(x) dx
        if reference is not None:
            change = mean_and_clustered_stderr(self.nll - reference.nll, self.clusters)
            found["delta_nll"], found["delta_nll_stderr"] = change
        if self.kl is not None:
            of_kl = mean_and_clustered_stderr(self.kl, self.clusters[: len(self.kl)])
            found["kl_to_original"], found["kl_stderr"] = of_kl
            found["kl_p99"], found["kl_max"] = float(np.quantile(self.kl, 0.99)), self.kl.max().item()
            found["same_top1"] = self.same_top1.double().mean().item()
        return found


@torch.no_grad()
def score(
    model: PreTrainedModel,
    windows: torch.Tensor,
    reference: Scores | None = None,
    keep: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
    stride: int | None = None,
) -> Scores:
    """Score `(sequences, length)` token windows.

    Args:
        reference: the unquantized model's scores, for KL and top-1 agreement.
        keep: keep log-probabilities, as many as fit 2 GiB, so that the result can be a reference.
        advance: called after every batch with (batches done, batches in all).
        stride: each window begins so many tokens after the one before it; see `scored`.
    """
    head = Head(model)
    step = max(1, _BATCH_TOKENS // windows.shape[1])
    batches, chosen = windows.split(step), scored(windows, stride).split(step)
    room = REFERENCE_CACHE_BYTES // (4 * head.vocabulary) if keep else 0
    nll, kept, kl, same = [], [], [], []
    for index, ids in enumerate(batches):
        rows, targets = rows_and_targets(final_hidden(model, ids), ids)
        if stride is not None:
            mask = chosen[index].flatten().to(rows.device)
            rows, targets = rows[mask], targets[mask]
        known = reference.log_probs[index] if reference and index < len(reference.log_probs) else None
        room -= len(rows)
        parts = []
        for part in head.slices(len(rows)):
            log_p = log_probs(head, rows[part])
            nll.append(nll_of(log_p, targets[part]))
            if known is not None:
                kl.append(kl_of(known[part], log_p))
                same.append(known[part].argmax(-1) == log_p.argmax(-1))
            if room >= 0:
                parts.append(log_p)
        if parts:
            kept.append(torch.cat(parts))
        advance(index + 1, len(batches))
    return Scores(
        nll=torch.cat(nll).cpu(),
        clusters=_clusters(windows, stride),
        log_probs=tuple(kept),
        kl=torch.cat(kl).cpu() if kl else None,
        same_top1=torch.cat(same).cpu() if same else None,
    )


def scored(windows: torch.Tensor, stride: int | None) -> torch.Tensor:
    """`(sequences, length - 1)`, which predictions count: all, or so that each token of overlapping windows does once.

    Then it is the last `stride` of each window, and of the first one all, as transformers' guide to the perplexity of
    fixed-length models has it (huggingface.co/docs/transformers/perplexity).
    """
    chosen = torch.ones(len(windows), windows.shape[1] - 1, dtype=torch.bool)
    if stride is not None:
        chosen[1:, :-stride] = False
    return chosen


def _clusters(windows: torch.Tensor, stride: int | None) -> torch.Tensor:
    """`(tokens scored,)`: the sequence of each token; overlapping windows that begin within one length are one."""
    starts = torch.arange(len(windows)) * (stride or windows.shape[1])
    return (starts // windows.shape[1])[:, None].expand(-1, windows.shape[1] - 1)[scored(windows, stride)]


def tensor_bytes(folder: Path) -> int:
    """Bytes of all tensors in a folder's safetensors files, headers aside."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            # A safetensors file is an 8-byte little-endian length, a JSON header of that length, and the tensors.
            header = int.from_bytes(file.read(8), "little")
        total += path.stat().st_size - 8 - header
    return total


@dataclass(frozen=True)
class Measuring:
    """What all variants of one comparison share.

    Attributes:
        ref: where they come from.
        windows: `(sequences, length)` held-out tokens of `text`; with a `stride` they overlap.
        asked: tokens that were asked for, 0 where nobody said.
        tasks: what each answers beside. timing: whether those that can be timed are read and written with.
    """

    ref: ModelRef
    text: str
    tokenizer: PreTrainedTokenizerBase
    windows: torch.Tensor
    report: Callable[[Progress], None]
    stride: int | None = None
    asked: int = 0
    tasks: Tasks = field(default_factory=Tasks)
    timing: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of the text: that it is shorter than what was asked for, or too short to have an error."""
        spec, found = self.text_spec, []
        step, length = self.stride or spec.seq_len, spec.seq_len
        if length + (len(self.windows) - 1) * step < self.asked:
            found.append(
                f"{self.text} has only {spec.tokens:,} held-out tokens in sequences of {length}, and {self.asked:,} "
                "were asked for: take a longer text, of which a quarter is held out"
            )
        if spec.one_sequence:
            found.append(f"{errors_said(spec)}: ask for more tokens, or for shorter sequences")
        return tuple(found)

    @property
    def text_spec(self) -> TextSpec:
        return TextSpec(
            text=self.text,
            tokens=int(scored(self.windows, self.stride).sum()),
            seq_len=self.windows.shape[1],
            text_sha256=text_sha256(self.windows),
            stride=self.stride,
        )

    def covered_by(self, found: Evaluation) -> bool:
        """Whether a stored evaluation of a variant has all that is asked for here, speed aside where none was timed."""
        same = found.text == self.text_spec and self.tasks.answered_by(found.tasks)
        return same and (found.ms_per_token is None or found.speed is not None or not self.timing)

    def of(
        self,
        variant: str,
        model: PreTrainedModel,
        reference: Scores | None = None,
        *,
        keep: bool = False,
        timed: bool = True,
        weights_bytes: int | None = None,
        file_bytes: int | None = None,
        notes: tuple[str, ...] = (),
    ) -> tuple[Evaluation, Scores]:
        """Score one variant; its scores can be the others' reference when they are kept."""
        check_vocabulary(self.windows, model.get_input_embeddings().weight.shape[0])
        started = time.perf_counter()
        reading = self._advance(f"evaluate {variant}", f"Evaluating {variant}")
        reading(0, 0)
        scores = score(model, self.windows, reference, keep=keep, advance=reading, stride=self.stride)
        answering = self._advance(f"tasks {variant}", f"Answering tasks with {variant}")
        original = reference.answers if reference else None
        tasks, answers = score_tasks(model, self.tokenizer, self.tasks, original, answering)
        if timed and self.timing:
            self._advance(f"time {variant}", f"Timing {variant}")(0, 0)
        evaluation = Evaluation(
            variant=variant,
            model=self.ref,
            text=self.text_spec,
            tasks=tasks,
            weights_bytes=weights_bytes,
            file_bytes=file_bytes,
            ms_per_token=ms_per_token(model, self.windows) if timed else None,
            speed=measure_speed(model, self.windows) if timed and self.timing else None,
            device=str(model.device),
            seconds=time.perf_counter() - started,
            notes=notes,
            **scores.summary(reference),
        )
        return evaluation, replace(scores, answers=answers)

    def _advance(self, stage: str, message: str) -> Callable[[int, int], None]:
        return lambda done, total: self.report(Progress(stage=stage, done=done, total=total, message=message))
