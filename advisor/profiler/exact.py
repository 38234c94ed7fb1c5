"""The exact sweep: one layer quantized at a time, every score paired token by token with the unquantized model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from advisor.activations import rounded_inputs
from advisor.formats.quantize import Quantizer, fake_quantize
from advisor.matmul import fast_fp32_matmul
from advisor.profiler.in_place import plan_in_place
from advisor.profiler.reference import Reference
from advisor.profiler.replay import Blocks, Replay, first_block
from advisor.scoring import mean_and_stderr
from advisor.types import Format, Layer, Measurement
from advisor.weights import device_of, holding, read_weight


class ExactSweep:
    """Measures layers one at a time on fixed token windows: each quantized alone, or each given back alone.

    The cost of one candidate in block b of L is (L - b) / L of a forward pass and one vocabulary head; its formats
    share the blocks before b. Memory beyond the model: one hidden state per token, what the reference keeps, and one
    quantized weight; around a plan, the original weights too.

    Args:
        reference: the unquantized model on the windows.
        around: layer and format of a whole plan. All of it is then in place while a layer gets its original weight
            back, and a score is what that wins: the loss of the plan minus the loss without this layer's rounding.
        quantizer: what a format makes of a weight; any that keeps shape and dtype.
    """

    def __init__(
        self,
        reference: Reference,
        around: Iterable[tuple[Layer, Format]] = (),
        quantizer: Quantizer = fake_quantize,
    ):
        self.reference, self.around, self.quantizer = reference, tuple(around), quantizer
        self.model, self.batches = reference.model, reference.batches
        self.blocks = Blocks(self.model)
        self.predicted = self.batches[0].shape[1] - 1
        self.device = device_of(self.model)

    def measure(self, candidates: Iterable[tuple[Layer, Format]]) -> Iterator[Measurement]:
        """Measure every candidate, in the order of the blocks; the model's weights are back in place at the end."""
        ordered = sorted(candidates, key=lambda candidate: self._start(candidate[0]))
        if not ordered:
            return
        with plan_in_place(self.model, self.around, self.quantizer) as (originals, rounding):
            with self._computing():
                replay = Replay(self.blocks, self.batches)
                before = self.reference.losses(replay.final_hidden()) if self.around else (self.reference.nll, 0.0)
            for layer, fmt in ordered:
                started = time.perf_counter()
                with self._computing():
                    replay.move_to(self._start(layer))
                    with self._given_back(layer, originals, rounding) if self.around else self._quantized(layer, fmt):
                        found = self.reference.losses(replay.final_hidden())
                    measurement = self._measurement(layer, fmt, before, found)
                yield measurement.model_copy(update={"seconds": time.perf_counter() - started})

    def _start(self, layer: Layer) -> int:
        return first_block(layer, len(self.blocks))

    def _measurement(self, layer: Layer, fmt: Format, before: tuple, found: tuple) -> Measurement:
        delta, kl = found[0] - before[0], found[1] - before[1]
        if self.around:  # the loss that went away
            delta, kl = -delta, -kl
        delta_mean, delta_stderr = mean_and_stderr(delta)
        kl_mean, kl_stderr = mean_and_stderr(kl)
        return Measurement(
            layer=layer.name,
            format=fmt.name,
            delta_nll=delta_mean,
            delta_nll_stderr=delta_stderr,
            kl=kl_mean,
            kl_stderr=kl_stderr,
            tokens=len(delta),
            delta_nll_by_sequence=tuple(delta.view(-1, self.predicted).double().mean(1).tolist()),
        )

    @contextmanager
    def _quantized(self, layer: Layer, fmt: Format) -> Iterator[None]:
        values = self.quantizer(read_weight(self.model, layer), fmt, layer.input_axis)
        with holding(self.model, layer, values), rounded_inputs(self.model, [(layer, fmt)]):
            yield

    @contextmanager
    def _given_back(
        self, layer: Layer, originals: dict[str, torch.Tensor], rounding: dict[str, Format]
    ) -> Iterator[None]:
        """Let one layer of the plan have its own weight and input."""
        rounded = rounding.pop(layer.name, None)
        try:
            with holding(self.model, layer, originals[layer.name]):
                yield
        finally:
            if rounded is not None:
                rounding[layer.name] = rounded

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with torch.no_grad(), fast_fp32_matmul(self.device):
            yield
