"""Scores of all layers and formats at once from a few backward passes: the Fisher information along rounding errors.

For a sequence of T predictions, labels y_t drawn from the model's own p(. | x_<t), L = -sum_t log p(y_t) and the
gradient g of a layer's weight, let s = <g, dW>. Since E[g g^T] is the Fisher information of the sequence, which is the
Hessian of KL at zero,

    kl(dW)        ~ E[s^2] / (2 T)                             unbiased to second order in dW
    delta_nll(dW) ~ <g_text, dW> / T + kl(dW)                  g_text: with the text's own labels
    kl(set of dW) ~ E[(sum of their s)^2] / (2 T)              interactions between layers included

A format that rounds activations too moves the output of its layer by more than dW does: s is then the product of that
movement with the gradient at the output, and everything else stays as it is.

(Amari 1998, "Natural gradient works efficiently in learning", for the Fisher metric; the directional estimate only
needs dW, whatever quantizer made it.)

The walk goes backwards block by block: each is run again from its stored input (gradient checkpointing), takes all its
backward passes, and forgets what it held. Memory beyond the model: one hidden state per token and block, the
activations of one block, and the rounding errors of a slice of rows; of fused experts and of the head, of the layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from advisor.errors import ModelError
from advisor.formats.quantize import Quantizer, fake_quantize
from advisor.matmul import bf16_where_fast, fast_fp32_matmul
from advisor.profiler.replay import Blocks, first_block
from advisor.profiler.taps import Deltas, Taps, Use, embedding_scores, linear_scores
from advisor.scoring import Head
from advisor.types import Format, Layer, Role
from advisor.weights import device_of, get_weight, offloaded, read_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Scores = dict[tuple[str, str], torch.Tensor]

# One batch of backward passes is what a killed run loses, and the rounding errors are made anew in each.
_BATCH_TOKENS = {"cpu": 2048, "mps": 4096, "cuda": 8192}


def batch_sequences(device: torch.device, length: int) -> int:
    """How many sequences of `length` tokens take their backward passes together."""
    return max(1, _BATCH_TOKENS.get(device.type, 4096) // length)


@dataclass(frozen=True)
class OperatingPoint:
    """A model that holds a plan: gradients are taken there, of the KL to the unquantized model too.

    Attributes:
        originals: layer name -> its unquantized weight, for layers whose weight in the model is another.
        reference: log-probabilities `(rows, vocabulary)` of the unquantized model, by sequence and slice of its rows.
    """

    originals: Mapping[str, torch.Tensor]
    reference: Callable[[int, slice], torch.Tensor]


class FisherPass:
    """All backward passes of one batch of sequences at a time.

    At an `OperatingPoint`, dW leads from the plan's weight to the candidate's, and the second column of the scores has
    the unquantized model's distribution in place of a label: its gradient is that of KL(p_full || p_plan).

    Args:
        model: in evaluation mode, no parameter requiring gradients.
        candidates: what to score.
        draws: labels drawn per token; the spread over sequences and draws is the error bar.
        seed: of the draws; a sequence draws the same labels in whatever batch it is.
        quantizer: what a format makes of a weight.
        fast: use bf16 matrix units where a CPU has them: the rounding of a gradient is random and small beside the
            spread of the draws.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        candidates: Iterable[tuple[Layer, Format]],
        draws: int,
        seed: int = 0,
        quantizer: Quantizer = fake_quantize,
        fast: bool = True,
        at: OperatingPoint | None = None,
    ):
        self.model, self.draws, self.seed, self.quantizer, self.fast = model, draws, seed, quantizer, fast
        self.at = at
        self.candidates = tuple(candidates)
        self.layers: dict[str, Layer] = {}
        self.formats: dict[str, list[Format]] = defaultdict(list)
        for layer, fmt in self.candidates:
            self.layers[layer.name] = layer
            self.formats[layer.name].append(fmt)
        self.blocks, self.head = Blocks(model), Head(model)
        self.taps = Taps(model, self.layers.values())
        if self.taps.direct and offloaded(model):
            raise ModelError(
                f"{self.taps.direct[0].name} is a fused weight that is kept off the device, where no gradient of it "
                "can be taken: measure with --method exact, or on a device with more memory."
            )
        self._lowest = min(first_block(layer, len(self.blocks)) for layer in self.layers.values())
        self._faithful: bool | None = None

    def run(self, ids: torch.Tensor, first: int, advanced: Callable[[int, int], None]) -> Scores:
        """The scores <g, dW> of every candidate: `(sequences, 1 + draws)` each, fp64, on the CPU.

        The first column has the text's own labels, the others drawn ones; at an operating point the unquantized model's
        distribution stands between them. Arguments and errors are those of `walk`.
        """
        return {key: found for part in self.walk(ids, first, advanced) for key, found in part.items()}

    def walk(self, ids: torch.Tensor, first: int, advanced: Callable[[int, int], None]) -> Iterator[Scores]:
        """The scores of `run` as they are known: those of each block once it is walked, all others at the end.

        Args:
            ids: `(sequences, length)` on the model's device.
            first: the number of the first sequence among all.
            advanced: called with (blocks walked, blocks to walk).

        Raises:
            ModelError: a weight takes part in the model in a way that cannot be watched.
        """
        with torch.no_grad(), self.taps.recording(), self._precision():
            if self._faithful is None:
                self._faithful = len(self.blocks) > 1 and self.blocks.faithful(ids[:1])
            walk = _Walk(self, ids, first, self._faithful)
            start = len(self.blocks) if self._faithful else 0
            steps = max(1, 1 + start - self._lowest)
            gradients, given = walk.tail(start), set()
            advanced(1, steps)
            for block in range(start - 1, self._lowest - 1, -1):
                gradients = walk.block(block, gradients)
                done = walk.scores_of(block)
                given |= done.keys()
                yield done
                advanced(1 + start - block, steps)
            yield {key: found for key, found in walk.scores().items() if key not in given}

    @contextmanager
    def _precision(self) -> Iterator[None]:
        device = device_of(self.model)
        with fast_fp32_matmul(device), bf16_where_fast(device, self.model.dtype) if self.fast else nullcontext():
            yield


class _Walk:
    """One batch on its way back through the model.

    Gradients are `(passes, sequences, length, hidden)`. Sequences go together, or one by one where a weight's own
    gradient has to be taken: the gradients of two sequences would be added up in it.
    """

    def __init__(self, owner: FisherPass, ids: torch.Tensor, first: int, from_middle: bool):
        self.owner, self.ids, self.first = owner, ids, first
        self.passes = 1 + owner.draws + (owner.at is not None)
        self.inputs = owner.blocks.trace(ids) if from_middle else []
        # Experts see the routed tokens of all sequences at once, and nothing says which token was whose.
        routed = any(layer.role is Role.EXPERT for layer in owner.layers.values())
        together = from_middle and not owner.taps.direct and not routed
        step = len(ids) if together else 1
        self._parts = [slice(start, start + step) for start in range(0, len(ids), step)]
        self._found: dict[str, torch.Tensor] = {}
        self._head_errors: dict[str, tuple[torch.Tensor, list[torch.Tensor]]] = {}

    def tail(self, start: int) -> torch.Tensor:
        """From the input of block `start` through norm and vocabulary head, and back to it."""
        gradients = self._segment(
            start,
            lambda ids, hidden: self.owner.blocks.final(ids, start, hidden),
            lambda part, out: self._head(part, out),
        )
        self._head_errors = {}
        return gradients

    def block(self, block: int, gradients: torch.Tensor) -> torch.Tensor:
        """Through one block and back, given the gradients at its output."""
        return self._segment(
            block,
            lambda ids, hidden: self.owner.blocks.advance(ids, block, hidden, block + 1),
            lambda part, out: gradients[:, part],
        )

    def scores(self) -> Scores:
        """What was found, by layer and format; an expert that no token reached scores zero.

        Raises ModelError for another weight that no gradient reached.
        """
        for name, layer in self.owner.layers.items():
            if layer.role is Role.EXPERT:
                self._total(name)
        missed = self.owner.layers.keys() - self._found.keys()
        if missed:
            raise ModelError(
                f"{type(self.owner.model).__name__} does not use {min(missed)} as a module of its own: measure it with "
                "--method exact."
            )
        return self._scores(self._found)

    def scores_of(self, block: int) -> Scores:
        """What is known of a block's layers once it is walked: all of those that no other block uses too."""
        of_block = (layer.name for layer in self.owner.layers.values() if layer.block == block and not layer.tied_names)
        return self._scores(name for name in of_block if name in self._found)

    def _scores(self, names: Iterable[str]) -> Scores:
        return {
            (name, fmt.name): self._found[name][..., index].cpu().double()
            for name in names
            for index, fmt in enumerate(self.owner.formats[name])
        }

    def _segment(self, start: int, run: Callable, gradients_at_output: Callable) -> torch.Tensor:
        """Run a segment with gradients, take all backward passes, score what was used; the gradients at its input."""
        arrived, uses = [], []
        with self._direct_gradients() as consume:
            for part in self._parts:
                hidden = self.inputs[start - 1][part].detach().requires_grad_() if start else None
                with torch.enable_grad():
                    out = run(self.ids[part], hidden)
                at_input = []
                for number, gradient in enumerate(gradients_at_output(part, out.detach())):
                    out.backward(gradient, retain_graph=number + 1 < self.passes)
                    consume(part, number)
                    if start:
                        at_input.append(hidden.grad)
                        hidden.grad = None
                uses += [(part, use) for use in self.owner.taps.drain()]
                arrived += [torch.stack(at_input)] if start else []
        self._score(uses)
        if start:
            self.inputs[start - 1] = None  # walked past
        return torch.cat(arrived, 1) if start else torch.empty(0)

    def _head(self, part: slice, final: torch.Tensor) -> torch.Tensor:
        """Gradients at the final hidden states `(sequences, length, hidden)`, for the text's labels and drawn ones."""
        owner, ids = self.owner, self.ids[part]
        gradients = final.new_zeros((self.passes, *final.shape))
        for index in range(len(final)):
            number = self.first + part.start + index
            uniform = torch.rand(ids.shape[1] - 1, generator=torch.Generator().manual_seed(owner.seed + 7919 * number))
            for rows in owner.head.slices(ids.shape[1] - 1):
                hidden = final[index, :-1][rows].requires_grad_()
                with torch.enable_grad():
                    logits = owner.head.logits(hidden)
                chances = logits.detach().softmax(-1)
                for k, slope in enumerate(self._slopes(chances, ids[index, 1:][rows], number, rows, uniform[rows])):
                    logits.backward(slope, retain_graph=k + 1 < self.passes)
                    gradients[k, index, :-1][rows] = hidden.grad
                    hidden.grad = None
                for use in owner.taps.drain():
                    self._score_head(use, part.start + index)
        return gradients

    def _slopes(
        self, chances: torch.Tensor, text: torch.Tensor, sequence: int, rows: slice, uniform: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        """Gradients at the logits `(rows, vocabulary)`: of the text's labels, of KL, of drawn labels."""
        labels = draw_labels(chances, uniform.to(chances.device), self.owner.draws)
        yield _less_one(chances, text)
        if self.owner.at is not None:
            yield chances - self.owner.at.reference(sequence, rows).exp()
        for label in labels:
            yield _less_one(chances, label)

    def _score_head(self, use: Use, sequence: int) -> None:
        name = use.layer.name
        if name not in self._head_errors:
            deltas, axis = self._deltas(use.layer), use.layer.input_axis
            errors = [deltas.whole(fmt).movedim(axis, -1) for fmt in deltas.formats]
            self._head_errors[name] = deltas.weight.movedim(axis, -1), errors
        formats = self.owner.formats[name]
        self._total(name)[sequence] += linear_scores(use, slice(None), *self._head_errors[name], formats, 1)[0]

    def _score(self, uses: list[tuple[slice, Use]]) -> None:
        by_layer = defaultdict(list)
        for part, use in uses:
            by_layer[use.layer.name].append((part, use))
        for name, of_layer in by_layer.items():
            deltas, total = self._deltas(of_layer[0][1].layer), self._total(name)
            embeddings = [(part, use) for part, use in of_layer if isinstance(use.module, nn.Embedding)]
            for index, fmt in enumerate(deltas.formats if embeddings else ()):
                error = deltas.whole(fmt)
                for part, use in embeddings:
                    total[part, :, index] += embedding_scores(use, self.owner.model, error)
            linear = [(part, use) for part, use in of_layer if not isinstance(use.module, nn.Embedding)]
            for rows, weight, errors in deltas.slices() if linear else ():
                for part, use in linear:
                    total[part] += linear_scores(use, rows, weight, errors, deltas.formats, len(self.ids[part]))

    @contextmanager
    def _direct_gradients(self) -> Iterator[Callable[[slice, int], None]]:
        """Let the weights that cannot be watched gather gradients; `consume` scores and drops them after each pass."""
        errors = {}
        parameters = [(layer, get_weight(self.owner.model, layer)) for layer in self.owner.taps.direct]
        for _, parameter in parameters:
            parameter.requires_grad_()

        def consume(part: slice, number: int) -> None:
            for layer, parameter in parameters:
                if parameter.grad is None:
                    continue
                deltas = self._deltas(layer)
                if layer.name not in errors:
                    errors[layer.name] = [deltas.whole(fmt) for fmt in deltas.formats]
                for index, error in enumerate(errors[layer.name]):
                    self._total(layer.name)[part, number, index] += (parameter.grad * error).sum().float()
                parameter.grad = None

        try:
            yield consume
        finally:
            for _, parameter in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None

    def _deltas(self, layer: Layer) -> Deltas:
        weight = read_weight(self.owner.model, layer)
        original = self.owner.at.originals.get(layer.name) if self.owner.at is not None else None
        return Deltas(weight, self.owner.formats[layer.name], layer.input_axis, self.owner.quantizer, original)

    def _total(self, name: str) -> torch.Tensor:
        if name not in self._found:
            shape = len(self.ids), self.passes, len(self.owner.formats[name])
            self._found[name] = torch.zeros(shape, device=self.ids.device)
        return self._found[name]


def _less_one(chances: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The gradient of -log p(label) at the logits."""
    return chances.scatter_add(-1, label[:, None], torch.full_like(label[:, None], -1, dtype=chances.dtype))


def draw_labels(chances: torch.Tensor, uniform: torch.Tensor, draws: int) -> torch.Tensor:
    """Labels `(draws, rows)` from `(rows, vocabulary)` probabilities, given one uniform number per row.

    The draws of a row are spread evenly over its distribution, which leaves each of them with the right distribution
    and makes their mean steadier.
    """
    cumulated = chances.cumsum(-1)
    spread = (uniform + torch.arange(draws, device=uniform.device)[:, None] / max(draws, 1)) % 1.0
    found = torch.searchsorted(cumulated, (spread * cumulated[:, -1]).T.contiguous())
    return found.T.clamp(max=chances.shape[-1] - 1)
