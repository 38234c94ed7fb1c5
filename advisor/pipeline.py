"""The use cases: the only place where the rooms of the road are put together. Pages, commands and jobs call these.

Importing it is cheap: torch and transformers are imported inside the functions that measure.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from advisor import models, planning, texts
from advisor.documents import check_plan_document
from advisor.errors import JobCancelled, KnowledgeError, PlanError
from advisor.export.folder import PLAN_FILE, QUANTO_MAP, check_free
from advisor.formats.table import packed_bytes
from advisor.knowledge import find_engine, find_format
from advisor.memory import weights_bytes
from advisor.paths import data_dir
from advisor.types import (
    ApplyRequest,
    Catalogue,
    Evaluation,
    ModelRef,
    Plan,
    PlanRequest,
    ProfileRequest,
    Progress,
    SensitivityProfile,
    TextSpec,
)
from storage.engine import open_repository
from storage.repository import Repository

if TYPE_CHECKING:
    import torch

    from advisor.evaluate import Scores
    from advisor.models import LoadedModel

Report = Callable[[Progress], None]
Cancelled = Callable[[], bool]
Target = Literal["quanto", "simulated"]


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


def check_text(source: str) -> None:
    """Raises TextError when `source` is no text that can be read."""
    texts.check_source(source)


# ------------------------------------------------------------------------------------------ measure


def inspect_model(source: str, store: Repository, report: Report = silent) -> Catalogue:
    """Load a model, catalogue its weights and store the catalogue."""
    catalogue = models.load(source, report).catalogue
    store.save_catalogue(catalogue)
    return catalogue


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
    texts.check_source(request.text)
    loaded = models.load(request.model, report, request.dtype, request.device)
    from advisor.profiler.run import ProfilingRun, choose_candidates, requested_part

    total = len(choose_candidates(loaded.catalogue, request))
    report(Progress(stage="baseline", total=total, message="Reading the text with the unquantized model"))
    run = ProfilingRun(loaded, request)
    stored = store.open_profile(run.header)
    done = total - len(run.remaining(stored))
    report(Progress(stage="measure", done=done, total=total, subject=stored.id))
    for measurement in run.measure(stored, cancelled):
        store.add_measurements(stored.id, [measurement])
        done += 1
        message = f"{measurement.layer} in {measurement.format}"
        report(Progress(stage="measure", done=done, total=total, message=message, subject=stored.id))
    return requested_part(store.profile(stored.id), run.candidates)


# ------------------------------------------------------------------------------------------- decide


def make_plan(profile: SensitivityProfile, request: PlanRequest) -> Plan:
    """Solve for a plan; pure and fast. Raises InfeasibleBudget, PlanError, KnowledgeError."""
    return planning.make_plan(profile, request)


# ------------------------------------------------------------------------------------------ confirm


def apply_plan(plan: Plan, to: Target, folder: Path, report: Report = silent) -> dict[str, str]:
    """Load the plan's model, apply the plan and write the folder.

    Returns:
        Layer name -> reason, for every layer that had to be simulated.

    Raises:
        PlanError: the plan does not fit the model. StorageError: the folder is taken or cannot be written.
    """
    check_free(folder)
    loaded = models.load(plan.model.source, report)
    return _export(loaded, plan, to, folder, report)


def evaluate_source(
    source: str, text: str = "python-docs", tokens: int = 4096, seq_len: int = 256, report: Report = silent
) -> Evaluation:
    """Perplexity of any model, or of a folder that `apply` wrote, on text held out from calibration."""
    texts.check_source(text)
    found = _load_for_evaluation(source, report)
    windows = texts.token_windows(text, found.tokenizer, "evaluation", math.ceil(tokens / seq_len), seq_len)
    measure = partial(_evaluation, found.ref.name, found.ref, text, windows, found.model, report)
    return measure(weights=found.weights_bytes, timed=True, notes=found.notes)[0]


def apply_and_evaluate(
    request: ApplyRequest, store: Repository, report: Report = silent, cancelled: Cancelled = never
) -> dict[str, Any]:
    """Apply a stored plan and measure it beside the original and uniform plans, storing each evaluation as it arrives.

    The plan is measured from the files that were written, read back.

    Returns:
        `evaluations` (ids), `folder`, and `simulated` (layer name -> reason).
    """
    plan = store.plan(request.plan_id)
    if plan is None:
        raise PlanError(f"There is no stored plan {request.plan_id}: save the plan first.")
    texts.check_source(request.text)
    check = partial(_report_or_stop, report, cancelled)
    loaded = models.load(plan.model.source, check)
    catalogue = loaded.catalogue
    from advisor.apply import check_plan_fits, simulated
    from advisor.evaluate import stored_bytes

    check_plan_fits(plan, catalogue)
    folder = _export_folder(request, plan)
    count = math.ceil(request.tokens / request.seq_len)
    windows = texts.token_windows(request.text, loaded.tokenizer, "evaluation", count, request.seq_len)
    measure = partial(_evaluation, ref=plan.model, text=request.text, windows=windows, report=check)
    ids = []

    def keep(evaluation: Evaluation) -> None:
        ids.append(store.save_evaluation(evaluation, plan_id=request.plan_id))

    size = partial(weights_bytes, catalogue, engine=find_engine(plan.request.engine))
    original, reference = measure("original", model=loaded.model, timed=True, weights=size({}), keep=True)
    keep(original)
    for name, assignments in _uniform_assignments(plan, request.baselines, size).items():
        with simulated(loaded.model, catalogue, assignments):
            keep(measure(name, model=loaded.model, reference=reference, weights=size(assignments))[0])
    compute = loaded.model.dtype
    not_packed = _export(loaded, plan, request.to, folder, check) if not folder.exists() else {}
    model = _read_back(folder, request.to, compute, check)
    weights = stored_bytes(folder) if request.to == "quanto" else plan.memory.weights_bytes
    notes = (f"{len(not_packed)} layers simulated",) if not_packed else ()
    keep(measure("plan", model=model, reference=reference, weights=weights, timed=True, notes=notes)[0])
    return {"evaluations": ids, "folder": str(folder), "simulated": not_packed}


def _report_or_stop(report: Report, cancelled: Cancelled, progress: Progress) -> None:
    if cancelled():
        raise JobCancelled("Applying was cancelled; evaluations that were finished are kept.")
    report(progress)


def _export_folder(request: ApplyRequest, plan: Plan) -> Path:
    """Where the export goes; an earlier export of this very plan is used again, anything else is refused."""
    folder = Path(request.out) if request.out else data_dir() / "exports" / f"{request.plan_id}-{request.to}"
    try:
        same = check_plan_document((folder / PLAN_FILE).read_text()) == plan
    except (OSError, PlanError):
        same = False
    if not same:
        check_free(folder)
    return folder


def _uniform_assignments(plan: Plan, formats: tuple[str, ...], size: Callable[[dict[str, str]], int]) -> dict:
    """`uniform <format>` -> every layer of the plan in that format, where the plan's engine stores it."""
    found = {}
    for fmt in formats:
        assignments = dict.fromkeys(plan.assignments, fmt)
        try:
            size(assignments)
        except KnowledgeError:
            continue  # an engine without the format has no such uniform plan to compare with
        found[f"uniform {fmt}"] = assignments
    return found


def _export(loaded: LoadedModel, plan: Plan, to: Target, folder: Path, report: Report) -> dict[str, str]:
    import torch

    from advisor.apply import check_plan_fits
    from advisor.export import quanto, simulated

    check_plan_fits(plan, loaded.catalogue)
    report(Progress(stage="apply", message=f"Writing {folder}"))
    own = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[loaded.catalogue.dtype]
    export = {"quanto": quanto.export, "simulated": simulated.export}[to]
    return export(loaded.model.to(own), loaded.tokenizer, loaded.catalogue, plan, folder)


def _read_back(folder: Path, to: Target, dtype: torch.dtype, report: Report) -> Any:
    from advisor.export import quanto

    report(Progress(stage="read back", message=f"Reading {folder}"))
    if to == "quanto":
        return quanto.load(folder, dtype).to(models.pick_device())
    return models.load_plain(str(folder), dtype)


class _Evaluated(NamedTuple):
    """What a person named to be evaluated, loaded, with the bytes that its weights take or stand for."""

    model: Any
    tokenizer: Any
    ref: ModelRef
    weights_bytes: int
    notes: tuple[str, ...] = ()


def _load_for_evaluation(source: str, report: Report) -> _Evaluated:
    folder = Path(source).expanduser()
    if (folder / QUANTO_MAP).is_file():
        return _load_packed(folder, report)
    loaded = models.load(source, report)
    ref, own = loaded.catalogue.model, find_format(loaded.catalogue.dtype)
    if (folder / PLAN_FILE).is_file():
        plan = check_plan_document((folder / PLAN_FILE).read_text())
        note = "simulated: the files hold de-quantized values, the size is that of the packed plan"
        return _Evaluated(loaded.model, loaded.tokenizer, ref, plan.memory.weights_bytes, (note,))
    weights = sum(packed_bytes(own, layer) for layer in loaded.catalogue.layers)
    return _Evaluated(loaded.model, loaded.tokenizer, ref, weights)


def _load_packed(folder: Path, report: Report) -> _Evaluated:
    from advisor.evaluate import stored_bytes
    from advisor.export import quanto

    ref = models.resolve(str(folder))
    report(Progress(stage="load", message=f"Loading {ref.name}"))
    device = models.pick_device()
    dtype = models.pick_dtype("auto", device, quanto.stored_dtype(folder))
    model = quanto.load(folder, dtype).to(device)
    return _Evaluated(model, models.load_tokenizer(str(folder)), ref, stored_bytes(folder))


def _evaluation(
    variant: str,
    ref: ModelRef,
    text: str,
    windows: torch.Tensor,
    model: Any,
    report: Report,
    reference: Scores | None = None,
    weights: int | None = None,
    timed: bool = False,
    keep: bool = False,
    notes: tuple[str, ...] = (),
) -> tuple[Evaluation, Scores]:
    """Score one variant on the windows; `weights` is the bytes that its weights take."""
    import time

    from advisor.evaluate import ms_per_token, score

    started = time.perf_counter()

    def advance(done: int, total: int) -> None:
        report(Progress(stage=f"evaluate {variant}", done=done, total=total, message=f"Evaluating {variant}"))

    advance(0, 0)
    scores = score(model, windows, reference, keep=keep, advance=advance)
    evaluation = Evaluation(
        variant=variant,
        model=ref,
        text=TextSpec(
            text=text,
            tokens=len(scores.nll),
            seq_len=windows.shape[1],
            text_sha256=texts.text_sha256(windows),
        ),
        weights_bytes=weights,
        ms_per_token=ms_per_token(model, windows) if timed else None,
        device=str(next(model.parameters()).device),
        seconds=time.perf_counter() - started,
        notes=notes,
        **scores.summary(reference),
    )
    return evaluation, scores
