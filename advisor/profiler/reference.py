"""The unquantized model on the calibration text: what every score is compared with."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from advisor.errors import ModelError
from advisor.matmul import fast_fp32_matmul
from advisor.models import free_bytes
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
from advisor.types import Baseline, Catalogue, Layer, Role
from advisor.weights import device_of, holding, offloaded, read_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CPU_BATCH_TOKENS = 1024  # larger batches leave the processor's caches and take longer per token
_DEVICE_BATCH_TOKENS = 32_768
_DEVICE_MEMORY_SHARE = 0.25
_LIVE_TENSORS = 8  # of a block's width that live at once in its forward pass, generously
_NOISE_FLOOR_PARAMETERS = 2_000_000_000  # above this a second copy in fp32 may not fit


def batches_of(windows: torch.Tensor, model: PreTrainedModel, catalogue: Catalogue) -> list[torch.Tensor]:
    """`(sequences, length)` windows in batches whose activations fit the device's free memory, on the device."""
    device = device_of(model)
    return [part.to(device) for part in windows.split(_sequences(windows.shape[1], model, catalogue, device))]


def _sequences(length: int, model: PreTrainedModel, catalogue: Catalogue, device: torch.device) -> int:
    tokens = _CPU_BATCH_TOKENS
    if device.type != "cpu":
        free = free_bytes(device)
        width = catalogue.hidden_size + catalogue.intermediate_size
        fitting = int(_DEVICE_MEMORY_SHARE * free) // (_LIVE_TENSORS * width * model.dtype.itemsize)
        tokens = min(fitting, _DEVICE_BATCH_TOKENS)
    return max(1, tokens // length)


def _finish(device: torch.device) -> None:
    """Wait for what an accelerator still computes, so that a clock tells the truth."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Reference:
    """The unquantized model on every batch.

    Log-probabilities are kept where they fit `cache_bytes`, else computed again slice by slice. Without `keep` only
    those of the first batch can be had.

    Attributes:
        cached_bytes: of the log-probabilities that are kept.
        nll: per predicted token, `(tokens,)` on the CPU.
        body_seconds, head_seconds: what its one pass over the batches took, before and in the vocabulary head.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: PreTrainedModel,
        catalogue: Catalogue,
        batches: list[torch.Tensor],
        keep: bool = True,
        cache_bytes: int = REFERENCE_CACHE_BYTES,
    ):
        self.model, self.catalogue, self.batches = model, catalogue, batches
        self.head = Head(model)
        needed = sum(batch[:, 1:].numel() for batch in batches) * self.head.vocabulary * 4
        self._keep = keep and needed <= cache_bytes
        self.cached_bytes = needed if self._keep else 0
        self._rows: list[torch.Tensor] = []
        self._log_probs: list[torch.Tensor] = []
        nll = []
        self.body_seconds = self.head_seconds = 0.0
        self.device = device = device_of(model)
        with fast_fp32_matmul(device):
            final_hidden(model, batches[0][:1])  # what is done once is no part of the pace
            for number, ids in enumerate(batches):
                started = time.perf_counter()
                rows, targets = rows_and_targets(final_hidden(model, ids), ids)
                _finish(device)
                reached_head = time.perf_counter()
                parts = []
                for part in self.head.slices(len(rows)):
                    log_p = log_probs(self.head, rows[part])
                    nll.append(nll_of(log_p, targets[part]))
                    if self._keep:
                        parts.append(log_p)
                self._log_probs.append(torch.cat(parts) if parts else torch.empty(0))
                if number == 0 or (keep and not self._keep):  # the noise floor reads the first
                    self._rows.append(rows)
                _finish(device)
                self.body_seconds += reached_head - started
                self.head_seconds += time.perf_counter() - reached_head
        self.nll = torch.cat(nll).cpu()
        self._head_weight = None if self._keep else self._unquantized_head()

    def log_probs(self, batch: int, part: slice) -> torch.Tensor:
        """Log-probabilities `(rows, vocabulary)` of a slice of the batch's predictions."""
        if self._keep:
            return self._log_probs[batch][part]
        layer, values = self._head_weight
        with holding(self.model, layer, values):  # a tied or quantized head must not change the reference
            return log_probs(self.head, self._rows[batch][part])

    def log_probs_of_sequence(self, number: int, rows: slice) -> torch.Tensor:
        """The same for predictions of one sequence among all."""
        batch, within = divmod(number, len(self.batches[0]))
        predicted = self.batches[0].shape[1] - 1
        start = within * predicted
        return self.log_probs(batch, slice(start + rows.start, start + min(rows.stop, predicted)))

    def losses(self, hidden: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the model as it is now: nll and KL to the reference of every predicted token, `(tokens,)` on the CPU.

        Args:
            hidden: per batch `(sequences, length, hidden)` after the final norm.
        """
        nll, kl = [], []
        for batch, final in enumerate(hidden):
            rows, targets = rows_and_targets(final, self.batches[batch])
            for part in self.head.slices(len(rows)):
                log_p = log_probs(self.head, rows[part])
                reference = self.log_probs(batch, part)
                nll.append(nll_of(log_p, targets[part]))
                kl.append(kl_of(reference, log_p))
        return torch.cat(nll).cpu(), torch.cat(kl).cpu()

    def _unquantized_head(self) -> tuple[Layer, torch.Tensor]:
        layers = self.catalogue.layers
        untied = [layer for layer in layers if layer.role is Role.LM_HEAD]
        layer = (untied or [layer for layer in layers if layer.role is Role.EMBEDDING and layer.tied_names])[0]
        return layer, read_weight(self.model, layer)

    def baseline(self) -> Baseline:
        """The unquantized model's likelihood, with the KL that rounding to its dtype alone causes."""
        mean, stderr = mean_and_stderr(self.nll)
        if not math.isfinite(mean):
            raise ModelError("The unquantized model's own predictions are not finite: check its weights, or use fp32.")
        return Baseline(nll=mean, nll_stderr=stderr, tokens=len(self.nll), noise_floor_kl=self._noise_floor())

    @torch.no_grad()
    def _noise_floor(self) -> float | None:
        """KL between fp32 and the model's dtype on the first batch; 0 for fp32, None where a copy may not fit."""
        if self.model.dtype == torch.float32:
            return 0.0
        if self.catalogue.parameters > _NOISE_FLOOR_PARAMETERS or offloaded(self.model):
            return None
        precise = copy.deepcopy(self.model).float()
        rows, _ = rows_and_targets(final_hidden(precise, self.batches[0]), self.batches[0])
        head = Head(precise)
        parts = [kl_of(log_probs(head, rows[s]), self.log_probs(0, s)) for s in head.slices(len(rows))]
        return torch.cat(parts).mean().item()
