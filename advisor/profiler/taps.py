"""Watches where weights are used: the input of each use and the gradient at its output say all about the weight.

For y = x W^T the gradient of W is dy^T x, so <gradient, dW> = sum over tokens of dy . (dW x): no gradient of a whole
weight ever exists, and sums over the tokens of one sequence come apart from those of another. Where a format rounds
inputs too, to Q(x), the output moves by Q(x) (W + dW)^T - x W^T, which takes the place of x dW^T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from advisor.formats.quantize import Quantizer, fake_quantize_input
from advisor.types import Format, Layer
from advisor.weights import holding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Rows of a weight whose rounding errors exist at once: small enough to stay in a processor's cache.
_SLICE_ELEMENTS = 1 << 21


@dataclass
class Use:
    """One call of a module with a watched weight; `gradients` are those at its output, one a backward pass."""

    layer: Layer
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gradients: list[torch.Tensor] = field(default_factory=list)


class Taps:
    """Records the uses of weights while gradients are enabled.

    Watched are the linear modules, `Conv1D` and embeddings among `layers`, tied ones included. Weights that a module
    reads in another way (fused experts) are `direct`: their own gradient has to be taken.
    """

    def __init__(self, model: PreTrainedModel, layers: Iterable[Layer]):
        self.model = model
        self.direct: list[Layer] = []
        self._watched: list[tuple[nn.Module, Layer]] = []
        for layer in layers:
            modules = [model.get_submodule(name) for name in _modules(layer)]
            if modules and all(isinstance(module, nn.Linear | Conv1D | nn.Embedding) for module in modules):
                self._watched += [(module, layer) for module in modules]
            else:
                self.direct.append(layer)
        self._uses: list[Use] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Watch every use within the block, and let the graph begin at the token embeddings."""
        with ExitStack() as hooks:
            embedding = self.model.get_input_embeddings()
            hooks.callback(embedding.register_forward_hook(_begin_graph).remove)
            for module, layer in self._watched:
                hooks.callback(module.register_forward_hook(self._recorder(layer), with_kwargs=True).remove)
            yield
        self._uses = []

    def drain(self) -> list[Use]:
        """The uses that a gradient has reached since the last call; the others wait for theirs."""
        reached = [use for use in self._uses if use.gradients]
        self._uses = [use for use in self._uses if not use.gradients]
        return reached

    def _recorder(self, layer: Layer) -> Callable:
        def record(module, args, kwargs, output):
            if output.requires_grad:
                args = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in args)
                use = Use(layer, module, args, kwargs)
                output.register_hook(use.gradients.append)
                self._uses.append(use)

        return record


def _modules(layer: Layer) -> list[str]:
    """The modules whose `weight` it is; none for a parameter of another name."""
    return [layer.name, *layer.tied_names] if layer.parameter == f"{layer.name}.weight" else []


def _begin_graph(module, args, output):
    # Without gradients of weights nothing else requires one, and there would be no graph.
    if torch.is_grad_enabled() and not output.requires_grad:
        return output.requires_grad_()
    return output


class Deltas:
    """Rounding errors dW = quantized - weight of one weight, made when asked for.

    Args:
        weight: any shape; `input_axis` is the one along which groups run.
        formats: those that fit it.
        quantizer: one that treats output rows alone, as all formats do whose groups run along the input.
        original: what is quantized, where `weight` is something else already.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        formats: list[Format],
        input_axis: int,
        quantizer: Quantizer,
        original: torch.Tensor | None = None,
    ):
        self.weight, self.formats, self.input_axis, self.quantizer = weight.detach(), formats, input_axis, quantizer
        self.original = self.weight if original is None else original

    def whole(self, fmt: Format) -> torch.Tensor:
        """In the weight's own shape and dtype."""
        return self.quantizer(self.original, fmt, self.input_axis) - self.weight

    def slices(self) -> Iterator[tuple[slice, torch.Tensor, list[torch.Tensor]]]:
        """Output rows of a matrix, their weights and their errors in every format, each `(rows, input features)`."""
        matrix, original = (weight.movedim(self.input_axis, -1) for weight in (self.weight, self.original))
        step = max(1, _SLICE_ELEMENTS // matrix.shape[1])
        for start in range(0, matrix.shape[0], step):
            rows = slice(start, start + step)
            part = matrix[rows]
            yield rows, part, [self.quantizer(original[rows], fmt, -1) - part for fmt in self.formats]


def linear_scores(
    use: Use, rows: slice, weight: torch.Tensor, errors: list[torch.Tensor], formats: list[Format], sequences: int
) -> torch.Tensor:
    """<gradient of the loss, change of output> over some output rows: `(sequences, backward passes, formats)`, fp32.

    `weight` and the errors of each format are those rows, `(rows, input features)`.
    """
    inputs = use.args[0].reshape(sequences, -1, use.args[0].shape[-1])
    gradients = torch.stack([g.reshape(sequences, inputs.shape[1], -1)[..., rows] for g in use.gradients], 1).flatten(2)
    # What the rounding errors do to the output: (sequences, formats, tokens * rows).
    moved = [_moved(inputs, weight, error, fmt).flatten(1) for error, fmt in zip(errors, formats, strict=True)]
    return (gradients @ torch.stack(moved, 1).transpose(1, 2)).float()


def _moved(inputs: torch.Tensor, weight: torch.Tensor, error: torch.Tensor, fmt: Format) -> torch.Tensor:
    if not fmt.quantizes_activations:
        return inputs @ error.T
    rounded = fake_quantize_input(inputs, fmt)
    # Two small products instead of the difference of two large ones, which would lose digits.
    return (rounded - inputs) @ weight.T + rounded @ error.T


def embedding_scores(use: Use, model: PreTrainedModel, error: torch.Tensor) -> torch.Tensor:
    """<gradient of the loss, dW> of one format: `(sequences, backward passes)`, fp32.

    An embedding is linear in its weight: called with dW in its place, it gives the change of its output.
    """
    with holding(model, use.layer, error):
        moved = use.module(*use.args, **use.kwargs)
    return torch.stack([(g * moved).flatten(1).float().sum(1) for g in use.gradients], 1)
