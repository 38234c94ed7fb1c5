"""The use cases that confirm: a plan applied, and what was applied evaluated beside the original and uniform plans."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor import models, texts
from advisor.errors import PlanError
from advisor.folders import check_free
from advisor.formats.table import fits
from advisor.knowledge import find_engine, find_format, find_hardware, stored_format
from advisor.measured_speed import with_speed
from advisor.memory import estimate_memory, weights_bytes
from advisor.simple_plans import simple_plans
from advisor.types import ApplyRequest, Catalogue, Evaluation, Plan, Progress
from advisor.units import plural
from advisor.use_cases.deciding import check_plan_fits
from advisor.use_cases.evaluating import load_tasks, measuring_of
from advisor.use_cases.exports import (
    DEQUANTIZED,
    SIMULATED,
    UNPACKED,
    Target,
    gguf_bytes,
    holds_export,
    load_gguf,
    own_export_folder,
)
from advisor.use_cases.profiling import check_context
from advisor.use_cases.reporting import Cancelled, Report, never, silent, stoppable
from storage.repository import Repository

if TYPE_CHECKING:
    from advisor.evaluate import Measuring


def apply_plan(plan: Plan, to: Target, folder: Path, report: Report = silent) -> dict[str, str]:
    """Load the plan's model in its own dtype, apply the plan and write the folder.

    Returns:
        Layer name -> reason, for every layer whose weights could not be packed, or are stored as was not measured.

    Raises:
        PlanError: the plan does not fit the model. StorageError: the folder is taken or cannot be written.
    """
    check_free(folder)
    _check_exportable(plan, to)
    loaded = models.load(plan.model.source, report, dtype="own")
    from advisor.export import compressed_tensors, gguf, gguf_k_quants, quanto, simulated

    check_plan_fits(plan, loaded.catalogue)
    plan = _with_memory_of_its_assignments(plan, loaded.catalogue)
    report(Progress(stage="apply", message=f"Writing {folder}"))
    exports = {
        "quanto": quanto,
        "compressed-tensors": compressed_tensors,
        "gguf": gguf,
        "gguf-k-quants": gguf_k_quants,
        "simulated": simulated,
    }
    return exports[to].export(loaded.model, loaded.tokenizer, loaded.catalogue, plan, folder)


def apply_and_evaluate(
    request: ApplyRequest, store: Repository, report: Report = silent, cancelled: Cancelled = never
) -> dict[str, Any]:
    """Apply a stored plan and measure it beside the original and uniform plans, storing each evaluation as it arrives.

    The plan is measured from the files that were written, read back. What an earlier run on the same text finished is
    not measured again, apart from the plan itself.

    Returns:
        `folder`, where the quantized model is.
    """
    report = stoppable(report, cancelled)
    plan = _stored_plan(store, request.plan_id)
    _check_exportable(plan, request.to)
    texts.check_source(request.text, "evaluation")
    texts.check_stride(request.text, request.stride, request.seq_len)
    folder = Path(request.out).expanduser() if request.out else own_export_folder(request)
    reuse = holds_export(folder, plan, request.to)
    if not reuse:
        check_free(folder)
    tasks = load_tasks(request)
    loaded = models.load(plan.model.source, report)
    catalogue = loaded.catalogue
    check_context(request.seq_len, catalogue.max_context, catalogue.model.name)
    from advisor.apply import packing, simulated
    from advisor.export import compressed_tensors, gguf

    check_plan_fits(plan, catalogue)
    if request.to == "compressed-tensors":
        compressed_tensors.check(catalogue, plan)
    if request.to == "gguf":
        gguf.check(loaded.model, catalogue, plan)
    not_packed = packing(loaded.model, catalogue, plan.assignments).refused if request.to == "quanto" else {}
    measuring = measuring_of(
        plan.model, request.text, loaded.tokenizer, request.tokens, request.seq_len, report, request, tasks
    )
    finished = {e.variant for e in store.evaluations(request.plan_id) if measuring.covered_by(e)}
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


def _check_exportable(plan: Plan, to: Target) -> None:
    """compressed-tensors says in its configuration that inputs are rounded; the others hold weights only."""
    from advisor.apply import refuse_rounded_inputs

    if to != "compressed-tensors":
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


def _measure_export(
    measuring: Measuring,
    reference: Any,
    folder: Path,
    to: Target,
    dtype: Any,
    size: int,
    not_packed: dict[str, str],
) -> Evaluation:
    """The plan, from its files: packed ones are timed and weighed, simulated ones only stand for the packed weights.

    Those of llama.cpp are weighed; their speed is llama.cpp's.
    """
    from advisor.evaluate import tensor_bytes
    from advisor.export import compressed_tensors, quanto

    measuring.report(Progress(stage="read back", message=f"Reading {folder}"))
    if to == "simulated":
        model, notes = models.load_plain(str(folder), dtype), (SIMULATED,)
        return measuring.of("plan", model, reference, timed=False, weights_bytes=size, notes=notes)[0]
    if to == "compressed-tensors":
        model, files, notes = compressed_tensors.load(folder, dtype), tensor_bytes(folder), (UNPACKED,)
        model = model.to(models.pick_device())
        return measuring.of("plan", model, reference, timed=False, weights_bytes=size, file_bytes=files, notes=notes)[0]
    if to == "gguf":
        model, files = load_gguf(folder, dtype), gguf_bytes(folder)
        sizes = {"weights_bytes": files, "file_bytes": files}
        return measuring.of("plan", model, reference, timed=False, notes=(DEQUANTIZED,), **sizes)[0]
    model = quanto.load(folder, dtype).to(models.pick_device())
    notes = tuple(f"{plural(count, 'layer')} simulated: {why}" for why, count in Counter(not_packed.values()).items())
    files = tensor_bytes(folder)
    return measuring.of("plan", model, reference, weights_bytes=size, file_bytes=files, notes=notes)[0]
