"""The loop that the profiler is measured against: the whole model, from tokens to logits, for every candidate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from advisor.formats.quantize import fake_quantize
from advisor.types import Format, Layer
from advisor.weights import get_weight


@torch.no_grad()
def naive_sweep(
    model, windows: torch.Tensor, candidates: Iterable[tuple[Layer, Format]]
) -> Iterator[tuple[str, str, float, float]]:
    """Yield (layer, format, delta_nll, kl) per token in nats, for `(sequences, length)` windows."""
    reference, base = _log_probs(model, windows)
    for layer, fmt in candidates:
        parameter = get_weight(model, layer)
        original = parameter.data
        parameter.data = fake_quantize(original, fmt, layer.input_axis)
        log_p, nll = _log_probs(model, windows)
        parameter.data = original
        kl = torch.nn.functional.kl_div(log_p, reference, log_target=True, reduction="none").sum(-1)
        yield layer.name, fmt.name, (nll - base).mean().item(), kl.mean().item()


def _log_probs(model, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(windows.to(model.device)).logits[:, :-1].float()
    targets = windows[:, 1:].to(model.device)
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return torch.log_softmax(logits, -1), nll
