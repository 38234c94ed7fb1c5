"""Moves a model's weights off the grid that they were once rounded to, without changing what the model computes.

The demo model is de-quantized from Q4_1: every group of 32 weights holds at most 16 equally spaced values, and a format
whose groups match that grid looks better than it would on a released checkpoint. Rescaling channels between a layer and
the next one that reads them (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", section 4.1) leaves the function as it was and gives every weight of a group another step.
"""

from __future__ import annotations

from pathlib import Path

import torch

from advisor import models
from advisor.folders import save_model

# Norms that multiply by their weight, and v_proj, o_proj, up_proj and down_proj by these names; Gemma's 1 + weight is
# another function of the weight.
_KNOWN = ("llama", "mistral", "qwen2", "qwen3")


@torch.no_grad()
def move_off_lattice(
    model, seed: int = 0, sigma: float = 0.15, round_to: torch.dtype | None = torch.bfloat16
) -> dict[str, torch.Tensor]:
    """Multiply the weights of `model`, in place, by factors that cancel out between layers.

    Every weight is multiplied once, in fp32, then rounded to `round_to` (None keeps fp32) and stored in its own dtype.

    Args:
        sigma: standard deviation of a factor's logarithm.

    Returns:
        The factors by parameter name, each of a shape that broadcasts to the parameter.

    Raises:
        ValueError: the architecture is not one whose factors are known to cancel.
    """
    factors = cancelling_factors(model, seed, sigma)
    parameters = dict(model.named_parameters())
    for name, factor in factors.items():
        moved = parameters[name].float() * factor.to(parameters[name].device)
        parameters[name].copy_(moved if round_to is None else moved.to(round_to))
    return factors


def cancelling_factors(model, seed: int, sigma: float) -> dict[str, torch.Tensor]:
    """fp32 factors by parameter name: log-normal, and each undone by the layer that reads the channel.

    The final norm and the head stay as they are where the head is tied to the embedding: nothing else could undo them.

    Raises:
        ValueError: the architecture is not one whose factors are known to cancel.
    """
    config = model.config
    if config.model_type not in _KNOWN:
        raise ValueError(f"{config.model_type} is not among {', '.join(_KNOWN)}: its factors might not cancel")
    random = torch.Generator().manual_seed(seed)
    present = {name for name, _ in model.named_parameters()}
    factors: dict[str, torch.Tensor] = {}

    def draw(channels: int) -> torch.Tensor:
        return torch.exp(sigma * torch.randn(channels, generator=random))

    def rows(module: str, factor: torch.Tensor) -> None:
        _multiply(factors, f"{module}.weight", factor[:, None])
        if f"{module}.bias" in present:
            _multiply(factors, f"{module}.bias", factor)

    def columns(module: str, factor: torch.Tensor) -> None:
        _multiply(factors, f"{module}.weight", 1 / factor[None, :])

    def norm(module: str, readers: tuple[str, ...]) -> None:
        factor = draw(config.hidden_size)
        _multiply(factors, f"{module}.weight", factor)
        for reader in readers:
            columns(reader, factor)

    for index in range(config.num_hidden_layers):
        block = f"model.layers.{index}"
        attention, mlp = f"{block}.self_attn", f"{block}.mlp"
        norm(f"{block}.input_layernorm", tuple(f"{attention}.{part}_proj" for part in "qkv"))
        norm(f"{block}.post_attention_layernorm", (f"{mlp}.gate_proj", f"{mlp}.up_proj"))
        inner = draw(config.intermediate_size)
        rows(f"{mlp}.up_proj", inner)
        columns(f"{mlp}.down_proj", inner)
        value = draw(config.num_key_value_heads * _head_size(config))
        rows(f"{attention}.v_proj", value)
        columns(f"{attention}.o_proj", _per_query_head(value, config))
    if not config.tie_word_embeddings:
        norm("model.norm", ("lm_head",))
    return factors


def write_off_lattice(folder: str | Path, source: str = "smollm2", seed: int = 0, sigma: float = 0.15) -> None:
    """Write `source`, moved off its lattice, with its tokenizer to `folder` as safetensors in its own dtype.

    Raises:
        ModelError: the model cannot be found or read.
        ValueError: its architecture is not known here.
        OSError: the folder cannot be written.
    """
    loaded = models.load(source, lambda progress: None, dtype="own", device="cpu")
    move_off_lattice(loaded.model, seed, sigma)
    save_model(loaded.model, loaded.tokenizer, Path(folder))


def _multiply(factors: dict[str, torch.Tensor], parameter: str, factor: torch.Tensor) -> None:
    factors[parameter] = factors[parameter] * factor if parameter in factors else factor


def _per_query_head(value: torch.Tensor, config) -> torch.Tensor:
    # One value head feeds the query heads of its group, which lie next to each other.
    heads = value.view(config.num_key_value_heads, _head_size(config))
    return heads.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, 0).flatten()


def _head_size(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
