"""Confirms what a plan predicted: perplexity and KL on held-out text, stored bytes, and the time of a token."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from advisor.measured_speed import PROMPT_TOKENS, TIMED_STEPS, WARM_UP_STEPS
from advisor.scoring import (
    REFERENCE_CACHE_BYTES,
    Head,
    final_hidden,
    kl_of,
    log_probs,
    mean_and_stderr,
    nll_of,
    rows_and_targets,
)
from advisor.texts import check_vocabulary, text_sha256
from advisor.types import Evaluation, ModelRef, Progress, TextSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Scores:
    """One model on the evaluation text, token by token; fp32 on the CPU.

    Attributes:
        nll: `(tokens,)` negative log-likelihoods in nats.
        log_probs: per batch `(rows, vocabulary)`, for the first batches that fit the cache; only of a reference.
        kl, same_top1: `(tokens covered by the reference,)`, or None without a reference.
    """

    nll: torch.Tensor
    log_probs: tuple[torch.Tensor, ...] = ()
    kl: torch.Tensor | None = None
    same_top1: torch.Tensor | None = None

    def summary(self, reference: Scores | None = None) -> dict[str, float | None]:
        """The fields of an `Evaluation` that follow from the scores; differences are paired with `reference`."""
        nll, stderr = mean_and_stderr(self.nll)
        found = {"nll": nll, "nll_stderr": stderr, "perplexity": math.exp(nll)}
        found["perplexity_stderr"] = found["perplexity"] * stderr  # first order: d exp(x) = exp(x) dx
        if reference is not None:
            found["delta_nll"], found["delta_nll_stderr"] = mean_and_stderr(self.nll - reference.nll)
        if self.kl is not None:
            found["kl_to_original"], found["kl_stderr"] = mean_and_stderr(self.kl)
            found["same_top1"] = self.same_top1.double().mean().item()
        return found


@torch.no_grad()
def score(
    model: PreTrainedModel,
    windows: torch.Tensor,
    reference: Scores | None = None,
    keep: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Score `(sequences, length)` token windows.

    Args:
        reference: the unquantized model's scores, for KL and top-1 agreement.
        keep: keep log-probabilities, as many as fit 2 GiB, so that the result can be a reference.
        advance: called after every batch with (batches done, batches in all).
    """
    head = Head(model)
    batches = windows.split(max(1, _BATCH_TOKENS // windows.shape[1]))
    room = REFERENCE_CACHE_BYTES // (4 * head.vocabulary) if keep else 0
    nll, kept, kl, same = [], [], [], []
    for index, ids in enumerate(batches):
        rows, targets = rows_and_targets(final_hidden(model, ids), ids)
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
        log_probs=tuple(kept),
        kl=torch.cat(kl).cpu() if kl else None,
        same_top1=torch.cat(same).cpu() if same else None,
    )


@torch.no_grad()
def ms_per_token(model: PreTrainedModel, windows: torch.Tensor) -> float:
    """Median milliseconds of one decoding step: one sequence, a short prompt in its KV cache, after a warm-up."""
    prompt = windows[:1, :PROMPT_TOKENS].to(model.device)
    output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    times = []
    for _ in range(WARM_UP_STEPS + TIMED_STEPS):
        token = output.logits[:, -1:].argmax(-1)
        _wait(model.device)
        started = time.perf_counter()
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        _wait(model.device)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[WARM_UP_STEPS:])


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
    """What all variants of one comparison share: where they come from, and `(sequences, length)` held-out tokens."""

    ref: ModelRef
    text: str
    windows: torch.Tensor
    report: Callable[[Progress], None]

    @property
    def text_spec(self) -> TextSpec:
        sequences, length = self.windows.shape
        return TextSpec(
            text=self.text,
            tokens=sequences * (length - 1),
            seq_len=length,
            text_sha256=text_sha256(self.windows),
        )

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

        def advance(done: int, total: int) -> None:
            message = f"Evaluating {variant}"
            self.report(Progress(stage=f"evaluate {variant}", done=done, total=total, message=message))

        advance(0, 0)
        scores = score(model, self.windows, reference, keep=keep, advance=advance)
        evaluation = Evaluation(
            variant=variant,
            model=self.ref,
            text=self.text_spec,
            weights_bytes=weights_bytes,
            file_bytes=file_bytes,
            ms_per_token=ms_per_token(model, self.windows) if timed else None,
            device=str(model.device),
            seconds=time.perf_counter() - started,
            notes=notes,
            **scores.summary(reference),
        )
        return evaluation, scores


def _wait(device: torch.device) -> None:
    """Accelerators answer before they are done; a clock must not."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
