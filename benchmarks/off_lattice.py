"""Moves a Llama-like model's weights off the lattice that they were de-quantized from, leaving its function unchanged.

The demo model comes as 4-bit GGUF: rounding it again on a matching grid would cost nothing and flatter INT4. Rescaling
channels by random factors that cancel one another gives weights like those of a model that was never quantized.
"""

from __future__ import annotations

from pathlib import Path

import torch

from advisor import models


@torch.no_grad()
def move_off_lattice(model, seed: int = 0, sigma: float = 0.15) -> None:
    """Rescale in place by log-normal factors of width `sigma`, in fp32, then round to what bf16 can hold.

    A factor goes into a norm's gain and out of the matrices that read it, into `up_proj` rows and out of `down_proj`
    columns, into `v_proj` rows and out of `o_proj` columns: one factor for each key-value channel, which every query
    head of its group reads. The final norm stays: the head that reads it is tied to the embedding.
    """
    generator = torch.Generator().manual_seed(seed)

    def factors(count: int) -> torch.Tensor:
        return torch.exp(sigma * torch.randn(count, generator=generator))

    heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    dtype = model.dtype
    model.float()
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        for norm, readers in (
            (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            scale = factors(norm.weight.numel())
            norm.weight *= scale
            for reader in readers:
                reader.weight /= scale
        scale = factors(mlp.up_proj.out_features)
        mlp.up_proj.weight *= scale[:, None]
        mlp.down_proj.weight /= scale
        scale = factors(attention.v_proj.out_features)
        attention.v_proj.weight *= scale[:, None]
        attention.o_proj.weight /= scale.view(kv_heads, 1, -1).expand(-1, heads // kv_heads, -1).reshape(-1)
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    model.to(dtype)


def write_off_lattice(folder: Path, source: str = "smollm2") -> Path:
    """Write the moved model and its tokenizer as a bf16 folder of safetensors, once."""
    if not folder.is_dir():
        loaded = models.load(source, lambda progress: None, dtype="bf16", device="cpu")
        move_off_lattice(loaded.model)
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    return folder
