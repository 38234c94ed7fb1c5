"""One profiling run: what to measure, in which order, and what is already there from a run that was stopped."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterator
from importlib.metadata import version

from advisor.errors import ModelError
from advisor.formats.table import divides
from advisor.knowledge import find_format
from advisor.models import LoadedModel, dtype_name
from advisor.profiler.exact import ExactSweep
from advisor.texts import check_vocabulary, text_sha256, token_windows
from advisor.types import CalibrationSpec, Catalogue, Format, Layer, Measurement, ProfileRequest, SensitivityProfile

# Part of a profile's identity: raise it when a change here or in a quantizer makes old scores incomparable.
_METHOD_VERSION = 1

_PACKAGES = ("torch", "transformers")


def choose_candidates(catalogue: Catalogue, request: ProfileRequest) -> list[tuple[Layer, Format]]:
    """Every (layer, format) that the request asks for and that can exist.

    A format whose groups do not divide a layer's input features is left out for that layer.

    Raises:
        ModelError: the expression is wrong or matches no quantizable layer, or no format fits any layer.
        KnowledgeError: a format is unknown.
    """
    try:
        wanted = re.compile(request.layers)
    except re.error as error:
        raise ModelError(f"The layer expression {request.layers!r} is not a regular expression ({error}).") from error
    layers = [layer for layer in catalogue.quantizable if wanted.search(layer.name)]
    if not layers:
        names = ", ".join(layer.name for layer in catalogue.quantizable[:3])
        raise ModelError(f"No quantizable layer matches {request.layers!r}: names look like {names}.")
    formats = [fmt for fmt in map(find_format, dict.fromkeys(request.formats)) if fmt.name != catalogue.dtype]
    candidates = [(layer, fmt) for layer in layers for fmt in formats if divides(fmt, layer)]
    if not candidates:
        raise ModelError("None of the chosen formats fits the chosen layers: choose a smaller group size or `int8`.")
    return candidates


class ProfilingRun:
    """A sweep over a loaded model that can be stopped and taken up again.

    `header` is the profile without measurements; its id is a hash of everything that a score depends on, so the same
    request finds the scores that an earlier run stored.
    """

    def __init__(self, loaded: LoadedModel, request: ProfileRequest):
        self.candidates = choose_candidates(loaded.catalogue, request)
        windows = token_windows(
            request.text, loaded.tokenizer, "calibration", request.samples, request.seq_len, request.seed
        )
        check_vocabulary(windows, loaded.model.get_input_embeddings().weight.shape[0])
        self._sweep = ExactSweep(loaded.model, loaded.catalogue, windows)
        spec = CalibrationSpec(
            text=request.text,
            samples=request.samples,
            seq_len=request.seq_len,
            seed=request.seed,
            text_sha256=text_sha256(windows),
        )
        dtype = dtype_name(loaded.model.dtype)
        self.header = SensitivityProfile(
            id=_profile_id(loaded.catalogue, spec, request.method, dtype),
            catalogue=loaded.catalogue,
            calibration=spec,
            method=request.method,
            dtype=dtype,
            baseline=self._sweep.baseline(),
            measurements=(),
            provenance=_provenance(loaded),
        )

    def remaining(self, stored: SensitivityProfile) -> list[tuple[Layer, Format]]:
        """The candidates that `stored` does not hold yet."""
        done = {(m.layer, m.format) for m in stored.measurements}
        return [(layer, fmt) for layer, fmt in self.candidates if (layer.name, fmt.name) not in done]

    def measure(self, stored: SensitivityProfile) -> Iterator[Measurement]:
        """Yield the remaining measurements one by one, each ready to be stored; stopping loses nothing yielded."""
        return self._sweep.measure(self.remaining(stored))


def requested_part(profile: SensitivityProfile, candidates: list[tuple[Layer, Format]]) -> SensitivityProfile:
    """The profile restricted to the candidates of one request, in their order."""
    stored = {(m.layer, m.format): m for m in profile.measurements}
    wanted = [(layer.name, fmt.name) for layer, fmt in candidates]
    return profile.model_copy(update={"measurements": tuple(stored[key] for key in wanted if key in stored)})


def _profile_id(catalogue: Catalogue, spec: CalibrationSpec, method: str, dtype: str) -> str:
    identity = [
        catalogue.model.fingerprint,
        spec.text_sha256,
        spec.samples,
        spec.seq_len,
        method,
        dtype,
        _METHOD_VERSION,
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]


def _provenance(loaded: LoadedModel) -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES} | {
        "python": platform.python_version(),
        "device": str(loaded.device),
    }
