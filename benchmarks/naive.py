"""The loop that the profiler is measured against: the whole model, from tokens to logits, for every candidate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from advisor.formats.quantize import fake_quantize
from advisor.types import Format, Layer
from advisor.weights import get_weight

_SEQUENCES = 4  # that go through the model together: on two cores larger batches are slower


@torch.no_grad()
def naive_sweep(
    model, windows: torch.Tensor, candidates: Iterable[tuple[Layer, Format]]
) -> Iterator[tuple[str, str, float, float]]:
    """Yield (layer, format, delta_nll, kl) per token in nats, for `(sequences, length)` windows."""
    batches = windows.to(model.device).split(_SEQUENCES)
    references = [_log_probs(model, ids) for ids in batches]
    for layer, fmt in candidates:
        parameter = get_weight(model, layer)
        original = parameter.data
        parameter.data = fake_quantize(original, fmt, layer.input_axis)
        delta, divergence = [], []
        for ids, (reference, base) in zip(batches, references, strict=True):
            log_p, nll = _log_probs(model, ids)
            delta.append(nll - base)
            kl = torch.nn.functional.kl_div(log_p, reference, log_target=True, reduction="none")
            divergence.append(kl.sum(-1).flatten())
        parameter.data = original
        yield layer.name, fmt.name, torch.cat(delta).mean().item(), torch.cat(divergence).mean().item()


def _log_probs(model, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(ids).logits[:, :-1].float()
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return torch.log_softmax(logits, -1), nll
