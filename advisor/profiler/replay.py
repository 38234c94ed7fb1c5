"""Runs a model from the middle: the blocks before a layer are computed once and replayed for every candidate in it.

The model's own forward always runs, with the finished blocks replaced by their stored output. So masks, rotary
embeddings, soft caps and the final norm are whatever the architecture makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch

from advisor.scoring import final_hidden, replaced_forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Reached(Exception):
    """Stops a forward pass once the block that was asked for has given its output."""

    def __init__(self, hidden: torch.Tensor):
        self.hidden = hidden


class Replay:
    """Final hidden states of every batch, from any block on, keeping only the hidden states at that block's input.

    Args:
        model: a causal language model in evaluation mode.
        blocks: its decoder blocks, in order.
        batches: token ids, each `(sequences, length)`.
    """

    def __init__(self, model: PreTrainedModel, blocks: list[torch.nn.Module], batches: list[torch.Tensor]):
        self.model, self.blocks, self.batches = model, blocks, batches
        self.position = 0
        self.reuse = True
        self._hidden: list[torch.Tensor | None] = [None] * len(batches)
        self._returns_tuple = False

    def move_to(self, block: int) -> None:
        """Stand before `block`: run the blocks in between once, for every batch. Without `reuse`, stay at the start.

        Raises:
            ValueError: the walk only goes forward.
        """
        if block < self.position:
            raise ValueError(f"already before block {self.position}, cannot go back to {block}")
        if self.reuse and block > self.position:
            self._hidden = [self._input_of(block, index) for index in range(len(self.batches))]
            self.position = block

    def stop_reusing(self) -> None:
        """Run the whole model for every candidate from now on."""
        self.reuse, self.position = False, 0
        self._hidden = [None] * len(self.batches)

    def final_hidden(self) -> Iterator[torch.Tensor]:
        """Per batch `(sequences, length, hidden)` after the final norm, from the current position on."""
        for index in range(len(self.batches)):
            with self._skipping(index):
                yield final_hidden(self.model, self.batches[index])

    def _input_of(self, block: int, index: int) -> torch.Tensor:
        def stop(module, args, output):
            self._returns_tuple = isinstance(output, tuple)
            raise _Reached(output[0] if self._returns_tuple else output)

        hook = self.blocks[block - 1].register_forward_hook(stop)
        try:
            with self._skipping(index):
                final_hidden(self.model, self.batches[index])
        except _Reached as reached:
            return reached.hidden
        finally:
            hook.remove()
        raise RuntimeError(f"block {block - 1} was never called")

    def _skipping(self, index: int) -> ExitStack:
        stored = self._hidden[index]
        output = (stored,) if self._returns_tuple else stored
        stack = ExitStack()
        for block in self.blocks[: self.position]:
            stack.enter_context(replaced_forward(block, lambda *args, **kwargs: output))
        return stack
