"""What plans, and changes of plans, do to a model: gradients on one part of the text, the truth on others."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from advisor.errors import TextError
from advisor.estimates import Change, Losses
from advisor.formats.quantize import Quantizer, fake_quantize
from advisor.knowledge import find_format
from advisor.matmul import fast_fp32_matmul
from advisor.models import LoadedModel
from advisor.profiler.fisher import FisherPass, OperatingPoint, batch_sequences
from advisor.profiler.in_place import plan_in_place
from advisor.profiler.reference import Reference, batches_of
from advisor.scoring import REFERENCE_CACHE_BYTES, final_hidden
from advisor.texts import text_sha256, token_windows
from advisor.types import CalibrationSpec, Format, Layer
from advisor.weights import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = Literal["gradients", "choice", "prediction"]


class PlanProbe:
    """A loaded model on three parts of a text.

    Args:
        loaded: its weights are back in place after every call.
        windows: token windows `(sequences, length)` of each part: those that gradients are taken on, others that plans
            are chosen by, and still others that the chosen plan's loss is predicted from.
        draws, seed: of the labels drawn per token.
        advanced: called with (steps done, steps in all) while gradients are taken.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        windows: Mapping[Part, torch.Tensor],
        draws: int,
        seed: int = 0,
        quantizer: Quantizer = fake_quantize,
        advanced: Callable[[int, int], None] = lambda done, steps: None,
    ):
        self.model, self.catalogue = loaded.model, loaded.catalogue
        self.windows = windows
        self._references: dict[Part, Reference] = {}
        self._known: dict[tuple[Part, frozenset[tuple[str, str]]], Losses] = {}
        self.draws, self.seed, self.quantizer, self.advanced = draws, seed, quantizer, advanced

    @property
    def identity(self) -> str:
        """The same for probes that give the same answers: of model, texts, dtype and draws."""
        of_texts = (text_sha256(self.windows[part]) for part in sorted(self.windows))
        device = device_of(self.model)
        parts = (self.catalogue.model.fingerprint, *of_texts, self.model.dtype, device, self.draws, self.seed)
        return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:16]

    def tokens(self, part: Part) -> int:
        """Predicted tokens of a part."""
        return self.windows[part][:, 1:].numel()

    def base_perplexity(self, part: Part) -> float:
        """Of the unquantized model on a part of the text."""
        return math.exp(self._reference(part).nll.double().mean().item())

    def losses(self, assignments: Mapping[str, str], part: Part) -> Losses:
        """Of a plan (layer -> format) on a part of the text, sequence by sequence; no plan is run twice."""
        key = part, frozenset(assignments.items())
        if key not in self._known:
            self._known[key] = self._run(assignments, part)
        return self._known[key]

    def _run(self, assignments: Mapping[str, str], part: Part) -> Losses:
        reference = self._reference(part)
        with (
            torch.no_grad(),
            fast_fp32_matmul(reference.device),
            plan_in_place(self.model, self._chosen(assignments), self.quantizer),
        ):
            nll, kl = reference.losses(final_hidden(self.model, ids) for ids in reference.batches)
        sequences = len(self.windows[part])
        by_sequence = (values.double().view(sequences, -1).mean(1).numpy() for values in (kl, nll - reference.nll))
        return Losses(*by_sequence)

    def changes(
        self, assignments: Mapping[str, str], others: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], Change]:
        """Of a plan by giving each layer another format, all else staying as the plan has it.

        Raises:
            ModelError: a weight takes part in the model in a way that cannot be watched.
        """
        layers = self.catalogue.by_name()
        candidates = [(layers[name], find_format(fmt)) for name, fmt in others]
        windows, reference = self.windows["gradients"], self._reference("gradients")
        step = batch_sequences(reference.device, windows.shape[1])
        starts = range(0, len(windows), step)
        parts = defaultdict(list)
        with plan_in_place(self.model, self._chosen(assignments), self.quantizer) as (originals, _):
            at = OperatingPoint(originals, reference.log_probs_of_sequence)
            estimator = FisherPass(self.model, candidates, self.draws, self.seed, self.quantizer, at=at)
            for number, start in enumerate(starts):
                ids = windows[start : start + step].to(reference.device)
                found = estimator.run(
                    ids, start, lambda done, of, n=number: self.advanced(n * of + done, len(starts) * of)
                )
                for key, scores in found.items():
                    parts[key].append(scores.numpy())
        predicted = windows.shape[1] - 1
        return {key: _change(np.concatenate(scores), predicted) for key, scores in parts.items()}

    def _chosen(self, assignments: Mapping[str, str]) -> list[tuple[Layer, Format]]:
        layers, own = self.catalogue.by_name(), self.catalogue.dtype
        return [(layers[name], find_format(fmt)) for name, fmt in assignments.items() if fmt != own]

    def _reference(self, part: Part) -> Reference:
        """Made at first use; between calls no plan is in place, so the weights are the model's own."""
        if part not in self._references:
            batches = batches_of(self.windows[part], self.model, self.catalogue)
            room = REFERENCE_CACHE_BYTES - sum(other.cached_bytes for other in self._references.values())
            self._references[part] = Reference(self.model, self.catalogue, batches, cache_bytes=room)
        return self._references[part]


def split_windows(spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase) -> dict[Part, torch.Tensor]:
    """The windows that a profile was measured on and as many more, for gradients; as many again for each other part.

    All come from the calibration part of the text: evaluations read none of them. Raises TextError when the text is too
    short, or is not what it was.
    """
    own, part = spec.samples, spec.refining_samples
    try:
        windows = token_windows(spec.text, tokenizer, "calibration", 3 * part, spec.seq_len, spec.seed)
    except TextError as error:
        raise TextError(
            f"Refining takes {3 * part} sequences of {spec.seq_len} tokens, not only the {own} profiled. {error}"
        ) from error
    if text_sha256(windows[:own]) != spec.text_sha256:
        raise TextError(f"{spec.text} is not the text any more that was profiled: profile the model again.")
    gradients, choice, prediction = windows.split(part)
    return {"gradients": gradients, "choice": choice, "prediction": prediction}


def _change(scores: np.ndarray, predicted: int) -> Change:
    """From <gradient, dW> `(sequences, 2 + draws)` of the text's labels, of KL and of drawn labels."""
    return Change(
        kl=scores[:, 1] / predicted, text=scores[:, 0] / predicted, projections=scores[:, 2:] / math.sqrt(2 * predicted)
    )
