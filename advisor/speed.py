"""Times a model as it reads a prompt and writes after it: prefill, the first token, decoding, and the memory in use."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
import torch

from advisor.measured_speed import PROMPT_TOKENS, TIMED_STEPS, WARM_UP_STEPS
from advisor.types import Speed, Spread
from advisor.weights import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RUNS = 5
_WARM_UP_RUNS = 1
_MOST_NEW_TOKENS = 32
_SAMPLE_SECONDS = 0.01


def ms_per_token(model: PreTrainedModel, windows: torch.Tensor) -> float:
    """Median milliseconds of one decoding step: one sequence, a short prompt in its KV cache, after a warm-up."""
    _, *steps = _seconds(model, windows[:1, :PROMPT_TOKENS], WARM_UP_STEPS + TIMED_STEPS)
    return 1000 * statistics.median(steps[WARM_UP_STEPS:])


def measure_speed(model: PreTrainedModel, windows: torch.Tensor, runs: int = RUNS) -> Speed:
    """Read the first of `(sequences, length)` token windows and write to its end, several times after a warm-up.

    The prompt is the window less the new tokens, which are 32, or half of a window that is shorter than 64.
    """
    length = windows.shape[1]
    new = min(_MOST_NEW_TOKENS, length // 2)
    prompt = windows[:1, : length - new]
    device = device_of(model)
    with _PeakMemory(device) as memory:
        # The first new token comes with the prompt, so as many steps follow as there are others.
        found = [_seconds(model, prompt, new - 1) for _ in range(_WARM_UP_RUNS + runs)][_WARM_UP_RUNS:]
    return Speed(
        prompt_tokens=prompt.shape[1],
        new_tokens=new,
        runs=runs,
        prefill_tokens_per_s=_spread([prompt.shape[1] / first for first, *_ in found]),
        decode_tokens_per_s=_spread([len(steps) / sum(steps) for _, *steps in found]),
        first_token_s=_spread([first for first, *_ in found]),
        peak_memory_bytes=memory.peak,
        memory_of="accelerator" if device.type == "cuda" else "process",
        device=str(device),
    )


@torch.no_grad()
def _seconds(model: PreTrainedModel, prompt: torch.Tensor, steps: int) -> list[float]:
    """Seconds until the first new token after `(1, tokens)` of prompt, and of each of the steps that follow; greedy."""
    device = device_of(model)
    token, cache, found = prompt.to(device), None, []
    for _ in range(1 + steps):
        _wait(device)
        started = time.perf_counter()
        output = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
        _wait(device)
        found.append(time.perf_counter() - started)
    return found


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median=statistics.median(values), low=min(values), high=max(values))


def _wait(device: torch.device) -> None:
    """Accelerators answer before they are done; a clock must not."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class _PeakMemory:
    """The most memory in use inside the block: on CUDA what torch allocated, elsewhere the process's, looked at often.

    The system's own mark of a process's peak would tell of loading the model.
    """

    def __init__(self, device: torch.device):
        self._device, self._done = device, threading.Event()
        self._process, self.peak = psutil.Process(), 0

    def __enter__(self) -> _PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self._device)
            return
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        self._look()
        while not self._done.wait(_SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        with suppress(psutil.Error):
            self.peak = max(self.peak, self._process.memory_info().rss)
