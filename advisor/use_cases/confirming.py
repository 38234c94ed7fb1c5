"""The use cases that confirm: a plan applied, and what was applied evaluated beside the original and uniform plans."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor import models, texts
from advisor.documents import write_document
from advisor.errors import KnowledgeError, ModelError, PlanError, StorageError
from advisor.export_checks import refuse_rounded_inputs
from advisor.export_size import size_fields
from advisor.folders import CARD_FILE, PLAN_FILE, RECORD_FILE, check_free, new_folder, record_in
from advisor.formats.table import fits
from advisor.knowledge import find_engine, find_format, find_hardware, find_method, find_target, stored_format
from advisor.measured_speed import with_speed
from advisor.memory import estimate_memory, weights_bytes
from advisor.methods import choose, codes_notes, methods_of, recovery_of
from advisor.model_card import model_card
from advisor.model_license import base_model, license_of
from advisor.planner.comparison import edited
from advisor.planner.simple_plans import simple_plans
from advisor.types import (
    PREDICTED_FOR,
    ApplyRequest,
    Catalogue,
    Evaluation,
    ExportRecord,
    Plan,
    Progress,
    Target,
    Verification,
    latest_evaluations,
)
from advisor.use_cases.calibrating import with_method
from advisor.use_cases.deciding import check_plan_fits
from advisor.use_cases.evaluating import load_tasks, measuring_of
from advisor.use_cases.exports import (
    exported_plan,
    holds_export,
    is_finished,
    notes_on,
    own_export_folder,
    plan_in,
    served_file,
    versions,
)
from advisor.use_cases.profiling import check_context
from advisor.use_cases.recovering import refuse_unrecoverable, with_recovery
from advisor.use_cases.reporting import Cancelled, Report, never, silent, stoppable
from storage.repository import Repository

if TYPE_CHECKING:
    from advisor.evaluate import Measuring


def apply_plan(
    plan: Plan,
    to: str,
    folder: Path,
    report: Report = silent,
    method: str = "auto",
    calibration: str | None = None,
    recover: int = 0,
) -> dict[str, str]:
    """Load the plan's model in its own dtype, apply the plan, write the folder, and hold it against the plan.

    Args:
        method: `rtn`, `gptq`, `awq`, `smoothquant`, or `auto` for the one that suits plan and target.
        calibration: text for it other than what the plan's scores were measured on.
        recover: steps of distilling the original into scales and norms, with the same text; none unless told.

    Returns:
        Layer name -> reason, for every layer whose weights could not be packed, or are stored as was not measured.

    Raises:
        PlanError: the plan does not fit the model, or cannot be written in this way. StorageError: the folder is
            taken or cannot be written. TextError: `calibration` cannot be used. ModelError: what was written is not
            what was planned; it is removed.
    """
    folder = check_free(folder)
    target = find_target(to)
    _refuse_early(plan, target, method, calibration, recover, report)
    loaded = models.load(plan.model.source, report, dtype="own")
    from advisor.export.calibrated import put
    from advisor.export.digests import digests, file_digests
    from advisor.export.gguf_file import COMMAND_FILE
    from advisor.export.read_back import read_back
    from advisor.export.registry import module_of

    catalogue = loaded.catalogue
    check_plan_fits(plan, catalogue)
    module_of(target).check(loaded.model, catalogue, plan)
    plan = _stated(plan, catalogue)
    planned = module_of(target).expected(loaded.model, catalogue, plan)
    plan, chosen = with_method(plan, target.name, method, calibration, loaded, report)
    if recover:
        plan, chosen = with_recovery(plan, chosen, recover, calibration, loaded, report)
    put(loaded.model, {}, chosen.weights)
    codes = {"codes": chosen.codes} if chosen.codes else {}
    report(Progress(stage="apply", message=f"Writing {folder}"))
    with new_folder(folder) as beside:
        otherwise = module_of(target).export(loaded.model, loaded.tokenizer, catalogue, plan, beside, **codes)
        del loaded  # what is read back needs the memory
        record = ExportRecord(
            target=target.name,
            otherwise=otherwise,
            base_model=base_model(plan.model),
            license=license_of(plan.model),
            versions=versions(target),
            **size_fields(plan, catalogue, target, planned),
        )
        if is_finished(beside):
            found = read_back(beside, plan, target, None, report, chosen.codes, chosen.weights)
            held = {"tensors": digests(beside), "files": file_digests(beside)}
            record = record.model_copy(update={**held, "verified": found})
        else:
            record = record.model_copy(update={"left": f"sh {COMMAND_FILE}"})
        (beside / RECORD_FILE).write_text(record.model_dump_json(indent=2))
        (beside / CARD_FILE).write_text(model_card(plan, catalogue, record, served_file(beside)), encoding="utf-8")
    return otherwise


def _refuse_early(
    plan: Plan, target: Target, method: str, calibration: str | None, recover: int, report: Report
) -> None:
    """Whatever cannot be and is known before the model is loaded; raises PlanError or TextError."""
    _refuse_rounded_inputs(plan, target)
    chosen = find_method(choose(method, plan, target.name).name)
    refuse_unrecoverable(plan, target.name, recover)
    if calibration:
        texts.check_readable(calibration)
        if not (chosen.calibrates or recover):
            raise PlanError(
                f"Nothing here reads the calibration text {calibration}: {target.label} gets its codes by "
                f"{chosen.label}, and no recovery was asked for. Leave the text out."
            )
    _refuse_unwritable(plan, target, report)


def _refuse_unwritable(plan: Plan, target: Target, report: Report) -> None:
    """What the target cannot hold of the plan, by the model's configuration alone; raises PlanError."""
    from advisor.export.registry import module_of

    try:
        model, catalogue = models.load_empty(plan.model.source, report)
    except ModelError:  # loading tells it, or finds out what the configuration does not say
        return
    # A plan for another model is told as that, when the weights are there to be compared.
    if plan.assignments.keys() <= {layer.name for layer in catalogue.quantizable}:
        module_of(target).check(model, catalogue, plan)


def verify_export(folder: Path, plan: Plan, report: Report = silent) -> Verification:
    """Compare a folder that `apply` wrote with a plan: formats, group sizes, bytes, values, and what it computes.

    Raises:
        ModelError: the folder is missing or damaged, or differs from the plan, with the names of the tensors.
        PlanError: the plan is for another model.
    """
    target, written = exported_plan(folder)
    if (written.model.fingerprint or written.model) != (plan.model.fingerprint or plan.model):
        raise PlanError(
            f"{folder} holds {written.model.name} and the plan is for {plan.model.name}, or for other weights of that "
            "name: give the plan that was applied."
        )
    record = record_in(folder)
    if record is None:
        raise ModelError(
            f"{folder / RECORD_FILE}, which keeps what was written, is missing or damaged: without it nobody can tell "
            "what was changed since; apply the plan again."
        )
    from advisor.export.read_back import read_back

    recovered = recovery_of(written)
    # A target that takes a method's codes has an unpacker of its own for them, scales included.
    trained = recovered is not None and recovered.kept and not methods_of(target.name)
    try:
        return read_back(folder, plan, target, record, report, trained=trained)
    except (KnowledgeError, ModelError) as error:
        if written.assignments == plan.assignments:
            raise
        own = f"The folder was written from another plan: its own is {folder / PLAN_FILE}."
        raise ModelError(f"{error} {own}") from error


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
    target = find_target(request.to)
    texts.check_readable(request.text, "evaluation")
    texts.check_stride(request.text, request.stride, request.seq_len)
    folder = Path(request.out).expanduser() if request.out else own_export_folder(request)
    reuse = holds_export(folder, plan, target, request)
    if not reuse:
        _refuse_taken(folder)
    tasks = load_tasks(request)
    _refuse_early(plan, target, request.method, request.calibration, request.recover, report)
    if reuse:
        verify_export(folder, plan, report)
    loaded = models.load(plan.model.source, report)
    catalogue = loaded.catalogue
    check_context(request.seq_len, catalogue.max_context, catalogue.model.name)
    from advisor.apply import simulated
    from advisor.export.registry import module_of

    check_plan_fits(plan, catalogue)
    export = module_of(target)
    export.check(loaded.model, catalogue, plan)
    wanted = export.expected(loaded.model, catalogue, plan)
    not_packed = [
        name
        for name, fmt in plan.assignments.items()
        if find_format(fmt).quantized and not find_format(wanted[name].format).quantized
    ]
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
        apply_plan(plan, request.to, folder, report, request.method, request.calibration, request.recover)
    found = _measure_export(measuring, reference, folder, target, compute, bytes_of(plan.assignments), not_packed)
    store.save_evaluation(with_speed(found, plan, catalogue, not_packed), plan_id=request.plan_id)
    _write_card(folder, catalogue, store.evaluations(request.plan_id))
    return {"folder": str(folder)}


def _refuse_taken(folder: Path) -> None:
    """Raises StorageError for a place that holds something, or that takes no folder."""
    if plan_in(folder) is not None:
        raise StorageError(
            f"{folder} holds another plan, or this one written in another way: choose another folder, or remove it."
        )
    check_free(folder)


def _refuse_rounded_inputs(plan: Plan, target: Target) -> None:
    """Before the model is loaded: files that hold weights only compute something else than such a plan."""
    if not target.activations:
        refuse_rounded_inputs(plan.assignments, target.label)


def _write_card(folder: Path, catalogue: Catalogue, evaluations: Sequence[Evaluation]) -> None:
    """The export's model card with what was measured last."""
    record, plan = record_in(folder), plan_in(folder)
    if record is not None and plan is not None:
        measured = list(latest_evaluations(evaluations).values())
        card = model_card(plan, catalogue, record, served_file(folder), measured)
        write_document(folder / CARD_FILE, card)


def _stored_plan(store: Repository, plan_id: str) -> Plan:
    plan = store.plan(plan_id)
    if plan is None:
        raise PlanError(f"There is no stored plan {plan_id}: save the plan first.")
    return plan


def _stated(plan: Plan, catalogue: Catalogue) -> Plan:
    """A plan edited by hand may state memory and prediction of what it was before; the export says what it holds."""
    engine, hardware = find_engine(plan.request.engine), find_hardware(plan.request.hardware)
    memory = estimate_memory(catalogue, plan.assignments, engine, hardware, plan.request.budget)
    provenance = plan.provenance | ({PREDICTED_FOR: "the plan before it was edited"} if edited(plan) else {})
    return plan.model_copy(update={"memory": memory, "provenance": provenance})


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
    target: Target,
    dtype: Any,
    size: int,
    simulated: Collection[str],
) -> Evaluation:
    """The plan, from its files: packed ones are weighed, and timed where transformers computes with what is packed."""
    from advisor.export.registry import module_of

    measuring.report(Progress(stage="read back", message=f"Reading {folder}"))
    export = module_of(target)
    model = export.load(folder, dtype).to(models.pick_device())
    files = sum(stored.bytes for stored in export.read(folder).values())
    told = (*([target.note] if target.note else []), *notes_on(folder, simulated), *codes_notes(plan_in(folder)))
    found, _ = measuring.of(
        "plan",
        model,
        reference,
        timed=target.timed,
        weights_bytes=size,
        file_bytes=files,
        notes=(*told, *measuring.notes),
    )
    return found
