"""What one GPU holds of each layer when several share a model: tensor parallelism, between the catalogue and memory.

As Megatron-LM splits a decoder (Shoeybi et al. 2019, "Megatron-LM") and vLLM after it: a layer that reads the hidden
state gives every GPU some of its outputs, a layer that writes it some of its inputs, embedding and head some of the
vocabulary. Every GPU has norms, routers, biases, and what it cannot have a part of: at least one K/V head, and the
layers that make or read the latent of multi-head latent attention.
"""

from __future__ import annotations

import math

from advisor.errors import PlanError
from advisor.types import AttentionGeometry, Catalogue, Engine, Layer, Role

_BY_OUTPUT = (Role.EMBEDDING, Role.LM_HEAD, Role.MLP_GATE_UP)
_BY_INPUT = (Role.ATTENTION_OUTPUT, Role.MLP_DOWN)


def shard(layer: Layer, catalogue: Catalogue, gpus: int) -> Layer:
    """The layer as the fullest of `gpus` GPUs holds it: the same layer with a smaller shape, or whole.

    What does not divide evenly is rounded up; engines that pad the vocabulary to larger units need a little more.
    """
    if gpus == 1:
        return layer
    outputs, inputs = _axes(layer)
    if layer.role in _BY_OUTPUT:
        return _cut(layer, outputs, _share(layer.shape[outputs], gpus))
    if layer.role in _BY_INPUT:
        return _cut(layer, inputs, _share(layer.shape[inputs], gpus))
    if layer.role is Role.ATTENTION_QKV:
        rows = _attention_rows(layer.shape[outputs], layer.shape[inputs], catalogue, gpus)
        return _cut(layer, outputs, rows)
    if layer.role is Role.EXPERT:
        axis = outputs if layer.shape[inputs] == catalogue.hidden_size else inputs
        return _cut(layer, axis, _share(layer.shape[axis], gpus))
    return layer


def kv_heads_per_gpu(geometry: AttentionGeometry, gpus: int) -> int:
    """K/V heads that each GPU keeps: with more GPUs than heads, several keep the same one."""
    return _share(geometry.kv_heads, gpus)


def refuse_split(catalogue: Catalogue, engine: Engine, gpus: int) -> None:
    """Raises PlanError when the engine cannot split this model over so many GPUs."""
    if gpus == 1:
        return
    if not engine.tensor_parallel:
        raise PlanError(
            f"{engine.label} does not split layers over several GPUs here: plan for one GPU, or for an engine with "
            "tensor parallelism.",
            {"plan for one GPU": {"gpus": 1}},
        )
    problem = _indivisible(catalogue, gpus)
    if problem:
        possible = [n for n in range(1, catalogue.attention.attention_heads + 1) if not _indivisible(catalogue, n)]
        fewer = max(n for n in possible if n < gpus)
        raise PlanError(
            f"{catalogue.model.name} cannot be split over {gpus} GPUs, which do not divide its {problem}: it can be "
            f"over {', '.join(map(str, possible))}.",
            {f"plan for {fewer} GPUs" if fewer > 1 else "plan for one GPU": {"gpus": fewer}},
        )


def _indivisible(catalogue: Catalogue, gpus: int) -> str:
    """What of the model does not come apart evenly; empty when everything does."""
    geometry = catalogue.attention
    if geometry.attention_heads % gpus:
        return f"{geometry.attention_heads} attention heads"
    if geometry.kv_heads % gpus and gpus % geometry.kv_heads:
        return f"{geometry.kv_heads} K/V heads"
    if catalogue.intermediate_size % gpus:
        return f"{catalogue.intermediate_size} MLP features"
    return ""


def _axes(layer: Layer) -> tuple[int, int]:
    """The axes of outputs and of inputs: the last two of a matrix, or of each of an expert's matrices."""
    last = len(layer.shape) - 1
    inputs = layer.input_axis % (last + 1)
    return (last - 1 if inputs == last else last), inputs


def _attention_rows(rows: int, features: int, catalogue: Catalogue, gpus: int) -> int:
    """Outputs that one GPU keeps of a projection to queries, keys or values, told apart by how many it has."""
    geometry = catalogue.attention
    queries, keys = (heads * geometry.head_dim for heads in (geometry.attention_heads, geometry.kv_heads))
    if geometry.latent_dim is not None:
        makes_latent = features == catalogue.hidden_size and rows != queries
        return rows if makes_latent else _share(rows, gpus)
    own_keys = kv_heads_per_gpu(geometry, gpus) * geometry.head_dim
    if rows == keys:
        return own_keys
    if rows == queries + 2 * keys:
        return _share(queries, gpus) + 2 * own_keys
    return _share(rows, gpus)


def _share(count: int, gpus: int) -> int:
    return math.ceil(count / gpus)


def _cut(layer: Layer, axis: int, size: int) -> Layer:
    shape = (*layer.shape[:axis], size, *layer.shape[axis + 1 :])
    return layer.model_copy(update={"shape": shape})
