"""What GGUF says of a model beside its weights: architecture, hyperparameters, tensor names, and rotary embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from advisor.errors import PlanError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PretrainedConfig

ROPE_FACTORS = "rope_freqs.weight"

# The modules that decoders of these architectures are made of, as transformers names them.
_OUTER = ("model.embed_tokens", "model.norm", "lm_head")
_INNER = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.q_norm",
    "self_attn.k_norm",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
_LONG_CONTEXT = "choose a checkpoint with plain rotary embeddings, or another export"


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp knows an architecture of transformers.

    Attributes:
        name: `general.architecture`.
        pairs_neighbours: it rotates neighbouring values of a head together, not its two halves as transformers does:
            the rows of queries and keys are stored interleaved.
        reads_rope_factors: it divides the rotary frequencies by a tensor of the file.
    """

    name: str
    pairs_neighbours: bool = False
    reads_rope_factors: bool = False


_LLAMA = Architecture("llama", pairs_neighbours=True, reads_rope_factors=True)
# By `model_type`. Mistral is Llama with a window, see `_context`.
_ARCHITECTURES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
}


def check_architecture(name: str) -> None:
    """Raises PlanError for a model class, such as `LlamaForCausalLM`, that cannot be written here."""
    kind = name.removesuffix("ForCausalLM").lower()
    if kind not in _ARCHITECTURES:
        raise PlanError(_unknown(kind))


def architecture_of(config: PretrainedConfig) -> Architecture:
    """Raises PlanError for models that llama.cpp runs in another way than transformers does, or that are unknown."""
    known = _ARCHITECTURES.get(config.model_type)
    if known is None:
        raise PlanError(_unknown(config.model_type))
    if config.hidden_act != "silu":
        raise PlanError(
            f"llama.cpp computes {known.name} models with SiLU, but this one has {config.hidden_act}: choose another "
            "export."
        )
    return known


def _unknown(model_type: str) -> str:
    *first, last = _ARCHITECTURES
    return (
        f"{model_type} models cannot be written as GGUF yet ({', '.join(first)} and {last} can): choose another "
        "export, or convert the model with llama.cpp's own convert_hf_to_gguf.py."
    )


def layer_names(architecture: str, blocks: int) -> dict[str, str]:
    """Tensor name in the file -> parameter name in the model, for every tensor that such a model may have.

    Raises KeyError for an architecture that is not written here.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    if architecture not in {known.name for known in _ARCHITECTURES.values()}:
        raise KeyError(architecture)
    by_name = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
    names = get_tensor_name_map(by_name[architecture], blocks)
    modules = [*_OUTER, *(f"model.layers.{block}.{inner}" for block in range(blocks) for inner in _INNER)]
    return {
        f"{names.get_name(module)}.{kind}": f"{module}.{kind}"
        for module in modules
        if names.get_name(module)
        for kind in ("weight", "bias")
    }


def in_file_order(
    architecture: Architecture, config: PretrainedConfig, name: str, weight: torch.Tensor
) -> torch.Tensor:
    """The weight or bias of parameter `name` with its rows as llama.cpp expects them; shape and dtype stay.

    Where neighbours are rotated together, row i of the first half of a head is followed by row i of its second half.
    """
    heads = _rotated_heads(architecture, config, name)
    if not heads:
        return weight
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def in_model_order(
    architecture: Architecture, config: PretrainedConfig, name: str, weight: torch.Tensor
) -> torch.Tensor:
    """What `in_file_order` turned, turned back."""
    heads = _rotated_heads(architecture, config, name)
    if not heads:
        return weight
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _rotated_heads(architecture: Architecture, config: PretrainedConfig, name: str) -> int:
    """The heads whose rows are stored interleaved in parameter `name`; 0 for all other parameters."""
    if not architecture.pairs_neighbours:
        return 0
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return heads.get(name.split(".")[-2], 0)


def head_dim(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def write_hyperparameters(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Everything that llama.cpp needs to build the graph. Raises PlanError for rotary embeddings that it lacks."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_rope(writer, config)


def _context(config: PretrainedConfig) -> int:
    """Tokens for which llama.cpp computes what the model does: it has no sliding window in these architectures."""
    window = getattr(config, "sliding_window", None)
    slides = window and "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    return min(window, config.max_position_embeddings) if slides else config.max_position_embeddings


def _write_rope(writer: GGUFWriter, config: PretrainedConfig) -> None:
    from gguf import RopeScalingType

    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise PlanError(
            f"GGUF export knows no partly rotated heads, which {config.model_type} has here: {_LONG_CONTEXT}."
        )
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn" and rope.keys() <= {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}:
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    elif kind not in ("default", "llama3"):
        raise PlanError(
            f"GGUF export knows no rotary embeddings of the kind {kind!r} with these settings: {_LONG_CONTEXT}."
        )


def rope_factors(architecture: Architecture, config: PretrainedConfig) -> torch.Tensor | None:
    """What llama.cpp divides the rotary frequencies by, `(head_dim / 2,)` fp32; None where they are plain.

    Only the Llama 3 scaling needs it. Raises PlanError for an architecture that does not read the tensor.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope: dict[str, Any] = config.rope_parameters
    if rope.get("rope_type", "default") != "llama3":
        return None
    if not architecture.reads_rope_factors:
        raise PlanError(
            f"llama.cpp scales no rotary embeddings of {architecture.name} the Llama 3 way: {_LONG_CONTEXT}."
        )
    # Computed anew: a model that was cast to 16 bits has cast its own frequencies too.
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    dimensions = head_dim(config)
    plain = rope["rope_theta"] ** -(torch.arange(0, dimensions, 2, dtype=torch.int64).float() / dimensions)
    return plain / scaled
