"""Names every weight of a loaded model and says what it does: the step between loading and measuring."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

from advisor.structure import Weight, block_list, blocks_of, collect_weights, decide_block, refusal
from advisor.types import AttentionGeometry, Catalogue, Layer, ModelRef, Role
from advisor.weights import get_weight

_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_SAMPLES_PER_WEIGHT = 64
_FUSIONS = {Role.ATTENTION_QKV: "qkv", Role.MLP_GATE_UP: "gate_up", Role.EXPERT: "experts"}

# Forward order inside a block; norms are placed by name, since nothing in their shape tells before from after.
_STEP = {
    Role.ATTENTION_QKV: 1,
    Role.ATTENTION_OUTPUT: 3,
    Role.ROUTER: 5,
    Role.EXPERT: 6,
    Role.MLP_GATE_UP: 6,
    Role.MLP_DOWN: 6,
}
_NORM_STEPS = (
    (("input", "ln_1", "ln_attn", "pre_attention", "self_attn_layer_norm"), 0),
    (("post_feedforward", "post_mlp"), 7),
)
_QUANTIZED_PACKAGES = ("optimum.quanto", "bitsandbytes", "torchao", "compressed_tensors", "gptqmodel", "awq", "hqq")
_ATTENTION_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}
_STATE_KIND = "linear_attention"
_OTHER_TOWERS = ("vision", "audio", "image", "video", "speech")


def catalogue_model(model: nn.Module, ref: ModelRef) -> Catalogue:
    """Every parameter of a decoder-only language model, once, in forward order.

    Shapes suffice: the model may be on the meta device. The result's `model` is `ref` with its fingerprint.

    Raises:
        ModelError: the model is no plain decoder, is already quantized, or has blocks that cannot be understood.
    """
    config = _text_config(model)
    _refuse_quantized(model)
    embedding, head = _ends(model)
    weights = collect_weights(model)
    blocks = blocks_of(weights)
    hidden = _number(model, config, "hidden_size", "n_embd", "d_model")
    for block in blocks:
        decide_block(model, block, hidden)
    for weight in weights:
        # The head first: a tied tensor is catalogued as the embedding.
        weight.role = Role.LM_HEAD if weight.tensor is head.weight else weight.role
        weight.role = Role.EMBEDDING if weight.tensor is embedding.weight else weight.role
    layers = _layers(model, weights)
    return Catalogue(
        model=ref.model_copy(update={"fingerprint": fingerprint(model, layers)}),
        architecture=type(model).__name__,
        dtype=_dtype(model, weights),
        hidden_size=hidden,
        intermediate_size=max(_down_inputs(w) for w in weights if w.role in (Role.MLP_DOWN, Role.EXPERT)),
        vocabulary=head.weight.shape[0],
        max_context=_number(model, config, "max_position_embeddings", "n_positions", "seq_length"),
        experts_per_token=_experts_per_token(config, weights),
        attention=_attention(model, config, blocks),
        layers=layers,
    )


def decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """The model's decoder blocks, in order. Raises ModelError when it has no such list."""
    return list(model.get_submodule(block_list(model)))


def fingerprint(model: nn.Module, layers: Iterable[Layer]) -> str:
    """SHA-256 (hex) over architecture, names, shapes, dtypes and at most 64 evenly spaced elements of each weight.

    Only the sample is read, so that large models take no time: a change elsewhere in a weight goes unseen. Weights on
    the meta device contribute their structure alone. Saving and loading as safetensors leaves the fingerprint as it is.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for layer in sorted(layers, key=lambda layer: layer.parameter):
        weight = get_weight(model, layer).detach()
        digest.update(f"\n{layer.parameter} {layer.shape} {weight.dtype} ".encode())
        if not weight.is_meta and weight.numel():
            count = min(_SAMPLES_PER_WEIGHT, weight.numel())
            places = [i * (weight.numel() - 1) // max(count - 1, 1) for i in range(count)]
            sample = weight.flatten()[torch.tensor(places, device=weight.device)].cpu()
            digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------- what can be catalogued


def _text_config(model: nn.Module):
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise refusal(model, "it has no transformers configuration")
    if getattr(config, "is_encoder_decoder", False):
        raise refusal(model, "it is an encoder-decoder model")
    towers = [
        key
        for key in getattr(config, "sub_configs", {})
        if key.startswith(_OTHER_TOWERS) and getattr(config, key, None)
    ]
    if towers:
        raise refusal(model, "it reads more than text", towers)
    return config.get_text_config()


def _refuse_quantized(model: nn.Module) -> None:
    """Modules of a quantization package, tensor subclasses, and dtypes that are integers or a single byte wide."""
    names = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if type(module).__module__.startswith(_QUANTIZED_PACKAGES)
    ]
    for name, tensor in model.named_parameters():
        plain = type(tensor.data) is torch.Tensor and tensor.is_floating_point() and tensor.element_size() > 1
        names += [] if plain else [f"{name} ({tensor.dtype})"]
    if names:
        raise refusal(model, "it is already quantized", names, "choose the checkpoint in bf16, fp16 or fp32")


def _ends(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The token embedding and the vocabulary head."""
    try:
        ends = model.get_input_embeddings(), model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        ends = None, None
    if any(getattr(end, "weight", None) is None for end in ends):
        raise refusal(model, "it has no token embedding or no vocabulary head")
    return ends


def _number(model: nn.Module, config, *names: str) -> int:
    """The first of these configuration fields that holds a positive number."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    raise refusal(model, f"its configuration does not state {names[0]}")


def _dtype(model: nn.Module, weights: list[Weight]) -> str:
    """The dtype that all quantizable weights share; norms and routers may be kept in a wider one."""
    dtypes = sorted({str(w.tensor.dtype).removeprefix("torch.") for w in weights if _quantizable(w)})
    if len(dtypes) != 1 or getattr(torch, dtypes[0]) not in _DTYPES:
        raise refusal(model, "its weights are not all bf16, fp16 or fp32", dtypes, "load it in one of these dtypes")
    return _DTYPES[getattr(torch, dtypes[0])]


# ----------------------------------------------------------------------------------------------- facts


def _down_inputs(weight: Weight) -> int:
    """Input features of a matrix that writes the hidden state; 0 for an expert's matrix that reads it."""
    if weight.role is Role.EXPERT and weight.hint and weight.hint.reads_hidden:
        return 0
    return weight.tensor.shape[weight.input_axis]


def _experts_per_token(config, weights: list[Weight]) -> int | None:
    names = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token")
    stated = [getattr(config, name) for name in names if getattr(config, name, None)]
    return stated[0] if stated and any(weight.role is Role.EXPERT for weight in weights) else None


def _attention(model: nn.Module, config, blocks: list[list[Weight]]) -> AttentionGeometry:
    """Head counts as configured, K and V widths as built; local blocks as the configuration lists them."""
    kinds = getattr(config, "layer_types", None) or []
    if not set(kinds) <= {*_ATTENTION_KINDS, _STATE_KIND}:
        unknown = sorted(set(kinds) - _ATTENTION_KINDS - {_STATE_KIND})
        raise refusal(model, "nothing tells what its blocks keep of a sequence", unknown)
    states = sum(kind == _STATE_KIND for kind in kinds)
    heads = _number(model, config, "num_attention_heads", "n_head")
    with_cache = [block for block, kind in zip(blocks, kinds or [""] * len(blocks), strict=True) if kind != _STATE_KIND]
    window = getattr(config, "attention_chunk_size" if "chunked_attention" in kinds else "sliding_window", None)
    local = sum(kind not in ("full_attention", _STATE_KIND) for kind in kinds) if kinds else len(blocks)
    recurrent, convolution = _state_values(model, config) if states else (0, 0)
    latent = _latent_dim(config)
    kv_heads, head_dim = _latent_heads(config, heads) if latent else _kv_heads(model, config, with_cache, heads)
    return AttentionGeometry(
        blocks=len(blocks),
        attention_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        sliding_window=window if local else None,
        sliding_blocks=local if window else 0,
        latent_dim=latent,
        state_blocks=states,
        recurrent_values=recurrent,
        convolution_values=convolution,
    )


def _latent_dim(config) -> int | None:
    """Values that multi-head latent attention caches per token: the latent, and the key's rotated part."""
    rank = getattr(config, "kv_lora_rank", None)
    return rank + config.qk_rope_head_dim if rank else None


def _latent_heads(config, heads: int) -> tuple[int, int]:
    """(K/V heads, features of a key) as attention computes with them: every head has its own, made from the latent."""
    return heads, config.qk_nope_head_dim + config.qk_rope_head_dim


def _kv_heads(model: nn.Module, config, blocks: list[list[Weight]], heads: int) -> tuple[int, int]:
    """(K/V heads, features of a head), the same in all blocks that keep a cache."""
    stated = getattr(config, "num_key_value_heads", None)
    geometries = {_kv_heads_of_block(block, heads, stated) for block in blocks}
    kv_heads, head_dim = geometries.pop() if geometries else (0, 0)
    if geometries or not kv_heads:
        raise refusal(model, f"its q, k and v do not have the same widths in all blocks, or widths for {heads} heads")
    return kv_heads, head_dim


def _kv_heads_of_block(block: list[Weight], heads: int, stated: int | None) -> tuple[int, int]:
    """From the matrices, separate or fused: q, k and v span heads + 2 x K/V heads; a gate doubles the queries."""
    output = next(weight for weight in block if weight.role is Role.ATTENTION_OUTPUT)
    head_dim = output.features()[0] // heads
    width = sum(weight.features()[1] for weight in block if weight.role is Role.ATTENTION_QKV)
    if stated and width == 2 * (heads + stated) * head_dim:
        return stated, head_dim
    fits = head_dim and width > heads * head_dim and (width - heads * head_dim) % (2 * head_dim) == 0
    return (width - heads * head_dim) // (2 * head_dim) if fits else 0, head_dim


def _state_values(model: nn.Module, config) -> tuple[int, int]:
    """Values per sequence of a block's recurrent state, and of the inputs that its short convolution looks back on.

    As transformers shapes them: gated delta rule (Qwen3-Next) (v heads, k dim, v dim) and (2 k + v features, kernel);
    Mamba-2 (heads, head dim, state dim) and (heads x head dim + 2 groups x state dim, kernel).
    """
    if hasattr(config, "linear_num_value_heads"):
        keys, values = config.linear_key_head_dim, config.linear_value_head_dim
        features = 2 * config.linear_num_key_heads * keys + config.linear_num_value_heads * values
        return config.linear_num_value_heads * keys * values, features * config.linear_conv_kernel_dim
    if hasattr(config, "mamba_n_heads"):
        inner = config.mamba_n_heads * config.mamba_d_head
        features = inner + 2 * config.mamba_n_groups * config.mamba_d_state
        return inner * config.mamba_d_state, features * config.mamba_d_conv
    raise refusal(model, "its configuration does not state the size of its linear attention's state")


# ----------------------------------------------------------------------------------------------- layers


def _quantizable(weight: Weight) -> bool:
    return weight.is_matrix and weight.role not in (Role.NORM, Role.ROUTER, Role.OTHER)


def _layers(model: nn.Module, weights: list[Weight]) -> tuple[Layer, ...]:
    uses = defaultdict(list)
    for name, tensor in model.named_parameters(remove_duplicate=False):
        uses[id(tensor)].append(name.removesuffix(".weight"))
    partners = defaultdict(list)
    for weight in weights:
        partners[weight.owner, weight.role].append(weight)
    layers = []
    for weight in sorted(weights, key=_forward_key(weights)):
        fusion = _FUSIONS.get(weight.role) if len(partners[weight.owner, weight.role]) > 1 else None
        # No kernel joins what reads the hidden state with what reads a latent made from it.
        fusion = None if weight.reads_latent else fusion
        layer = Layer(
            name=weight.name,
            parameter=weight.parameter,
            role=weight.role,
            block=weight.block,
            shape=tuple(weight.tensor.shape),
            input_axis=weight.input_axis,
            quantizable=_quantizable(weight),
            fused_with=f"{weight.owner}:{fusion}" if fusion else None,
            fusion=fusion,
            tied_names=tuple(uses[id(weight.tensor)][1:]),
        )
        layers.append(layer)
    return tuple(layers)


def _forward_key(weights: list[Weight]):
    """Sort key of the forward pass: embeddings, blocks, final norm, head; biases right after their weights."""
    leaders = {_stem(weight.name): weight for weight in weights if not weight.is_bias}
    owners = {}
    for weight in weights:
        owners.setdefault(weight.owner, weight.index)

    def key(weight: Weight) -> tuple:
        leader = leaders.get(_stem(weight.name), weight)
        if weight.block is None:
            return (_outer_step(leader), leader.index, weight.is_bias)
        part = owners[leader.owner]
        return (2, weight.block, _inner_step(leader), part, leader.place, leader.index, weight.is_bias)

    return key


def _stem(name: str) -> str:
    return name.removesuffix("bias").rstrip("._")


def _outer_step(weight: Weight) -> int:
    """0 token embedding, 1 other input weights, 3 final norm and output projections, 4 head; the blocks are 2."""
    if weight.role in (Role.EMBEDDING, Role.LM_HEAD):
        return 0 if weight.role is Role.EMBEDDING else 4
    after = "embed" not in weight.name if weight.role is Role.NORM else "out" in weight.path[-1]
    return 3 if after else 1


def _inner_step(weight: Weight) -> int:
    if weight.role in _STEP:
        return _STEP[weight.role]
    if weight.part == "attention":
        return 2
    return next((step for words, step in _NORM_STEPS if any(word in weight.path[-1] for word in words)), 4)
