"""What a profiling run will take, told before it starts: from the model's own pace on a little of the text."""

from __future__ import annotations

from collections.abc import Sequence

from advisor.profiler.reference import Reference
from advisor.profiler.replay import first_block
from advisor.scoring import REFERENCE_CACHE_BYTES
from advisor.types import Catalogue, Format, Layer, Method, Role, WorkEstimate

# In units of a forward pass through the blocks, resp. of the vocabulary head, as SmolLM2 took them on two CPU cores.
_KL_OF_HEAD = 0.15  # comparing two distributions, on top of computing one
_FISHER_BODY = 1.5  # stored once, run again for the graph
_FISHER_BODY_PASS = 1.1  # one backward pass
_FISHER_BODY_FORMAT = 0.6  # rounding errors made and applied
_FISHER_HEAD = 1.0
_FISHER_HEAD_PASS = 1.1
_FISHER_HEAD_FORMAT = 0.8
_BLOCK_ACTIVATIONS = 14  # tensors of a block's width that its graph keeps
_QUANTIZER_COPIES = 3  # of one slice of a weight, in fp32


def estimate_work(
    method: Method,
    candidates: Sequence[tuple[Layer, Format]],
    catalogue: Catalogue,
    pace: Reference,
    tokens: int,
    batch_tokens: int,
    draws: int,
) -> WorkEstimate:
    """The cost of a run over `tokens` tokens.

    Args:
        pace: the unquantized model on any part of the text.
        batch_tokens: that the backward passes take at once.
    """
    scale = tokens / sum(ids.numel() for ids in pace.batches)
    body, head = pace.body_seconds * scale, pace.head_seconds * scale
    formats = len(candidates) / len({layer.name for layer, _ in candidates})
    exact = _exact_seconds(candidates, catalogue.attention.blocks, body, head)
    fisher = body * (_FISHER_BODY + _FISHER_BODY_PASS * (1 + draws) + _FISHER_BODY_FORMAT * formats)
    fisher += head * (_FISHER_HEAD + _FISHER_HEAD_PASS * (1 + draws) + _FISHER_HEAD_FORMAT * formats)
    seconds = {"exact": exact, "fisher": fisher, "auto": fisher + exact}[method] + body + head
    return WorkEstimate(
        scores=len(candidates),
        tokens=tokens,
        forward_passes=seconds / (body + head),
        seconds=seconds,
        memory_bytes=_memory(method, candidates, catalogue, pace, tokens, batch_tokens, draws),
        at_most=method == "auto",
    )


def _exact_seconds(candidates: Sequence[tuple[Layer, Format]], blocks: int, body: float, head: float) -> float:
    total = 0.0
    for layer, _ in candidates:
        total += body * (blocks - first_block(layer, blocks)) / blocks + head * (1 + _KL_OF_HEAD)
    return total


def _memory(
    method: Method,
    candidates: Sequence[tuple[Layer, Format]],
    catalogue: Catalogue,
    pace: Reference,
    tokens: int,
    batch_tokens: int,
    draws: int,
) -> int:
    size = pace.model.dtype.itemsize
    weights = catalogue.parameters * size
    largest = max(layer.parameters for layer, _ in candidates)
    hidden, width = catalogue.hidden_size, catalogue.hidden_size + catalogue.intermediate_size
    exact = min(tokens * catalogue.vocabulary * 4, REFERENCE_CACHE_BYTES) + 2 * tokens * hidden * size + largest * size
    batch = min(batch_tokens, tokens)
    formats = len({fmt.name for _, fmt in candidates})
    fisher = batch * size * (catalogue.attention.blocks * hidden + _BLOCK_ACTIVATIONS * width + 3 * (1 + draws) * width)
    # Rounding errors exist whole for the head and for fused experts, else slice by slice.
    whole = [layer.parameters for layer, _ in candidates if layer.role in (Role.LM_HEAD, Role.EXPERT)]
    whole += [layer.parameters for layer, _ in candidates if layer.tied_names]
    fisher += formats * max(whole, default=0) * size
    parts = {"exact": exact, "fisher": fisher, "auto": max(exact, fisher)}[method]
    return weights + parts + _QUANTIZER_COPIES * 4 * min(largest, 1 << 24)
