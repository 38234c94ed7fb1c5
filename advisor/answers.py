"""Lets a model answer prompts: the original and a plan read the same tokens and draw with the same random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from advisor.conversations import rendered
from advisor.errors import TextError
from advisor.types import AnswersRequest
from advisor.weights import device_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Asking:
    """How all prompts are asked; taken from the original, so that every variant is asked alike.

    Attributes:
        ends: ids of the tokens that end an answer.
    """

    request: AnswersRequest
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]
    max_context: int

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt, in the chat template where there is one, else of the bare text to be continued.

        Raises:
            TextError: prompt and answer are longer than the model's context, or the template refuses the prompt.
        """
        chats = bool(getattr(self.tokenizer, "chat_template", None))
        text = rendered((("user", prompt),), self.tokenizer, to_answer=True) if chats else prompt
        ids = self.tokenizer(text, add_special_tokens=not chats)["input_ids"]  # a template writes them itself
        if len(ids) + self.request.tokens > self.max_context:
            raise TextError(
                f"The prompt {prompt[:40]!r} has {len(ids):,} tokens: with an answer of {self.request.tokens:,} it is "
                f"longer than the model's context of {self.max_context:,}. Ask for shorter answers, or shorten it."
            )
        return ids

    def key(self, ids: list[int], answering: str) -> str:
        """A hash of all that an answer depends on; `answering` names the weights, and what computes with them."""
        asked = (self.request.tokens, self.request.temperature, self.request.seed, self.ends, tuple(ids))
        return hashlib.sha256(repr((asked, answering)).encode()).hexdigest()

    @torch.no_grad()
    def answer(
        self, model: PreTrainedModel, ids: list[int], advance: Callable[[], None] = lambda: None
    ) -> tuple[str, bool]:
        """What the model says after these tokens, and whether it was cut off at the most tokens.

        Args:
            advance: called after every token; what it raises ends the answer.
        """
        from transformers import GenerationConfig, StoppingCriteriaList

        def watch(tokens: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
            advance()
            return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

        # Said in full: what is left open, transformers fills from each variant's own files.
        drawn = {"do_sample": True, "temperature": self.request.temperature, "top_k": 0, "top_p": 1.0}
        config = GenerationConfig(
            max_new_tokens=self.request.tokens,
            eos_token_id=list(self.ends) or None,
            pad_token_id=self.ends[0] if self.ends else 0,
            repetition_penalty=1.0,
            **(drawn if self.request.temperature > 0 else {"do_sample": False}),
        )
        tokens = torch.tensor([ids], device=device_of(model))
        with _seeded(self.request.seed, tokens):
            found = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([watch]),
            )[0, len(ids) :].tolist()
        ended = bool(found) and found[-1] in self.ends
        return self.tokenizer.decode(found, skip_special_tokens=True).strip(), not ended


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of the tokens that end an answer of this model."""
    found = model.generation_config.eos_token_id if model.generation_config is not None else None
    found = tokenizer.eos_token_id if found is None else found
    return tuple(found) if isinstance(found, (list, tuple)) else () if found is None else (found,)


@contextmanager
def _seeded(seed: int, tokens: torch.Tensor) -> Iterator[None]:
    """Random numbers that follow from `seed` and the prompt alone; the process's own go on as if nothing was drawn."""
    digest = hashlib.sha256(repr((seed, tokens.tolist())).encode()).digest()
    with torch.random.fork_rng([tokens.device] if tokens.device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        yield
