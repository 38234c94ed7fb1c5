"""The use cases: the only place where the rooms of the road are put together. Pages, commands and jobs call these.

Importing it is cheap: torch and transformers are imported inside the functions that measure.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from advisor import front, models, planning, texts
from advisor.documents import check_plan_document
from advisor.errors import JobCancelled, PlanError, TextError
from advisor.estimates import with_projections
from advisor.folders import PLAN_FILE, QUANTO_MAP, check_free
from advisor.formats.table import fits, packed_bytes
from advisor.knowledge import find_engine, find_format, find_hardware, stored_format
from advisor.measured_speed import is_for_this_machine, with_speed
from advisor.memory import estimate_memory, weights_bytes
from advisor.paths import data_dir
from advisor.simple_plans import simple_plans
from advisor.types import (
    ApplyRequest,
    Catalogue,
    Evaluation,
    FeasibleRange,
    Front,
    Measurement,
    ModelRef,
    Plan,
    PlanRequest,
    Preview,
    ProfileRequest,
    Progress,
    RefineRequest,
    SensitivityProfile,
    WorkEstimate,
)
from advisor.units import duration, plural, size
from storage.engine import open_repository
from storage.repository import Repository

if TYPE_CHECKING:
    from advisor.evaluate import Measuring
    from advisor.profiler.probe import PlanProbe
    from advisor.profiler.run import ProfilingRun

Report = Callable[[Progress], None]
Cancelled = Callable[[], bool]
Target = Literal["quanto", "simulated"]

_REFINEMENT_DRAWS = 4

_SIMULATED = "simulated: the files hold de-quantized values; the size is that of the packed weights they stand for"


def silent(progress: Progress) -> None:
    """A report for callers that do not show progress."""


def never() -> bool:
    """A `cancelled` for callers that cannot be cancelled."""
    return False


# ------------------------------------------------------------------------------------------- before


def open_store() -> Repository:
    """The database: `ADVISOR_DATABASE_URL`, else SQLite in the data folder; migrated to the newest schema."""
    return open_repository(os.environ.get("ADVISOR_DATABASE_URL") or f"sqlite:///{data_dir() / 'advisor.sqlite'}")


def check_source(source: str) -> ModelRef:
    """What `source` names, without loading it; raises ModelError with what to do instead."""
    return models.resolve(source)


def check_text(source: str) -> str:
    """Calibration text as a job can read it from any folder; raises TextError when it is none that can be read."""
    return texts.check_source(source)


# ------------------------------------------------------------------------------------------ measure


def inspect_model(source: str, store: Repository, report: Report = silent, cancelled: Cancelled = never) -> Catalogue:
    """Load a model, catalogue its weights and store the catalogue."""
    catalogue = models.load(source, _stoppable(report, cancelled), dtype="own").catalogue
    store.save_catalogue(catalogue)
    return catalogue


def preview_profile(request: ProfileRequest, report: Report = silent, cancelled: Cancelled = never) -> Preview:
    """What the request's text is worth and what its run would take; nothing is stored.

    Raises:
        ModelError, TextError, KnowledgeError: something in the request cannot be used.
    """
    report = _stoppable(report, cancelled)
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
        ModelError, TextError, KnowledgeError: something in the request cannot be used; nothing was stored.
        JobCancelled: `cancelled()` became true; the same request goes on from what is stored.
    """
    report = _stoppable(report, cancelled)
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
    """The loaded model and its text, ready to be measured. Raises ModelError, TextError, KnowledgeError."""
    texts.check_source(request.text)
    loaded = models.load(request.model, report, request.dtype, request.device, may_offload=True)
    _check_context(request.seq_len, loaded.catalogue.max_context, loaded.catalogue.model.name)
    from advisor.profiler.run import ProfilingRun

    return ProfilingRun(loaded, request)


def _expectation(estimate: WorkEstimate) -> str:
    most = "at most " if estimate.at_most else "about "
    return f"{estimate.scores:,} scores in {most}{duration(estimate.seconds)}, {size(estimate.memory_bytes)} of memory"


def _measure_exactly(run: ProfilingRun, stored: SensitivityProfile, store: Repository, report: Report) -> None:
    advanced = _counted("measure", "layers and formats, one by one", stored.id, report)
    for found in run.exact(stored, run.candidates, advanced):
        store.add_measurements(stored.id, found)


def _estimate(run: ProfilingRun, stored: SensitivityProfile, store: Repository, report: Report) -> None:
    advanced = _counted("estimate", "all layers and formats together, block by block", stored.id, report)
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
    for found in run.exact(exact, candidates, _counted("measure", what, stored.id, report)):
        store.add_measurements(exact.id, found)
        store.add_measurements(stored.id, merged(found))


def _counted(stage: str, message: str, subject: str, report: Report) -> Callable[[int, int], None]:
    return lambda done, total: report(Progress(stage=stage, done=done, total=total, message=message, subject=subject))


def _stoppable(report: Report, cancelled: Cancelled) -> Report:
    """A report that raises JobCancelled once `cancelled()` is true: work stops wherever it tells how far it is."""

    def report_or_stop(progress: Progress) -> None:
        if cancelled():
            raise JobCancelled("Stopped as asked; what was measured is kept, and the same request goes on from there.")
        report(progress)

    return report_or_stop


def _check_context(seq_len: int, max_context: int, name: str) -> None:
    if seq_len > max_context:
        raise TextError(f"{name} reads at most {max_context} tokens at once: choose sequences no longer than that.")


# ------------------------------------------------------------------------------------------- decide


def make_plan(profile: SensitivityProfile, request: PlanRequest) -> Plan:
    """Solve for a plan; pure and fast. Raises InfeasibleBudget, PlanError, KnowledgeError."""
    return planning.make_plan(profile, request)


def pareto_front(
    profile: SensitivityProfile, request: PlanRequest, points: int = front.POINTS, most: int | None = None
) -> Front:
    """The least loss at every size; pure, seconds for large models. Raises PlanError, KnowledgeError."""
    return front.pareto_front(profile, request, points, most)


def feasible_range(profile: SensitivityProfile, request: PlanRequest) -> FeasibleRange:
    """The smallest and the most precise plan, whatever the limit; pure and fast. Raises PlanError, KnowledgeError."""
    return front.feasible_range(profile, request)


def check_plan_fits(plan: Plan, catalogue: Catalogue) -> None:
    """Refuse a plan for other weights, or one that names layers or formats that cannot be; raises PlanError."""
    planning.check_plan_fits(plan, catalogue)


def refine_plan(
    profile: SensitivityProfile,
    request: PlanRequest,
    rounds: int = 3,
    report: Report = silent,
    cancelled: Cancelled = never,
    probe: PlanProbe | None = None,
) -> Plan:
    """The plan for a request, improved on its model in at most `rounds` rounds and measured beside the simple plans.

    Gradients are taken on the profile's own calibration text. Text that follows it decides between plans, and still
    other text tells what the chosen one loses. A `probe` of the same profile saves loading the model again.

    Raises:
        InfeasibleBudget, PlanError, KnowledgeError: as `make_plan`.
        ModelError, TextError: the model or its text is not there any more, or is another one; the text is too short.
        JobCancelled: `cancelled()` became true.
    """
    report = _stoppable(report, cancelled)
    planning.make_plan(profile, request)  # what cannot be met is refused before the model is loaded
    probe = probe or plan_probe(profile, report)
    from advisor.refine import refine

    probe.advanced = _counted("gradients", "with the plan in place, block by block", "", report)

    def tell(done: int, message: str) -> None:
        report(Progress(stage="rounds", done=done, total=rounds, message=message))

    return refine(profile, request, probe, rounds, profile.calibration.text, tell)


def refine_and_store(
    request: RefineRequest, store: Repository, report: Report = silent, cancelled: Cancelled = never
) -> str:
    """Refine the plan of a stored profile and store it; returns its id. Raises what `refine_plan` raises."""
    profile = store.profile(request.profile_id)
    if profile is None:
        raise PlanError(f"There is no stored sensitivity profile {request.profile_id}: profile the model again.")
    plan = refine_plan(profile, request.plan, request.rounds, report, cancelled)
    return store.save_plan(plan, request.profile_id, request.name)


def plan_probe(profile: SensitivityProfile, report: Report = silent) -> PlanProbe:
    """The profile's model on its text, ready to measure whole plans; raises PlanError, ModelError, TextError."""
    loaded = models.load(profile.catalogue.model.source, report, _dtype_of(profile))
    if loaded.catalogue.model.fingerprint != profile.catalogue.model.fingerprint:
        raise PlanError(f"{profile.catalogue.model.name} has other weights now than were profiled: profile it again.")
    from advisor.profiler.probe import PlanProbe, split_windows

    windows = split_windows(profile.calibration, loaded.tokenizer)
    return PlanProbe(loaded, windows, _REFINEMENT_DRAWS, profile.calibration.seed)


def _dtype_of(profile: SensitivityProfile) -> str:
    # A request has no FP16: a model of that dtype is measured in it by `auto`.
    return "auto" if profile.dtype == "fp16" else profile.dtype


# ------------------------------------------------------------------------------------------ confirm


def apply_plan(plan: Plan, to: Target, folder: Path, report: Report = silent) -> dict[str, str]:
    """Load the plan's model in its own dtype, apply the plan and write the folder.

    Returns:
        Layer name -> reason, for every layer whose weights could not be packed.

    Raises:
        PlanError: the plan does not fit the model. StorageError: the folder is taken or cannot be written.
    """
    check_free(folder)
    _check_exportable(plan)
    loaded = models.load(plan.model.source, report, dtype="own")
    from advisor.export import quanto, simulated

    check_plan_fits(plan, loaded.catalogue)
    plan = _with_memory_of_its_assignments(plan, loaded.catalogue)
    report(Progress(stage="apply", message=f"Writing {folder}"))
    export = {"quanto": quanto.export, "simulated": simulated.export}[to]
    return export(loaded.model, loaded.tokenizer, loaded.catalogue, plan, folder)


def evaluate_source(
    source: str, text: str = "python-docs", tokens: int = 4096, seq_len: int = 256, report: Report = silent
) -> Evaluation:
    """Perplexity of any model, or of a folder that `apply` wrote, on text held out from calibration."""
    texts.check_source(text, "evaluation")
    found = _load_for_evaluation(source, report)
    _check_context(seq_len, found.max_context, found.ref.name)
    measuring = _measuring(found.ref, text, found.tokenizer, tokens, seq_len, report)
    evaluation, _ = measuring.of(found.ref.name, found.model, notes=found.notes, **found.sizes)
    return found.with_speed(evaluation)


def apply_and_evaluate(
    request: ApplyRequest, store: Repository, report: Report = silent, cancelled: Cancelled = never
) -> dict[str, Any]:
    """Apply a stored plan and measure it beside the original and uniform plans, storing each evaluation as it arrives.

    The plan is measured from the files that were written, read back. What an earlier run on the same text finished is
    not measured again, apart from the plan itself.

    Returns:
        `folder`, where the quantized model is.
    """
    report = _stoppable(report, cancelled)
    plan = _stored_plan(store, request.plan_id)
    _check_exportable(plan)
    texts.check_source(request.text, "evaluation")
    folder = Path(request.out).expanduser() if request.out else _own_export_folder(request)
    reuse = _holds_export(folder, plan, request.to)
    if not reuse:
        check_free(folder)
    loaded = models.load(plan.model.source, report)
    catalogue = loaded.catalogue
    _check_context(request.seq_len, catalogue.max_context, catalogue.model.name)
    from advisor.apply import packing, simulated

    check_plan_fits(plan, catalogue)
    not_packed = packing(loaded.model, catalogue, plan.assignments).refused if request.to == "quanto" else {}
    measuring = _measuring(plan.model, request.text, loaded.tokenizer, request.tokens, request.seq_len, report)
    finished = {e.variant for e in store.evaluations(request.plan_id) if e.text == measuring.text_spec}
    bytes_of = partial(weights_bytes, catalogue, engine=find_engine(plan.request.engine))

    original, reference = measuring.of("original", loaded.model, keep=True, weights_bytes=bytes_of({}))
    if "original" not in finished:
        store.save_evaluation(original, plan_id=request.plan_id)
    for name, assignments in _uniform_assignments(plan, request.baselines, catalogue, store).items():
        if name not in finished:
            with simulated(loaded.model, catalogue, assignments):
                found, _ = measuring.of(name, loaded.model, reference, timed=False, weights_bytes=bytes_of(assignments))
            store.save_evaluation(found, plan_id=request.plan_id)
    compute = loaded.model.dtype
    del loaded  # the export loads the weights in their own dtype
    if not reuse:
        apply_plan(plan, request.to, folder, report)
    found = _measure_export(measuring, reference, folder, request.to, compute, bytes_of(plan.assignments), not_packed)
    store.save_evaluation(with_speed(found, plan, catalogue, not_packed), plan_id=request.plan_id)
    return {"folder": str(folder)}


def _check_exportable(plan: Plan) -> None:
    from advisor.apply import refuse_rounded_inputs

    refuse_rounded_inputs(plan.assignments, "an export")


def _stored_plan(store: Repository, plan_id: str) -> Plan:
    plan = store.plan(plan_id)
    if plan is None:
        raise PlanError(f"There is no stored plan {plan_id}: save the plan first.")
    return plan


def _with_memory_of_its_assignments(plan: Plan, catalogue: Catalogue) -> Plan:
    """A plan edited by hand may state the memory of what it was before; the export states what it holds."""
    engine, hardware = find_engine(plan.request.engine), find_hardware(plan.request.hardware)
    memory = estimate_memory(catalogue, plan.assignments, engine, hardware, plan.request.budget)
    return plan.model_copy(update={"memory": memory})


def _own_export_folder(request: ApplyRequest) -> Path:
    return data_dir() / "exports" / f"{request.plan_id}-{request.to}"


def _holds_export(folder: Path, plan: Plan, to: Target) -> bool:
    """Whether an earlier run exported this very plan in this very way to `folder`."""
    found = _plan_in(folder)
    same = found is not None and (found.model, found.assignments) == (plan.model, plan.assignments)
    return same and (folder / QUANTO_MAP).is_file() == (to == "quanto")


def _plan_in(folder: Path) -> Plan | None:
    """The plan that an export carries; None where there is none of ours."""
    try:
        return check_plan_document((folder / PLAN_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, PlanError):
        return None


def _uniform_assignments(
    plan: Plan, formats: tuple[str, ...], catalogue: Catalogue, store: Repository
) -> dict[str, dict[str, str]]:
    """`uniform <format>` -> the assignments that its prediction on the plan page has.

    Without the plan's profile, layers that cannot have the format keep the model's dtype.
    """
    engine = find_engine(plan.request.engine)
    wanted = [find_format(name) for name in formats]
    profile = store.profile(str(plan.provenance.get("profile_id", "")))
    if profile is not None:
        plans = simple_plans(profile, plan.request, [fmt.name for fmt in wanted if fmt.name in profile.formats])
        return {name: found.assignments for name, found in plans.items() if name.startswith("uniform ")}
    layers = catalogue.by_name()
    return {
        f"uniform {fmt.name}": {
            name: fmt.name if fits(stored_format(engine, fmt), layers[name]) else catalogue.dtype
            for name in plan.assignments
        }
        for fmt in wanted
        if fmt.name in engine.formats
    }


def _measuring(ref: ModelRef, text: str, tokenizer: Any, tokens: int, seq_len: int, report: Report) -> Measuring:
    from advisor.evaluate import Measuring

    windows = texts.token_windows(text, tokenizer, "evaluation", math.ceil(tokens / seq_len), seq_len)
    return Measuring(ref, text, windows, report)


def _measure_export(
    measuring: Measuring,
    reference: Any,
    folder: Path,
    to: Target,
    dtype: Any,
    size: int,
    not_packed: dict[str, str],
) -> Evaluation:
    """The plan, from its files: packed ones are timed and weighed, simulated ones only stand for the packed weights."""
    from advisor.evaluate import tensor_bytes
    from advisor.export import quanto

    measuring.report(Progress(stage="read back", message=f"Reading {folder}"))
    if to == "simulated":
        model, notes = models.load_plain(str(folder), dtype), (_SIMULATED,)
        return measuring.of("plan", model, reference, timed=False, weights_bytes=size, notes=notes)[0]
    model = quanto.load(folder, dtype).to(models.pick_device())
    notes = tuple(f"{plural(count, 'layer')} simulated: {why}" for why, count in Counter(not_packed.values()).items())
    files = tensor_bytes(folder)
    return measuring.of("plan", model, reference, weights_bytes=size, file_bytes=files, notes=notes)[0]


class _Evaluated(NamedTuple):
    """What a person named to be evaluated, loaded; `sizes` are the fields of an Evaluation that say how large it is."""

    model: Any
    tokenizer: Any
    ref: ModelRef
    max_context: int
    sizes: dict[str, Any]
    notes: tuple[str, ...] = ()
    # Adds what an evaluation says of the speed of the plan that is evaluated.
    with_speed: Callable[[Evaluation], Evaluation] = lambda evaluation: evaluation


def _load_for_evaluation(source: str, report: Report) -> _Evaluated:
    folder = Path(source).expanduser()
    if (folder / QUANTO_MAP).is_file():
        return _load_packed(folder, report)
    loaded = models.load(source, report)
    catalogue = loaded.catalogue
    described = loaded.model, loaded.tokenizer, catalogue.model, catalogue.max_context
    plan = _plan_in(folder)
    if plan is not None:
        sizes = {"weights_bytes": plan.memory.model_weights_bytes, "timed": False}
        return _Evaluated(*described, sizes, (_SIMULATED,))
    own = find_format(catalogue.dtype)
    return _Evaluated(*described, {"weights_bytes": sum(packed_bytes(own, layer) for layer in catalogue.layers)})


def _load_packed(folder: Path, report: Report) -> _Evaluated:
    from advisor.evaluate import tensor_bytes
    from advisor.export import quanto

    ref = models.resolve(str(folder))
    report(Progress(stage="load", message=f"Loading {ref.name}"))
    device = models.pick_device()
    model = quanto.load(folder, models.pick_dtype("auto", device, quanto.stored_dtype(folder))).to(device)
    plan, size = _plan_in(folder), tensor_bytes(folder)
    sizes = {"weights_bytes": plan.memory.model_weights_bytes if plan else size, "file_bytes": size}
    context = model.config.get_text_config().max_position_embeddings
    tokenizer = models.load_tokenizer(str(folder))
    if plan is None or not is_for_this_machine(plan):
        return _Evaluated(model, tokenizer, ref, context, sizes)
    catalogue, simulated = quanto.catalogue_of(folder, plan)
    timed = partial(with_speed, plan=plan, catalogue=catalogue, simulated=simulated)
    return _Evaluated(model, tokenizer, ref, context, sizes, with_speed=timed)
