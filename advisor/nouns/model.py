"""The nouns of a model: where it comes from, its weights, and how they are grouped."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Literal

from advisor.nouns.base import Noun


class Role(StrEnum):
    """What a weight does in the network; decides advice, grouping and what an engine may quantize."""

    EMBEDDING = "embedding"
    LM_HEAD = "lm_head"
    ATTENTION_QKV = "attention_qkv"
    ATTENTION_OUTPUT = "attention_output"
    MLP_GATE_UP = "mlp_gate_up"
    MLP_DOWN = "mlp_down"
    EXPERT = "expert"
    ROUTER = "router"
    NORM = "norm"
    OTHER = "other"


class ModelRef(Noun):
    """Where a model comes from, and the fingerprint that says whether two are the same.

    `fingerprint` is a SHA-256 over the catalogue (names, shapes, dtype) and samples of the weights: a plan made for one
    fingerprint is refused for another.
    """

    source: str
    kind: Literal["demo", "hub", "folder", "gguf"]
    name: str
    fingerprint: str = ""


class Layer(Noun):
    """One weight tensor of the model.

    Attributes:
        name: module name for `<module>.weight` (`model.layers.0.self_attn.q_proj`), else the full parameter name.
        parameter: the parameter's own name in `named_parameters()`.
        shape: the stored shape.
        input_axis: the axis that the layer contracts with its input; groups of a group-wise format run along it.
        quantizable: False for norms, biases, routers and everything that is not a matrix.
        fused_with: key shared by the layers that some engines fuse into one kernel (`...self_attn:qkv`), else None.
        fusion: which kind of fusion that is.
        tied_names: other modules that use this same tensor (a tied lm_head); it is counted and stored once.
    """

    name: str
    parameter: str
    role: Role
    block: int | None
    shape: tuple[int, ...]
    input_axis: int = -1
    quantizable: bool
    fused_with: str | None = None
    fusion: Literal["qkv", "gate_up", "experts"] | None = None
    tied_names: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, input features): the shape with the input axis last and everything else folded into rows."""
        features = self.shape[self.input_axis]
        return self.parameters // features, features


class AttentionGeometry(Noun):
    """What a sequence leaves behind in memory, and how it is split over several GPUs.

    Attributes:
        blocks: all decoder blocks, of whatever kind.
        kv_heads, head_dim: of a block with attention; head_dim is that of queries and keys.
        sliding_window, sliding_blocks: how many blocks look back no further than so many tokens.
        latent_dim: values that stand for all keys and values of a token (multi-head latent attention), else None.
        state_blocks: blocks that keep a state of constant size per sequence instead of keys and values.
        recurrent_values, convolution_values: the two parts of that state, per sequence and block.
    """

    blocks: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    sliding_window: int | None = None
    sliding_blocks: int = 0
    latent_dim: int | None = None
    state_blocks: int = 0
    recurrent_values: int = 0
    convolution_values: int = 0


class Catalogue(Noun):
    """Every weight of one model, in the order in which the forward pass meets them.

    `experts_per_token` is how many experts of a block a token goes through; None where there are none, or not stated.
    """

    model: ModelRef
    architecture: str
    dtype: Literal["bf16", "fp16", "fp32"]
    hidden_size: int
    intermediate_size: int
    vocabulary: int
    max_context: int
    experts_per_token: int | None = None
    attention: AttentionGeometry
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def quantizable(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.quantizable)

    def by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}


class LayerGroup(Noun):
    """The unit of decision: layers that the engine fuses share one format; elsewhere a group is one layer."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def role(self) -> Role:
        return self.layers[0].role

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)
