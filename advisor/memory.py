"""Bytes of a deployment, part by part: what the road compares with a memory budget before and after solving.

All results are bytes. Estimates say what they assume; a measured run replaces them.
"""

from __future__ import annotations

import math

from advisor.errors import PlanError
from advisor.formats.table import packed_bytes
from advisor.knowledge import find_format, stored_format
from advisor.sharding import kv_heads_per_gpu, refuse_split, shard
from advisor.types import Budget, Catalogue, Engine, Format, Hardware, Layer, MemoryEstimate
from advisor.units import GIB, size

LOGIT_BYTES = 4
INDEX_BYTES = 8
# Recurrent states are sums over the whole sequence: engines keep them in FP32.
STATE_BYTES = 4


def stored_bytes(engine: Engine, fmt: Format, layer: Layer) -> int:
    """Bytes of one layer as `engine` stores `fmt`, with the engine's own scales, zero points, group size and shapes.

    Raises KnowledgeError when the engine does not store the format.
    """
    packed, own = packed_bytes(stored_format(engine, fmt), layer), engine.formats[fmt.name]
    return packed + _matrices(layer) * (own.shape_bytes + own.input_bytes * layer.matrix_shape[1])


def kept_format(engine: Engine, catalogue: Catalogue, layer: Layer) -> Format:
    """What a layer that has no format of its own is stored in: the model's dtype, or the engine's for vectors."""
    vector = len(layer.shape) == 1
    return find_format(engine.vector_format if vector and engine.vector_format else catalogue.dtype)


def weights_bytes(catalogue: Catalogue, assignments: dict[str, str], engine: Engine, gpus: int = 1) -> int:
    """Bytes of all weights on one of `gpus` GPUs: assigned layers as the engine stores them, others as it keeps them.

    Tied weights are one layer of the catalogue and so counted once. Each layer's share is counted by itself, so that
    the sum is exactly what a solver adds up. Raises PlanError for a layer that the catalogue does not have,
    KnowledgeError for a format that is unknown or that the engine does not store.
    """
    _refuse_unknown_layers(catalogue, assignments)
    held = {layer.name: shard(layer, catalogue, gpus) for layer in catalogue.layers}
    return sum(
        stored_bytes(engine, find_format(assignments[name]), layer)
        if name in assignments
        else packed_bytes(kept_format(engine, catalogue, layer), layer)
        for name, layer in held.items()
    )


def kv_cache_bytes(catalogue: Catalogue, context: int, sequences: int, kv_bits: float, gpus: int = 1) -> int:
    """Bytes that `sequences` sequences of `context` tokens leave on one of `gpus` GPUs, `kv_bits` bits a stored value.

    Per block with attention and cached token: 2 (key and value) * kv_heads * head_dim values, as in Pope et al. 2022,
    "Efficiently Scaling Transformer Inference", with kv_heads for grouped queries (Ainslie et al. 2023), of which each
    GPU keeps its own. Multi-head latent attention caches one latent for all heads (DeepSeek-V2, 2024), which every GPU
    needs whole. A sliding-window block caches no more tokens than its window. Blocks of linear attention and
    state-space blocks keep a state of constant size instead, whatever the bits of the cache (`state_bytes`). Paged
    engines round each sequence up to whole pages (16 tokens in vLLM), which is not counted.
    """
    geometry = catalogue.attention
    sliding = geometry.sliding_blocks if geometry.sliding_window is not None else 0
    windowed = min(context, geometry.sliding_window or context)
    full = geometry.blocks - geometry.state_blocks - sliding
    cached_tokens = full * context + sliding * windowed
    per_token = geometry.latent_dim or 2 * kv_heads_per_gpu(geometry, gpus) * geometry.head_dim
    cache = math.ceil(per_token * cached_tokens * sequences * kv_bits / 8)
    return cache + state_bytes(catalogue, sequences, gpus)


def state_bytes(catalogue: Catalogue, sequences: int, gpus: int = 1) -> int:
    """Bytes of the states of blocks without a KV cache, on one of `gpus` GPUs, which share the heads of the state.

    Per sequence and block: the recurrent state in FP32 and the last inputs of the short convolution in the
    catalogue's dtype, as transformers keeps them for Qwen3-Next (gated delta rule) and Mamba-2 hybrids.
    """
    geometry = catalogue.attention
    itemsize = find_format(catalogue.dtype).bits // 8
    recurrent, convolution = (
        math.ceil(values / gpus) for values in (geometry.recurrent_values, geometry.convolution_values)
    )
    return geometry.state_blocks * sequences * (recurrent * STATE_BYTES + convolution * itemsize)


def stored_kv_bits(engine: Engine, kv_bits: int) -> float:
    """Bits that the engine stores for a KV cache value of nominally `kv_bits`, scales included.

    Raises PlanError when the engine has no such cache.
    """
    if kv_bits not in engine.kv_cache_bits:
        *others, last = map(str, engine.kv_bits)
        choices = f"{', '.join(others)} or {last}" if others else last
        raise PlanError(f"{engine.label} has no KV cache of {kv_bits} bits: choose {choices}, or another engine.")
    return engine.kv_cache_bits[kv_bits].value


def activation_bytes(catalogue: Catalogue, context: int, sequences: int, gpus: int = 1) -> int:
    """Bytes of the largest set of activations alive at once while one sequence prefills and the others decode.

    tokens = context + (sequences - 1). Per token, in the catalogue's dtype:
        always: 4 * hidden (embedded input, residual, its normed copy, a block's output) + 2 * head_dim (rotary tables),
                and two 64-bit integers (token and position);
        and the larger of
        attention: 4 * heads * head_dim (queries before, while and after they are rotated) + 2 * kv_heads * head_dim;
        MLP:       3 * intermediate (gate, up, their product).
    Several GPUs divide the second part among them; each has the first whole. Counted on what transformers' Llama keeps
    alive in its forward pass; a test measures it. Attention runs in tiles (FlashAttention, Dao et al. 2022), so no
    score matrix counts. To it come the logits of one position per sequence, whole on every GPU, in the dtype and again
    in FP32 for sampling. Assumes that prefill is not chunked, and for a mixture of experts that one expert is active
    per token; an engine that chunks prefill (vLLM does) needs less.
    """
    geometry = catalogue.attention
    itemsize = find_format(catalogue.dtype).bits // 8
    queries = math.ceil(geometry.attention_heads / gpus) * geometry.head_dim
    keys_and_values = 2 * kv_heads_per_gpu(geometry, gpus) * geometry.head_dim
    widest = max(4 * queries + keys_and_values, 3 * math.ceil(catalogue.intermediate_size / gpus))
    per_token = (4 * catalogue.hidden_size + 2 * geometry.head_dim + widest) * itemsize + 2 * INDEX_BYTES
    logits = sequences * catalogue.vocabulary * (itemsize + LOGIT_BYTES)
    return (context + sequences - 1) * per_token + logits


def usable_bytes(hardware: Hardware, engine: Engine, vram_bytes: int | None = None) -> int:
    """Bytes that the engine may fill of one device: `vram_bytes` if given, else its memory, times what may be used.

    The fractions are the device's (macOS keeps a part of unified memory) and the engine's own setting.
    """
    capacity = hardware.memory_bytes if vram_bytes is None else vram_bytes
    fraction = hardware.usable_fraction.value if hardware.usable_fraction is not None else 1.0
    return int(capacity * fraction * engine.utilisation.value)


def overhead_bytes(engine: Engine) -> int:
    """Bytes that the engine takes on every GPU before it loads any weight."""
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
    """Everything that a deployment of the assignments (layer name -> format name) needs of a GPU, and what it may use.

    The load is the budget's context, sequences, KV bits and GPUs. Raises what `weights_bytes` and `stored_kv_bits`
    raise, and PlanError when the engine cannot split the model over so many GPUs.
    """
    gpus = budget.gpus
    refuse_split(catalogue, engine, gpus)
    kv_bits = stored_kv_bits(engine, budget.kv_bits)
    weights = weights_bytes(catalogue, assignments, engine)
    return MemoryEstimate(
        weights_bytes=weights if gpus == 1 else weights_bytes(catalogue, assignments, engine, gpus),
        kv_cache_bytes=kv_cache_bytes(catalogue, budget.context, budget.sequences, kv_bits, gpus),
        activation_bytes=activation_bytes(catalogue, budget.context, budget.sequences, gpus),
        overhead_bytes=overhead_bytes(engine),
        limit_bytes=usable_bytes(hardware, engine, budget.vram_bytes),
        decided_bits=decided_bits(catalogue, assignments),
        original_weights_bytes=weights_bytes(catalogue, {}, engine),
        model_weights_bytes=weights,
        gpus=gpus,
    )


def most_bytes(hardware: Hardware) -> int:
    """What a budget may give of the device's memory: the vendors' GB may be 2^30 bytes, so up to that much passes."""
    return round(hardware.memory_gb.value * GIB)


def refuse_impossible_load(catalogue: Catalogue, hardware: Hardware, budget: Budget) -> None:
    """Raises PlanError for a context that the model was not made for, and for more memory than the device has."""
    if budget.context > catalogue.max_context:
        raise PlanError(
            f"A context of {budget.context:,} tokens is more than the {catalogue.max_context:,} that "
            f"{catalogue.model.name} was made for: shorten the context.",
            {f"shorten the context to {catalogue.max_context:,} tokens": {"context": catalogue.max_context}},
        )
    if budget.vram_bytes is not None and budget.vram_bytes > most_bytes(hardware):
        raise PlanError(
            f"{size(budget.vram_bytes)} are more than the {hardware.memory_gb.value:g} GB of {hardware.label}: plan "
            "for less, for a larger device, or for several GPUs.",
            {"plan for all of the device's memory": {"vram_bytes": hardware.memory_bytes}},
        )


def _matrices(layer: Layer) -> int:
    """How many matrices a checkpoint holds of the layer: those of each expert apart, gate and up included."""
    if len(layer.shape) != 3:
        return 1
    return layer.shape[0] * (2 if "gate_up" in layer.name else 1)


def _refuse_unknown_layers(catalogue: Catalogue, assignments: dict[str, str]) -> None:
    unknown = assignments.keys() - {layer.name for layer in catalogue.layers}
    if unknown:
        raise PlanError(
            f"The plan assigns a format to '{min(unknown)}', which {catalogue.model.name} does not have; "
            "make a plan for this model."
        )
