"""Runs a model from the middle: the blocks before a layer are computed once and replayed for every candidate in it.

The model's own forward always runs, with the finished blocks replaced by their stored output. So masks, rotary
embeddings, soft caps and the final norm are whatever the architecture makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from advisor.catalogue import decoder_blocks
from advisor.scoring import final_hidden, replaced_forward
from advisor.types import Layer, Role

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOLERANCE = 1e-3  # of the hidden states' size; the same computation differs by rounding only, another by far more


class _Reached(Exception):
    """Stops a forward pass once the block that was asked for has given its output."""

    def __init__(self, hidden: torch.Tensor):
        self.hidden = hidden


def first_block(layer: Layer, blocks: int) -> int:
    """The first of `blocks` blocks that a layer can influence; `blocks` for the vocabulary head."""
    if layer.block is not None:
        return layer.block
    return blocks if layer.role is Role.LM_HEAD else 0


class Blocks:
    """The decoder blocks of a model, run in part: `hidden` is `(sequences, length, hidden)` at the input of a block.

    With gradients enabled every result is part of the graph that begins at `hidden`.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.blocks = decoder_blocks(model)
        # How many values a block returns after the hidden state; None where it returns that alone, in no tuple.
        self._further: int | None = None

    def __len__(self) -> int:
        return len(self.blocks)

    def advance(self, ids: torch.Tensor, start: int, hidden: torch.Tensor | None, stop: int) -> torch.Tensor:
        """From the input of block `start` to the input of block `stop`; from the tokens where `start` is 0."""

        def reached(module, args, output):
            raise _Reached(self._hidden_of(output))

        hook = self.blocks[stop - 1].register_forward_hook(reached)
        try:
            with self._skipping(start, hidden):
                final_hidden(self.model, ids)
        except _Reached as at:
            return at.hidden
        finally:
            hook.remove()
        raise RuntimeError(f"block {stop - 1} was never called")

    def final(self, ids: torch.Tensor, start: int, hidden: torch.Tensor | None) -> torch.Tensor:
        """From the input of block `start` to the hidden states after the final norm."""
        with self._skipping(start, hidden):
            return final_hidden(self.model, ids)

    @torch.no_grad()
    def trace(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """The output of every block, in order: one forward pass."""
        outputs: list[torch.Tensor] = []

        def keep(module, args, output):
            outputs.append(self._hidden_of(output))

        with ExitStack() as hooks:
            for block in self.blocks:
                hooks.callback(block.register_forward_hook(keep).remove)
            final_hidden(self.model, ids)
        return outputs

    @torch.no_grad()
    def faithful(self, ids: torch.Tensor) -> bool:
        """Whether the model run from the middle gives what it gives from the start.

        Architectures whose later blocks read the insides of earlier ones (shared key-value states) do not.
        """
        whole = final_hidden(self.model, ids)
        outputs = self.trace(ids)
        final_hidden(self.model, ids.flip(1))  # what stays inside is then another text's
        starts = {1, len(self) // 2, len(self) - 1} - {0}
        return all(
            (self.final(ids, start, outputs[start - 1]) - whole).norm() <= _TOLERANCE * whole.norm() for start in starts
        )

    def _hidden_of(self, output: torch.Tensor | tuple) -> torch.Tensor:
        self._further = len(output) - 1 if isinstance(output, tuple) else None
        return output if self._further is None else output[0]

    @contextmanager
    def _skipping(self, start: int, hidden: torch.Tensor | None) -> Iterator[None]:
        output = hidden if self._further is None else (hidden, *[None] * self._further)
        with ExitStack() as stack:
            for block in self.blocks[:start]:
                stack.enter_context(replaced_forward(block, lambda *args, **kwargs: output))
            yield


class Replay:
    """Final hidden states of every batch, from any block on, keeping only the hidden states at that block's input.

    Args:
        blocks: of a causal language model in evaluation mode.
        batches: token ids, each `(sequences, length)`.
    """

    def __init__(self, blocks: Blocks, batches: list[torch.Tensor]):
        self.blocks, self.batches = blocks, batches
        self.position = 0
        self._reuse = len(blocks) > 1 and blocks.faithful(batches[0][:1])
        self._hidden: list[torch.Tensor | None] = [None] * len(batches)

    def move_to(self, block: int) -> None:
        """Stand before `block`: run the blocks in between once, for every batch.

        Where the model cannot be run from the middle, stay at the start.

        Raises:
            ValueError: the walk only goes forward.
        """
        if block < self.position:
            raise ValueError(f"already before block {self.position}, cannot go back to {block}")
        if self._reuse and block > self.position:
            self._hidden = [
                self.blocks.advance(ids, self.position, hidden, block)
                for ids, hidden in zip(self.batches, self._hidden, strict=True)
            ]
            self.position = block

    def final_hidden(self) -> Iterator[torch.Tensor]:
        """Per batch `(sequences, length, hidden)` after the final norm, from the current position on."""
        for ids, hidden in zip(self.batches, self._hidden, strict=True):
            yield self.blocks.final(ids, self.position, hidden)
