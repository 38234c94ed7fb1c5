"""The exact sweep: one layer quantized at a time, every score paired token by token with the unquantized model."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from advisor.catalogue import decoder_blocks, get_weight
from advisor.errors import ModelError
from advisor.formats.quantize import fake_quantize
from advisor.profiler.replay import Replay
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
from advisor.types import Baseline, Catalogue, Format, Layer, Measurement, Role

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BATCH_TOKENS = 4096
_REPLAY_TOLERANCE = 1e-4  # nats; the same computation differs by rounding only, another one by far more
_NOISE_FLOOR_PARAMETERS = 2_000_000_000  # above this a second copy in fp32 may not fit


class ExactSweep:
    """Measures layers one at a time on fixed token windows.

    The cost of one candidate in block b of L is (L - b) / L of a forward pass and one vocabulary head; its formats
    share the blocks before b. Memory beyond the model: one hidden state per token, the unquantized log-probabilities
    where they fit `REFERENCE_CACHE_BYTES` (else they are computed again, slice by slice), and one quantized weight.

    Args:
        model: in evaluation mode, on its device, in the dtype to measure in.
        catalogue: of the same model.
        windows: `(sequences, length)` token ids.
    """

    def __init__(self, model: PreTrainedModel, catalogue: Catalogue, windows: torch.Tensor):
        self.model, self.catalogue = model, catalogue
        self.head = Head(model)
        self.blocks = decoder_blocks(model)
        per_batch = max(1, _BATCH_TOKENS // windows.shape[1])
        self.batches = [batch.to(model.device) for batch in windows.split(per_batch)]
        self.predicted = windows.shape[1] - 1
        self._reference = _Reference(self.head, self.batches)

    @torch.no_grad()
    def baseline(self) -> Baseline:
        """The unquantized model's likelihood, with the KL that rounding to its dtype alone causes."""
        nll = self._reference.nll
        mean, stderr = mean_and_stderr(nll)
        if not math.isfinite(mean):
            raise ModelError("The unquantized model's own predictions are not finite: check its weights, or use fp32.")
        return Baseline(nll=mean, nll_stderr=stderr, tokens=len(nll), noise_floor_kl=self._noise_floor())

    @torch.no_grad()
    def measure(self, candidates: Iterable[tuple[Layer, Format]]) -> Iterator[Measurement]:
        """Measure every candidate, in the order of the blocks; the model's weights are back in place after each."""
        replay = Replay(self.model, self.blocks, self.batches)
        ordered = sorted(candidates, key=lambda candidate: self._start(candidate[0]))
        for start, of_block in groupby(ordered, key=lambda candidate: self._start(candidate[0])):
            first_replay = replay.position == 0 and start > 0
            replay.move_to(start)
            if first_replay and replay.reuse and not self._faithful(replay):
                replay.stop_reusing()
            for layer, fmt in of_block:
                yield self._measure_one(replay, layer, fmt)

    def _start(self, layer: Layer) -> int:
        """The first block that `layer` can influence."""
        if layer.block is not None:
            return layer.block
        return len(self.blocks) if layer.role is Role.LM_HEAD else 0

    def _measure_one(self, replay: Replay, layer: Layer, fmt: Format) -> Measurement:
        started = time.perf_counter()
        parameter = get_weight(self.model, layer)
        original = parameter.data
        nll, kl = [], []
        with _weight(parameter, fake_quantize(original, fmt, layer.input_axis)):
            for batch, hidden in enumerate(replay.final_hidden()):
                rows, targets = rows_and_targets(hidden, self.batches[batch])
                for part in self.head.slices(len(rows)):
                    log_p = log_probs(self.head, rows[part])
                    with _weight(parameter, original):  # a tied or quantized head must not change the reference
                        reference = self._reference.log_probs(batch, part)
                    nll.append(nll_of(log_p, targets[part]))
                    kl.append(kl_of(reference, log_p))
        delta = torch.cat(nll).cpu() - self._reference.nll
        delta_mean, delta_stderr = mean_and_stderr(delta)
        kl_mean, kl_stderr = mean_and_stderr(torch.cat(kl).cpu())
        return Measurement(
            layer=layer.name,
            format=fmt.name,
            delta_nll=delta_mean,
            delta_nll_stderr=delta_stderr,
            kl=kl_mean,
            kl_stderr=kl_stderr,
            tokens=len(delta),
            delta_nll_by_sequence=tuple(delta.view(-1, self.predicted).double().mean(1).tolist()),
            seconds=time.perf_counter() - started,
        )

    def _faithful(self, replay: Replay) -> bool:
        """Whether the model run from the middle gives what it gives from the start.

        Architectures whose later blocks read the insides of earlier ones (shared key-value states) do not.
        """
        hidden = next(replay.final_hidden())
        rows, targets = rows_and_targets(hidden, self.batches[0])
        nll = torch.cat([nll_of(log_probs(self.head, rows[s]), targets[s]) for s in self.head.slices(len(rows))])
        return bool((nll.cpu() - self._reference.nll[: len(nll)]).abs().mean() < _REPLAY_TOLERANCE)

    def _noise_floor(self) -> float | None:
        """KL between fp32 and the model's dtype on the first batch; 0 for fp32, None where a copy may not fit."""
        if self.model.dtype == torch.float32:
            return 0.0
        if self.catalogue.parameters > _NOISE_FLOOR_PARAMETERS:
            return None
        precise = copy.deepcopy(self.model).float()
        rows, _ = rows_and_targets(final_hidden(precise, self.batches[0]), self.batches[0])
        head = Head(precise)
        parts = [kl_of(log_probs(head, rows[s]), self._reference.log_probs(0, s)) for s in head.slices(len(rows))]
        return torch.cat(parts).mean().item()


class _Reference:
    """The unquantized model on every batch: nll per token kept, log-probabilities kept where they fit."""

    @torch.no_grad()
    def __init__(self, head: Head, batches: list[torch.Tensor]):
        self.head = head
        tokens = sum(batch[:, 1:].numel() for batch in batches)
        self._keep = tokens * head.vocabulary * 4 <= REFERENCE_CACHE_BYTES
        self._rows: list[torch.Tensor] = []
        self._log_probs: list[torch.Tensor] = []
        nll = []
        for ids in batches:
            rows, targets = rows_and_targets(final_hidden(head.model, ids), ids)
            parts = []
            for part in head.slices(len(rows)):
                log_p = log_probs(head, rows[part])
                nll.append(nll_of(log_p, targets[part]))
                if self._keep:
                    parts.append(log_p)
            self._log_probs.append(torch.cat(parts) if parts else torch.empty(0))
            self._rows.append(rows)
        self.nll = torch.cat(nll).cpu()

    def log_probs(self, batch: int, part: slice) -> torch.Tensor:
        if self._keep:
            return self._log_probs[batch][part]
        return log_probs(self.head, self._rows[batch][part])


@contextmanager
def _weight(parameter: torch.nn.Parameter, values: torch.Tensor) -> Iterator[None]:
    """Let `parameter` hold `values` for a while; a pointer moves, nothing is copied."""
    before = parameter.data
    parameter.data = values
    try:
        yield
    finally:
        parameter.data = before
