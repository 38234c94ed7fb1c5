"""Wins back some of what a plan loses: distills the original into the scales and norms of the quantized model.

Codes and zero points stay as they were chosen, so files have the same layout and size. A weight is linear in its
scales, whose gradients are therefore exact (Esser et al. 2020, "Learned Step Size Quantization", train scales beside
weights).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from advisor.apply import quantized_layers, simulated
from advisor.evaluate import Scores, score
from advisor.export_checks import refuse_rounded_inputs
from advisor.formats.quantize import Codes, fake_quantize, quantize
from advisor.models import LoadedModel, pick_dtype
from advisor.scoring import kl_of
from advisor.types import Role
from advisor.weights import get_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS = 1024
# In units of `_Student`; it falls to zero over the steps as half a cosine.
_LEARNING_RATE = 0.1
_SMALLEST_NORM = 1e-2
# Of itself: a scale keeps its sign, however long it is trained.
_FURTHEST = 0.9


class Recovered(NamedTuple):
    """What a distillation found.

    Attributes:
        codes: layer name -> the codes that it had, with trained scales; of every quantized matrix.
        weights: parameter name -> what is not quantized and differs from the model, in the dtype that is stored.
        before, after: scores on the text that took no part.
        tokens: how many were trained on, those of repeated passes counted again.
    """

    codes: dict[str, Codes]
    weights: dict[str, torch.Tensor]
    before: Scores
    after: Scores
    tokens: int


def recover(
    loaded: LoadedModel,
    assignments: Mapping[str, str],
    codes: Mapping[str, Codes],
    weights: Mapping[str, torch.Tensor],
    windows: torch.Tensor,
    held_back: torch.Tensor,
    steps: int,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Recovered:
    """Train the scales of a plan's matrices, and the norms, for `steps` batches; the model stays as it is.

    A step is one forward pass of the original, and one forward and one backward pass of the quantized model. It takes
    the memory of both, in the dtype that is computed in, and the activations of a batch.

    Args:
        codes: layer name -> codes that take the place of the nearest ones.
        weights: parameter name -> what a method has rescaled beside them.
        windows: `(sequences, length)` token ids to train on, again from the first after the last.
        held_back: the same of text that takes no part.
        advance: called before every step with (done, in all); what it raises stops the work.

    Raises:
        PlanError: a format rounds activations, whose gradients are zero.
    """
    refuse_rounded_inputs(assignments, "a recovery")
    dtype = pick_dtype("auto", loaded.device, loaded.model.dtype)
    teacher = loaded.model if loaded.model.dtype == dtype else copy.deepcopy(loaded.model).to(dtype)
    base = score(teacher, held_back, keep=True)
    student = _Student(teacher, loaded, assignments, codes, weights)
    before = student.score(held_back, base)
    batches = windows.split(max(1, BATCH_TOKENS // windows.shape[1]))
    rate = _LEARNING_RATE
    if codes:
        # Errors that a method has made cancel out bear less of a change than errors of the same size by chance.
        with simulated(teacher, loaded.catalogue, assignments):
            nearest = score(teacher, held_back, base)
        rate *= math.sqrt(min(1.0, (before.kl.mean() / nearest.kl.mean()).item()))
    optimizer = torch.optim.Adam(student.trained, lr=rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    tokens = 0
    for step in range(steps):
        advance(step, steps)
        optimizer.zero_grad()
        batch = batches[step % len(batches)]
        student.loss(batch).backward()
        optimizer.step()
        schedule.step()
        tokens += batch.numel()
    return Recovered(*student.stored(), before, student.score(held_back, base), tokens)


class _Student:
    """The quantized model: values in place of the teacher's own, differentiable in what is trained.

    Every trained tensor is a change in units of its start times the relative error of rounding: that of the layer for
    each scale, the mean of all layers for a norm's mean size. Formats of 2 and of 8 bits so move in step with what they
    have lost. Values are rounded as they will be stored, which their gradients pass over.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        loaded: LoadedModel,
        assignments: Mapping[str, str],
        codes: Mapping[str, Codes],
        weights: Mapping[str, torch.Tensor],
    ):
        self._teacher, self._rescaled, self._fixed = teacher, dict(weights), dict(weights)
        self._layers, self._errors = {}, []
        for layer, fmt in quantized_layers(loaded.catalogue, assignments):
            weight = get_weight(loaded.model, layer).data
            if layer.name in codes:
                self._layers[layer] = codes[layer.name]
            elif fmt.quantized and weight.ndim == 2:
                self._layers[layer] = quantize(weight.movedim(layer.input_axis, -1), fmt)
            else:  # fused experts, which files hold one by one, and plain dtypes
                self._fixed[layer.parameter] = fake_quantize(weight, fmt, layer.input_axis)
                continue
            self._errors.append(_relative_error(weight.movedim(layer.input_axis, -1), self._layers[layer]))
        own = dict(loaded.model.named_parameters()) | self._fixed
        norms = (layer.parameter for layer in loaded.catalogue.layers if layer.role is Role.NORM)
        self._norms = {name: own[name].detach() for name in norms if own[name].ndim == 1}
        starts = [*(codes.scale for codes in self._layers.values()), *self._norms.values()]
        self.trained = [torch.zeros_like(start, dtype=torch.float32, requires_grad=True) for start in starts]

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        """KL of the student to the teacher per token, of `(sequences, length)` ids."""
        ids = ids.to(self._teacher.device)
        with torch.no_grad():
            wanted = self._log_probs({}, ids)
        return kl_of(wanted, self._log_probs(self._values(), ids)).mean()

    @torch.no_grad()
    def score(self, windows: torch.Tensor, base: Scores) -> Scores:
        """The student as it is now beside the teacher's scores."""
        values = self._values()
        originals = {name: self._teacher.get_parameter(name).data for name in values}
        try:
            for name, value in values.items():
                self._teacher.get_parameter(name).data = value
            return score(self._teacher, windows, base)
        finally:
            for name, original in originals.items():
                self._teacher.get_parameter(name).data = original

    @torch.no_grad()
    def stored(self) -> tuple[dict[str, Codes], dict[str, torch.Tensor]]:
        """Codes, and all that is not quantized and differs from the model, as files hold them."""
        scales, norms = self._moved()
        codes = {
            layer.name: replace(found, scale=scale.to(found.scale.dtype))
            for (layer, found), scale in zip(self._layers.items(), scales, strict=True)
        }
        return codes, self._rescaled | {name: norms[name].to(start.dtype) for name, start in self._norms.items()}

    def _log_probs(self, values: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        output = torch.func.functional_call(self._teacher, values, (), {"input_ids": ids, "use_cache": False})
        return output.logits[:, :-1].float().log_softmax(-1).flatten(0, 1)

    def _values(self) -> dict[str, torch.Tensor]:
        """Parameter name -> its value, in the teacher's dtype."""
        scales, norms = self._moved()
        found = self._fixed | norms
        for (layer, codes), scale in zip(self._layers.items(), scales, strict=True):
            found[layer.parameter] = _Dequantized.apply(scale, codes).movedim(-1, layer.input_axis)
        return {name: value.to(self._teacher.dtype) for name, value in found.items()}

    def _moved(self) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """Scales in the order of layers, and norms by their names; in fp32, rounded as they will be stored."""
        changes = iter(self.trained)
        layers, mean = zip(self._layers.values(), self._errors, strict=True), sum(self._errors) / len(self._errors)
        scales = [_moved(found.scale, found.scale.float(), error * next(changes)) for found, error in layers]
        norms = {
            name: _moved(start, start.float().abs().mean().clamp_min(_SMALLEST_NORM), mean * next(changes))
            for name, start in self._norms.items()
        }
        return scales, norms


def _relative_error(weight: torch.Tensor, codes: Codes) -> float:
    """How far codes are from the weight, of its norm."""
    return ((codes.dequantize() - weight.float()).norm() / weight.float().norm()).item()


class _Dequantized(torch.autograd.Function):
    """What codes stand for with other scales; keeps the codes for the gradient, and no copy of them in fp32."""

    @staticmethod
    def forward(context: Any, scale: torch.Tensor, codes: Codes) -> torch.Tensor:
        context.codes = codes
        return replace(codes, scale=scale).dequantize()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        codes = context.codes
        levels = replace(codes, scale=torch.ones_like(codes.scale)).dequantize()
        return (gradient * levels).view(codes.values.shape).sum(-1, keepdim=True), None


def _moved(start: torch.Tensor, unit: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """`start` moved by `change` times `unit`, rounded to the dtype of `start`; the gradient passes the rounding."""
    moved = start.float() + unit * change.clamp(-_FURTHEST, _FURTHEST)
    return moved + (moved.to(start.dtype).float() - moved).detach()
