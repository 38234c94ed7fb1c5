"""Bytes of a deployment, part by part: what the road compares with a memory budget before and after solving.

All results are bytes. Estimates say what they assume; a measured run replaces them.
"""

from __future__ import annotations

from advisor.errors import PlanError
from advisor.formats.table import packed_bytes
from advisor.knowledge import find_format, stored_format
from advisor.types import Budget, Catalogue, Engine, Format, Hardware, Layer, MemoryEstimate

LOGIT_BYTES = 4
INDEX_BYTES = 8


def stored_bytes(engine: Engine, fmt: Format, layer: Layer) -> int:
    """Bytes of one layer as `engine` stores `fmt`, with the engine's own scales, zero points and group size.

    Raises KnowledgeError when the engine does not store the format.
    """
    return packed_bytes(stored_format(engine, fmt), layer)


def weights_bytes(catalogue: Catalogue, assignments: dict[str, str], engine: Engine) -> int:
    """Bytes of all weights: assigned layers as the engine stores them, all others in the catalogue's dtype.

    Tied weights are one layer of the catalogue and so counted once. Raises PlanError for a layer that the catalogue
    does not have, KnowledgeError for a format that is unknown or that the engine does not store.
    """
    _refuse_unknown_layers(catalogue, assignments)
    kept = find_format(catalogue.dtype)
    return sum(
        stored_bytes(engine, find_format(assignments[layer.name]), layer)
        if layer.name in assignments
        else packed_bytes(kept, layer)
        for layer in catalogue.layers
    )


def kv_cache_bytes(catalogue: Catalogue, context: int, sequences: int, kv_bits: int) -> int:
    """Bytes of the keys and values of `sequences` sequences of `context` tokens, `kv_bits` bits a value.

    Per block and cached token: 2 (key and value) * kv_heads * head_dim values, as in Pope et al. 2022, "Efficiently
    Scaling Transformer Inference", with kv_heads for grouped queries (Ainslie et al. 2023). A sliding-window block
    caches no more tokens than its window. Paged engines round each sequence up to whole pages (16 tokens in vLLM),
    which is not counted.
    """
    geometry = catalogue.attention
    sliding = geometry.sliding_blocks if geometry.sliding_window is not None else 0
    windowed = min(context, geometry.sliding_window or context)
    cached_tokens = (geometry.blocks - sliding) * context + sliding * windowed
    values = 2 * geometry.kv_heads * geometry.head_dim * cached_tokens * sequences
    return values * kv_bits // 8


def activation_bytes(catalogue: Catalogue, context: int, sequences: int) -> int:
    """Bytes of the largest set of activations alive at once while one sequence prefills and the others decode.

    tokens = context + (sequences - 1). Per token, in the catalogue's dtype:
        always: 4 * hidden (embedded input, residual, its normed copy, a block's output) + 2 * head_dim (rotary tables),
                and two 64-bit integers (token and position);
        and the larger of
        attention: 4 * heads * head_dim (queries before, while and after they are rotated) + 2 * kv_heads * head_dim;
        MLP:       3 * intermediate (gate, up, their product).
    Counted on what transformers' Llama keeps alive in its forward pass; a test measures it. Attention runs in tiles
    (FlashAttention, Dao et al. 2022), so no score matrix counts. To it come the logits of one position per sequence,
    in the dtype and again in FP32 for sampling. Assumes that prefill is not chunked, and for a mixture of experts that
    one expert is active per token; an engine that chunks prefill (vLLM does) needs less.
    """
    geometry = catalogue.attention
    itemsize = find_format(catalogue.dtype).bits // 8
    queries = geometry.attention_heads * geometry.head_dim
    keys_and_values = 2 * geometry.kv_heads * geometry.head_dim
    widest = max(4 * queries + keys_and_values, 3 * catalogue.intermediate_size)
    per_token = (4 * catalogue.hidden_size + 2 * geometry.head_dim + widest) * itemsize + 2 * INDEX_BYTES
    logits = sequences * catalogue.vocabulary * (itemsize + LOGIT_BYTES)
    return (context + sequences - 1) * per_token + logits


def usable_bytes(hardware: Hardware, engine: Engine, vram_bytes: int | None = None) -> int:
    """Bytes that the engine may fill: `vram_bytes` if given, else the device's memory, times what may be used of it.

    The fractions are the device's (macOS keeps a part of unified memory) and the engine's own setting.
    """
    capacity = hardware.memory_bytes if vram_bytes is None else vram_bytes
    fraction = hardware.usable_fraction.value if hardware.usable_fraction is not None else 1.0
    return int(capacity * fraction * engine.utilisation.value)


def overhead_bytes(engine: Engine) -> int:
    """Bytes that the engine takes before it loads any weight."""
    return round(engine.overhead_gb.value * 10**9)


def decided_bits(catalogue: Catalogue, assignments: dict[str, str]) -> float:
    """Average bits per weight of the assigned layers in the formats' own layout, whatever the engine makes of it.

    Without assignments it is the bits of the catalogue's dtype.
    """
    layers = [layer for layer in catalogue.layers if layer.name in assignments]
    if not layers:
        return float(find_format(catalogue.dtype).bits)
    stored = sum(packed_bytes(find_format(assignments[layer.name]), layer) for layer in layers)
    return stored * 8 / sum(layer.parameters for layer in layers)


def estimate_memory(
    catalogue: Catalogue, assignments: dict[str, str], engine: Engine, hardware: Hardware, budget: Budget
) -> MemoryEstimate:
    """Everything that a deployment of the assignments (layer name -> format name) needs, and what it may use.

    The load is the budget's context, sequences and KV bits. Raises what `weights_bytes` raises.
    """
    return MemoryEstimate(
        weights_bytes=weights_bytes(catalogue, assignments, engine),
        kv_cache_bytes=kv_cache_bytes(catalogue, budget.context, budget.sequences, budget.kv_bits),
        activation_bytes=activation_bytes(catalogue, budget.context, budget.sequences),
        overhead_bytes=overhead_bytes(engine),
        limit_bytes=usable_bytes(hardware, engine, budget.vram_bytes),
        decided_bits=decided_bits(catalogue, assignments),
        original_weights_bytes=weights_bytes(catalogue, {}, engine),
    )


def _refuse_unknown_layers(catalogue: Catalogue, assignments: dict[str, str]) -> None:
    unknown = assignments.keys() - {layer.name for layer in catalogue.layers}
    if unknown:
        raise PlanError(
            f"The plan assigns a format to '{min(unknown)}', which {catalogue.model.name} does not have; "
            "make a plan for this model."
        )
