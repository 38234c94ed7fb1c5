"""What plans, and changes of plans, do to a model: gradients on one part of the text, the truth on another."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import numpy as np
import torch

from advisor.estimates import Change, Losses
from advisor.formats.quantize import Quantizer, fake_quantize
from advisor.knowledge import find_format
from advisor.matmul import fast_fp32_matmul
from advisor.models import LoadedModel
from advisor.profiler.fisher import FisherPass, OperatingPoint, batch_sequences
from advisor.profiler.in_place import plan_in_place
from advisor.profiler.reference import Reference, batches_of
from advisor.scoring import final_hidden
from advisor.types import Format, Layer


class PlanProbe:
    """A loaded model on two texts.

    Args:
        loaded: its weights are back in place after every call.
        gradients: token windows `(sequences, length)` that gradients are taken on.
        held_back: other windows of the same kind, which no gradient sees.
        draws, seed: of the labels drawn per token.
        advanced: called with (steps done, steps in all) while gradients are taken.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        gradients: torch.Tensor,
        held_back: torch.Tensor,
        draws: int,
        seed: int = 0,
        quantizer: Quantizer = fake_quantize,
        advanced: Callable[[int, int], None] = lambda done, steps: None,
    ):
        self.model, self.catalogue = loaded.model, loaded.catalogue
        self.gradients, self.held_back = gradients, held_back
        self.draws, self.seed, self.quantizer, self.advanced = draws, seed, quantizer, advanced

    def losses(self, assignments: Mapping[str, str]) -> Losses:
        """Of a plan (layer -> format) on the held-back text, sequence by sequence."""
        return self._losses(assignments, self._held_back_reference)

    def losses_where_gradients_are(self, assignments: Mapping[str, str]) -> Losses:
        """Of a plan on the very text that gradients are taken on, which a refined plan fits better than others."""
        return self._losses(assignments, self._reference)

    def changes(
        self, assignments: Mapping[str, str], others: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], Change]:
        """Of a plan by giving each layer another format, all else staying as the plan has it.

        Raises:
            ModelError: a weight takes part in the model in a way that cannot be watched.
        """
        layers = self.catalogue.by_name()
        candidates = [(layers[name], find_format(fmt)) for name, fmt in others]
        step = batch_sequences(self._reference.device, self.gradients.shape[1])
        starts = range(0, len(self.gradients), step)
        parts = defaultdict(list)
        with plan_in_place(self.model, self._chosen(assignments), self.quantizer) as (originals, _):
            at = OperatingPoint(originals, self._reference.log_probs_of_sequence)
            estimator = FisherPass(self.model, candidates, self.draws, self.seed, self.quantizer, at=at)
            for number, start in enumerate(starts):
                ids = self.gradients[start : start + step].to(self._reference.device)
                found = estimator.run(
                    ids, start, lambda done, of, n=number: self.advanced(n * of + done, len(starts) * of)
                )
                for key, scores in found.items():
                    parts[key].append(scores.numpy())
        predicted = self.gradients.shape[1] - 1
        return {key: _change(np.concatenate(scores), predicted) for key, scores in parts.items()}

    def _losses(self, assignments: Mapping[str, str], reference: Reference) -> Losses:
        sequences = sum(len(batch) for batch in reference.batches)
        with (
            torch.no_grad(),
            fast_fp32_matmul(reference.device),
            plan_in_place(self.model, self._chosen(assignments), self.quantizer),
        ):
            nll, kl = reference.losses(final_hidden(self.model, ids) for ids in reference.batches)
        by_sequence = (values.double().view(sequences, -1).mean(1).numpy() for values in (kl, nll - reference.nll))
        return Losses(*by_sequence)

    def _chosen(self, assignments: Mapping[str, str]) -> list[tuple[Layer, Format]]:
        layers, own = self.catalogue.by_name(), self.catalogue.dtype
        return [(layers[name], find_format(fmt)) for name, fmt in assignments.items() if fmt != own]

    @cached_property
    def _reference(self) -> Reference:
        return Reference(self.model, self.catalogue, batches_of(self.gradients, self.model, self.catalogue))

    @cached_property
    def _held_back_reference(self) -> Reference:
        return Reference(self.model, self.catalogue, batches_of(self.held_back, self.model, self.catalogue))


def _change(scores: np.ndarray, predicted: int) -> Change:
    """From <gradient, dW> `(sequences, 2 + draws)` of the text's labels, of KL and of drawn labels."""
    return Change(
        kl=scores[:, 1] / predicted, text=scores[:, 0] / predicted, projections=scores[:, 2:] / math.sqrt(2 * predicted)
    )
