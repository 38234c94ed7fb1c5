"""Builds tiny random-weight language models of many architectures, for tests that need a real model but no download."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import torch
import transformers
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from advisor.texts import token_windows

HIDDEN, BLOCKS, HEADS, KV_HEADS, MLP, VOCABULARY, CONTEXT = 64, 2, 4, 2, 128, 256, 256

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {"num_key_value_heads": KV_HEADS, "intermediate_size": MLP}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_ARCHITECTURES = {
    "llama": ("LlamaConfig", _GROUPED),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": 32}),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 32}),
    "gemma": ("GemmaConfig", {**_GROUPED, "head_dim": 16}),
    "gemma2": ("Gemma2Config", {**_GROUPED, "head_dim": 16, "sliding_window": 32}),
    "gemma3": ("Gemma3TextConfig", {**_GROUPED, "head_dim": 16, "sliding_window": 32}),
    "phi3": ("Phi3Config", _GROUPED),
    "gpt2": ("GPT2Config", {}),
    "gpt_neox": ("GPTNeoXConfig", {"intermediate_size": MLP}),
    "opt": ("OPTConfig", {"ffn_dim": MLP, "word_embed_proj_dim": HIDDEN}),
    "falcon": ("FalconConfig", {}),
    "mixtral": ("MixtralConfig", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**_GROUPED, **_EXPERTS, "moe_intermediate_size": MLP, "shared_expert_intermediate_size": 64},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", {**_GROUPED, **_EXPERTS, "moe_intermediate_size": MLP, "head_dim": 16}),
    "llama4": ("Llama4TextConfig", {**_GROUPED, "num_local_experts": 4, "head_dim": 16, "attention_chunk_size": 64}),
    "gpt_oss": ("GptOssConfig", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32}),
    "rwkv": ("RwkvConfig", {}),
    "mamba": ("MambaConfig", {"intermediate_size": MLP}),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            **_GROUPED,
            **_EXPERTS,
            "head_dim": 16,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "bamba": (
        "BambaConfig",
        {**_GROUPED, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16},
    ),
    "falcon_h1": (
        "FalconH1Config",
        {**_GROUPED, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_ssm": 128, "mamba_d_state": 16},
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            "num_key_value_heads": HEADS,
            "intermediate_size": MLP,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
        },
    ),
}


def tiny_model(architecture: str, seed: int = 0, **overrides) -> PreTrainedModel:
    """A model in eval mode, fp32, with weights drawn from `seed`; `overrides` are fields of its configuration.

    Norms, biases and other constants are moved off their ones and zeros, so that no two weights are alike. Inside
    `with torch.device("meta")` the model has shapes only.
    """
    name, own = _ARCHITECTURES[architecture]
    config = getattr(transformers, name)(**{**_COMMON, **own, **overrides})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose 256 tokens are the bytes: real text for models with a vocabulary of 256."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


_SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def merging_tokenizer(vocabulary: int = 320) -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges learned from a little of Python's documentation, and a chat template."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=ByteLevel.alphabet(), special_tokens=list(_SPECIAL.values())
    )
    tokenizer.train_from_iterator(_some_text(), trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL)
    made.chat_template = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
    return made


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """What transformers makes of a SentencePiece model with byte fallback, as Llama 2 and Mistral have it."""
    learned = Tokenizer(BPE())
    learned.pre_tokenizer = Metaspace(prepend_scheme="first")
    learned.train_from_iterator(_some_text(), BpeTrainer(vocab_size=200))
    model = json.loads(learned.to_str())["model"]
    pieces = [*_SPECIAL.values(), *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    merges = [tuple(merge) for merge in model["merges"]]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL)


def _some_text() -> list[str]:
    return [text for _, text in sorted(topics.items())[:20]]


def tiny_folder(folder: Path, architecture: str = "llama", dtype: torch.dtype = torch.bfloat16, **overrides) -> Path:
    """A folder of safetensors with a tokenizer, as `save_pretrained` writes it."""
    tiny_model(architecture, **overrides).to(dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def trained_folder(folder: Path, steps: int = 300, **overrides) -> Path:
    """The same for a tiny Llama that has learned a little of Python's documentation: quantizing it does harm."""
    model, tokenizer = tiny_model("llama", **overrides).train(), byte_tokenizer()
    windows = token_windows("python-docs", tokenizer, "calibration", 512, 64, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        ids = windows[torch.arange(16).add(16 * step).remainder(len(windows))]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
