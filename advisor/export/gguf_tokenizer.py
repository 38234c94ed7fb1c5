"""Writes a tokenizer into a GGUF file: vocabulary, merges or scores, special tokens, chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from advisor.demo import demo_gguf
from advisor.errors import PlanError
from advisor.types import ModelRef

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

# How llama.cpp calls what cuts text into words before the merges, by the pattern of the tokenizer's own: the patterns
# are those of src/llama-vocab.cpp, and of the models' tokenizer.json files.
_GPT2 = "gpt-2"
_DIGITS_THEN_GPT2 = "smollm"
_BY_PATTERN = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
    r"|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
    r"|\s+": "qwen2",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
# SentencePiece's mark of a space, and the score of a piece that no merge makes: below all that one does.
_SPACE = "▁"
_UNMERGED = -1e9
_TODO = "choose another export, or convert the model with llama.cpp's own convert_hf_to_gguf.py"


class _Token(NamedTuple):
    text: str
    type: int
    score: float


def write_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, ref: ModelRef, vocabulary: int) -> None:
    """Write what llama.cpp needs to read and write text as the model's tokenizer does.

    A model that came from a GGUF file keeps that file's tokenizer, whatever transformers made of it. Byte-level BPE
    becomes the model `gpt2`, SentencePiece's BPE with byte fallback `llama`.

    Args:
        vocabulary: rows of the embedding; rows beyond the tokenizer's are marked unused.

    Raises:
        PlanError: llama.cpp has no such tokenizer, or none that is sure to cut words alike.
    """
    if ref.kind in ("demo", "gguf"):
        _copy(writer, demo_gguf(lambda progress: None) if ref.kind == "demo" else Path(ref.source))
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(f"{type(tokenizer).__name__} has no tokenizer.json")
    described = json.loads(backend.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise _refused(f"its model is {model['type']}, not BPE")
    merges = [
        pair if isinstance(pair, str) else " ".join(part.replace(" ", "Ġ") for part in pair) for pair in model["merges"]
    ]
    if not merges:
        raise _refused("it has no merges, without which llama.cpp loads none")
    byte_level = not model.get("byte_fallback")
    if byte_level:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_words(described))
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
    tokens = _tokens(tokenizer, model, merges, vocabulary)
    writer.add_token_list([token.text for token in tokens])
    writer.add_token_types([token.type for token in tokens])
    if not byte_level:
        writer.add_token_scores([token.score for token in tokens])
    writer.add_token_merges(merges)  # transformers reads them for SentencePiece too
    writer.add_add_space_prefix(not byte_level and _prefixes_space(described))
    _write_special(writer, tokenizer)


def _refused(why: str) -> PlanError:
    return PlanError(f"The tokenizer cannot be written as GGUF ({why}): {_TODO}.")


def _copy(writer: GGUFWriter, source: Path) -> None:
    from gguf import GGUFReader

    for name, field in GGUFReader(source).fields.items():
        if name.startswith("tokenizer."):
            writer.add_key_value(name, field.contents(), *field.types[:2])


def _words(described: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer cuts text into words."""
    normalizers = _steps(described["normalizer"], "normalizers")
    if any(step["type"] != "NFC" for step in normalizers):  # llama.cpp's users normalize to NFC themselves
        raise _refused(f"llama.cpp lacks its normalizer {normalizers[-1]['type']}")
    steps = _steps(described["pre_tokenizer"], "pretokenizers")
    kinds = [step["type"] for step in steps]
    if kinds and kinds[-1] == "ByteLevel" and not steps[-1]["add_prefix_space"]:
        by_gpt2 = steps[-1]["use_regex"]
        if kinds == ["ByteLevel"] and by_gpt2:
            return _GPT2
        if kinds == ["Digits", "ByteLevel"] and by_gpt2 and steps[0]["individual_digits"]:
            return _DIGITS_THEN_GPT2
        if kinds == ["Split", "ByteLevel"] and not by_gpt2 and steps[0]["behavior"] == "Isolated":
            found = _BY_PATTERN.get(steps[0]["pattern"].get("Regex", ""))
            if found:
                return found
    raise _refused(f"it cuts words by {', '.join(kinds) or 'nothing'} in a way that llama.cpp has no name for")


def _steps(described: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    if described is None:
        return []
    return described[inside] if described["type"] == "Sequence" else [described]


def _prefixes_space(described: dict[str, Any]) -> bool:
    """Whether a space is put before the text, as SentencePiece does by default."""
    steps = _steps(described["normalizer"], "normalizers") + _steps(described["pre_tokenizer"], "pretokenizers")
    return any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in steps
    )


def _tokens(
    tokenizer: PreTrainedTokenizerBase, model: dict[str, Any], merges: list[str], vocabulary: int
) -> list[_Token]:
    """One token for each row of the embedding, in order."""
    from gguf import TokenType

    texts = {index: text for text, index in tokenizer.get_vocab().items()}
    if max(texts) >= vocabulary:
        raise _refused(f"it has {max(texts) + 1} tokens, but the embedding {vocabulary} rows")
    added, unknown = tokenizer.added_tokens_decoder, model.get("unk_token")
    # SentencePiece merges the best score first, tokenizer.json the first merge: the rank of the merge is the score.
    ranks = {merge.replace(" ", ""): -float(rank) for rank, merge in reversed(list(enumerate(merges)))}

    def token(index: int) -> _Token:
        text = texts.get(index)
        if text is None:
            return _Token(f"[PAD{index}]", TokenType.UNUSED, _UNMERGED)
        if text == unknown and model.get("byte_fallback"):
            kind = TokenType.UNKNOWN
        elif index in added:
            kind = TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED
        elif model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kind = TokenType.BYTE
        else:
            kind = TokenType.NORMAL
        return _Token(text, kind, ranks.get(text, _UNMERGED))

    return [token(index) for index in range(vocabulary)]


def _write_special(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)
