"""One profiling run: what to measure, in which order, and what is already there from a run that was stopped."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import cached_property
from importlib.metadata import version

import numpy as np
import torch

from advisor import estimates
from advisor.errors import ModelError, TextError
from advisor.formats.table import fits
from advisor.knowledge import find_format
from advisor.layer_names import to_measure
from advisor.models import LoadedModel, dtype_name
from advisor.profiler.cost import estimate_work
from advisor.profiler.exact import ExactSweep
from advisor.profiler.fisher import FisherPass, batch_sequences
from advisor.profiler.reference import Reference, batches_of
from advisor.text_quality import text_quality
from advisor.texts import check_vocabulary, default_samples, text_sha256, token_windows
from advisor.types import (
    Baseline,
    CalibrationSpec,
    Catalogue,
    Format,
    Layer,
    Measurement,
    Method,
    Preview,
    ProfileRequest,
    SensitivityProfile,
    TextQuality,
    WorkEstimate,
)

# Part of a profile's identity: raise it when a change here or in a quantizer makes old scores incomparable.
_METHOD_VERSION = 1

_PACKAGES = ("torch", "transformers")
_PREVIEWED = 4  # sequences that tell the pace of a run

Candidate = tuple[Layer, Format]
Advanced = Callable[[int, int], None]  # steps done, steps in all
Batches = Iterator[list[Measurement]]  # each to be stored as it comes; stopping loses nothing given out


def choose_candidates(catalogue: Catalogue, request: ProfileRequest) -> list[Candidate]:
    """Every (layer, format) that the request asks for and that can exist.

    A format whose groups do not divide a layer's input features, or that rounds an input which the layer does not have,
    is left out for that layer. Around a plan, every layer
    has the format that the plan gives it.

    Raises:
        PlanError: the words for layers name none.
        ModelError: no format fits any layer.
        KnowledgeError: a format is unknown.
    """
    layers = to_measure(request.layers, catalogue)
    if request.around:
        return _of_the_plan(catalogue, layers, request.around)
    formats = [fmt for fmt in map(find_format, dict.fromkeys(request.formats)) if fmt.name != catalogue.dtype]
    candidates = [(layer, fmt) for layer in layers for fmt in formats if fits(fmt, layer)]
    if not candidates:
        raise ModelError("None of the chosen formats fits the chosen layers: choose a smaller group size or `int8`.")
    return candidates


def _of_the_plan(catalogue: Catalogue, layers: Iterable[Layer], around: dict[str, str]) -> list[Candidate]:
    unknown = around.keys() - {layer.name for layer in catalogue.quantizable}
    if unknown:
        raise ModelError(f"{catalogue.model.name} has no layer {min(unknown)}: the plan is for another model.")
    found = [(layer, find_format(around[layer.name])) for layer in layers if layer.name in around]
    found = [(layer, fmt) for layer, fmt in found if fmt.name != catalogue.dtype]
    if not found:
        raise ModelError("The plan quantizes none of the chosen layers: there is nothing to give back.")
    for layer, fmt in found:
        if not fits(fmt, layer):
            raise ModelError(f"{layer.name} cannot be in {fmt.name}: correct it in the plan.")
    return found


class ProfilingRun:
    """A loaded model and the text it is measured on."""

    def __init__(self, loaded: LoadedModel, request: ProfileRequest):
        model, catalogue = loaded.model, loaded.catalogue
        self.loaded, self.request = loaded, request
        self.candidates = choose_candidates(catalogue, request)
        samples = request.samples or default_samples(request.method, loaded.device.type)
        self.windows = token_windows(
            request.text, loaded.tokenizer, "calibration", samples, request.seq_len, request.seed
        )
        check_vocabulary(self.windows, model.get_input_embeddings().weight.shape[0])
        self.calibration = CalibrationSpec(
            text=request.text,
            samples=samples,
            seq_len=request.seq_len,
            seed=request.seed,
            text_sha256=text_sha256(self.windows),
        )

    @cached_property
    def reference(self) -> Reference:
        """The unquantized model on the text; its log-probabilities are kept where something is measured exactly."""
        model, catalogue = self.loaded.model, self.loaded.catalogue
        return Reference(
            model, catalogue, batches_of(self.windows, model, catalogue), keep=self.request.method != "fisher"
        )

    @cached_property
    def baseline(self) -> Baseline:
        return self.reference.baseline()

    @cached_property
    def quality(self) -> TextQuality:
        """Whether the text deserves trust, by its tokens and by the model's perplexity on it."""
        return self._quality(self.baseline.perplexity)

    def estimate(self, stored: SensitivityProfile) -> WorkEstimate | None:
        """What is missing in `stored` should take, by the pace of the baseline's pass; None where nothing is."""
        done = {(m.layer, m.format) for m in stored.measurements if self._sequences_seen(m) == len(self.windows)}
        missing = [candidate for candidate in self.candidates if _key(candidate) not in done]
        return self._estimate(self.reference, missing) if missing else None

    def preview(self) -> Preview:
        """Text and cost of the run, from a few sequences."""
        model, catalogue = self.loaded.model, self.loaded.catalogue
        few = Reference(model, catalogue, batches_of(self.windows[:_PREVIEWED], model, catalogue), keep=False)
        quality = self._quality(few.baseline().perplexity)
        calibration = self.calibration.model_copy(update={"quality": quality})
        estimate = self._estimate(few, self.candidates)
        return Preview(method=self.request.method, calibration=calibration, estimate=estimate)

    def _estimate(self, pace: Reference, candidates: list[Candidate]) -> WorkEstimate:
        batch = self._fisher_batch() * self.calibration.seq_len
        return estimate_work(
            self.request.method,
            candidates,
            self.loaded.catalogue,
            pace,
            self.windows.numel(),
            batch,
            self.request.draws,
        )

    def _quality(self, perplexity: float) -> TextQuality:
        request, model, catalogue = self.request, self.loaded.model, self.loaded.catalogue
        try:
            held_out = token_windows(
                request.text, self.loaded.tokenizer, "evaluation", len(self.windows), request.seq_len
            )
        except TextError:  # too short for a part of its own, or `random`
            return text_quality(self.windows, None, catalogue.vocabulary, perplexity)
        beside = Reference(model, catalogue, batches_of(held_out[:_PREVIEWED], model, catalogue), keep=False)
        return text_quality(self.windows, held_out, catalogue.vocabulary, perplexity, beside.baseline().perplexity)

    def _fisher_batch(self) -> int:
        return batch_sequences(self.loaded.device, self.calibration.seq_len)

    def header(self, method: Method) -> SensitivityProfile:
        """The profile of this text by that method, without measurements.

        Its id is a hash of everything that a score depends on, so the same request finds what an earlier run stored.
        """
        catalogue, dtype = self.loaded.catalogue, dtype_name(self.loaded.model.dtype)
        draws = 0 if method == "exact" else self.request.draws
        spec = self.calibration.model_copy(update={"draws": draws, "quality": self.quality})
        return SensitivityProfile(
            id=_profile_id(catalogue, spec, method, dtype, self.request.around),
            catalogue=catalogue,
            calibration=spec,
            method=method,
            around=self.request.around,
            dtype=dtype,
            baseline=self.baseline,
            measurements=(),
            provenance=_provenance(self.loaded),
        )

    def exact(self, stored: SensitivityProfile, candidates: Iterable[Candidate], advanced: Advanced) -> Batches:
        """Measure the candidates that `stored` does not hold yet, each given out as soon as it is measured."""
        candidates = list(candidates)
        done = {(m.layer, m.format) for m in stored.measurements}
        remaining = [candidate for candidate in candidates if _key(candidate) not in done]
        finished = len(candidates) - len(remaining)
        advanced(finished, len(candidates))
        around = self.request.around
        plan = _of_the_plan(self.loaded.catalogue, self.loaded.catalogue.quantizable, around) if around else ()
        for number, measurement in enumerate(ExactSweep(self.reference, plan).measure(remaining), finished + 1):
            yield [measurement]
            advanced(number, len(candidates))

    def fisher(self, stored: SensitivityProfile, advanced: Advanced) -> Batches:
        """Estimate all candidates, block by block; each batch of sequences sharpens what is stored of every one."""
        known = {(m.layer, m.format): m for m in stored.measurements}
        total, estimator = len(self.windows), None
        while missing := [c for c in self.candidates if self._sequences_seen(known.get(_key(c))) < total]:
            seen = [self._sequences_seen(known.get(_key(c))) for c in missing]
            before = min(seen)
            # Not past what others have seen already: those join from there on.
            end = min([before + self._fisher_batch(), total, *(count for count in seen if count > before)])
            chosen = [c for c, count in zip(missing, seen, strict=True) if count == before]
            if estimator is None or estimator.candidates != tuple(chosen):
                estimator = FisherPass(self.loaded.model, chosen, self.request.draws, self.request.seed)
            started = time.perf_counter()

            def walked(done: int, steps: int, before: int = before, end: int = end) -> None:
                advanced(before * steps + (end - before) * done, total * steps)

            # Closed at once where the work is stopped: until then the model is watched and takes no gradients.
            with closing(estimator.walk(self.windows[before:end].to(self.loaded.device), before, walked)) as parts:
                for scores in filter(None, parts):
                    seconds = (time.perf_counter() - started) / len(scores)
                    found = [self._sharpened(known.get(key), key, values, seconds) for key, values in scores.items()]
                    known |= {(m.layer, m.format): m for m in found}
                    yield found
                    started = time.perf_counter()

    def _sequences_seen(self, measurement: Measurement | None) -> int:
        return measurement.tokens // (self.calibration.seq_len - 1) if measurement else 0

    def _sharpened(
        self, known: Measurement | None, key: tuple[str, str], scores: torch.Tensor, seconds: float
    ) -> Measurement:
        """What was known of a candidate, with the scores of the next sequences."""
        predicted = self.calibration.seq_len - 1
        projections = scores.numpy() / math.sqrt(2 * predicted)
        if known is not None:
            projections = np.concatenate([estimates.unpack(known, self.request.draws), projections])
            seconds += known.seconds
        return estimates.fisher_measurement(*key, projections, predicted, seconds)


def requested_part(profile: SensitivityProfile, candidates: list[Candidate]) -> SensitivityProfile:
    """The profile restricted to the candidates of one request, in their order."""
    stored = {(m.layer, m.format): m for m in profile.measurements}
    wanted = [_key(candidate) for candidate in candidates]
    return profile.model_copy(update={"measurements": tuple(stored[key] for key in wanted if key in stored)})


def _key(candidate: Candidate) -> tuple[str, str]:
    layer, fmt = candidate
    return layer.name, fmt.name


def _profile_id(catalogue: Catalogue, spec: CalibrationSpec, method: str, dtype: str, around: dict[str, str]) -> str:
    identity = [
        catalogue.model.fingerprint,
        spec.text_sha256,
        spec.samples,
        spec.seq_len,
        method,
        dtype,
        _METHOD_VERSION,
    ]
    if method != "exact":
        identity += [spec.draws, spec.seed]
    if around:
        identity.append(sorted(around.items()))
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]


def _provenance(loaded: LoadedModel) -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES} | {
        "python": platform.python_version(),
        "device": str(loaded.device),
    }
