"""The use cases that measure: a model catalogued, a run previewed, a sensitivity profile made and stored."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

from advisor import layer_names, models, texts
from advisor.errors import TextError
from advisor.estimates import with_projections
from advisor.knowledge import find_format
from advisor.types import Catalogue, Measurement, Preview, ProfileRequest, Progress, SensitivityProfile, WorkEstimate
from advisor.units import duration, size
from advisor.use_cases.reporting import Cancelled, Report, counted, never, silent, stoppable
from storage.repository import Repository

if TYPE_CHECKING:
    from advisor.profiler.run import ProfilingRun


def inspect_model(source: str, store: Repository, report: Report = silent, cancelled: Cancelled = never) -> Catalogue:
    """Load a model, catalogue its weights and store the catalogue."""
    catalogue = models.load(source, stoppable(report, cancelled), dtype="own").catalogue
    store.save_catalogue(catalogue)
    return catalogue


def preview_profile(request: ProfileRequest, report: Report = silent, cancelled: Cancelled = never) -> Preview:
    """What the request's text is worth and what its run would take; nothing is stored.

    Raises:
        ModelError, TextError, KnowledgeError, PlanError: something in the request cannot be used.
    """
    report = stoppable(report, cancelled)
    run = prepare(request, report)
    report(Progress(stage="text", message="Reading a little of the text"))
    return run.preview()


def profile_model(
    request: ProfileRequest, store: Repository, report: Report = silent, cancelled: Cancelled = never
) -> SensitivityProfile:
    """Measure what the request asks for and the store does not hold yet, storing every measurement as it arrives.

    Returns:
        The profile with the requested measurements, in the request's order.

    Raises:
        ModelError, TextError, KnowledgeError, PlanError: something in the request cannot be used; nothing was stored.
        JobCancelled: `cancelled()` became true; the same request goes on from what is stored.
    """
    report = stoppable(report, cancelled)
    run = prepare(request, report)
    from advisor.profiler.run import requested_part

    report(Progress(stage="text", message="Reading the text with the unquantized model"))
    if run.quality.warnings:
        report(Progress(stage="text quality", message=" ".join(run.quality.warnings)))
    stored = store.open_profile(run.header(request.method))
    expected = run.estimate(stored)
    if expected is not None:
        report(Progress(stage="expected", message=_expectation(expected), subject=stored.id))
    measure = {"exact": _measure_exactly, "fisher": _estimate, "auto": _estimate_then_measure}[request.method]
    measure(run, stored, store, report)
    return requested_part(store.profile(stored.id), run.candidates)


def prepare(request: ProfileRequest, report: Report = silent) -> ProfilingRun:
    """The loaded model and its text, ready to be measured. Raises ModelError, TextError, KnowledgeError, PlanError."""
    _refuse_early(request)
    loaded = models.load(request.model, report, request.dtype, request.device, may_offload=True)
    check_context(request.seq_len, loaded.catalogue.max_context, loaded.catalogue.model.name)
    from advisor.profiler.run import ProfilingRun

    return ProfilingRun(loaded, request)


def _refuse_early(request: ProfileRequest) -> None:
    """Whatever cannot be and is known before the model is fetched; raises TextError, KnowledgeError or PlanError."""
    texts.check_readable(request.text)
    for name in request.formats:
        find_format(name)
    layer_names.check(request.layers)


def _expectation(estimate: WorkEstimate) -> str:
    most = "at most " if estimate.at_most else "about "
    return f"{estimate.scores:,} scores in {most}{duration(estimate.seconds)}, {size(estimate.memory_bytes)} of memory"


def _measure_exactly(run: ProfilingRun, stored: SensitivityProfile, store: Repository, report: Report) -> None:
    advanced = counted("measure", "layers and formats, one by one", stored.id, report)
    for found in run.exact(stored, run.candidates, advanced):
        store.add_measurements(stored.id, found)


def _estimate(run: ProfilingRun, stored: SensitivityProfile, store: Repository, report: Report) -> None:
    advanced = counted("estimate", "all layers and formats together, block by block", stored.id, report)
    for found in run.fisher(stored, advanced):
        store.add_measurements(stored.id, found)


def _estimate_then_measure(run: ProfilingRun, stored: SensitivityProfile, store: Repository, report: Report) -> None:
    """Estimate all, then measure exactly what leaves decisions open.

    Both are also profiles of their own: whoever asks for the estimates or for exact scores of the same text later finds
    them, and a killed run goes on with the same choice.
    """
    from advisor.profiler.run import requested_part

    # Older than the whole that they are parts of, which then comes first in lists.
    older = {"created": stored.created - timedelta(seconds=1)}
    estimated = store.open_profile(run.header("fisher").model_copy(update=older))
    _estimate(run, estimated, store, report)
    estimated = requested_part(store.profile(estimated.id), run.candidates)
    exact = store.open_profile(run.header("exact").model_copy(update=older))
    known = {(m.layer, m.format): m for m in estimated.measurements}

    def merged(measured: Iterable[Measurement]) -> list[Measurement]:
        return [with_projections(m, known[m.layer, m.format], run.request.draws) for m in measured]

    from advisor.profiler.screen import open_layers

    undecided = set(open_layers(estimated))
    candidates = [(layer, fmt) for layer, fmt in run.candidates if layer.name in undecided]
    # Of one layer and format the later replaces the earlier: what is known exactly stands.
    store.add_measurements(
        stored.id, [*estimated.measurements, *merged(requested_part(exact, run.candidates).measurements)]
    )
    what = f"{len(undecided)} of {len(estimated.measured_layers)} layers, whose error bars leave a choice open"
    for found in run.exact(exact, candidates, counted("measure", what, stored.id, report)):
        store.add_measurements(exact.id, found)
        store.add_measurements(stored.id, merged(found))


def check_context(seq_len: int, max_context: int, name: str) -> None:
    """Raises TextError where the model reads no sequences of `seq_len` tokens."""
    if seq_len > max_context:
        raise TextError(f"{name} reads at most {max_context} tokens at once: choose sequences no longer than that.")
