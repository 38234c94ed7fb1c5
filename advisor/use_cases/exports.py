"""Folders that hold applied plans: whose plan, and the model read back to be evaluated."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from advisor import models
from advisor.documents import check_plan_document
from advisor.errors import ModelError, PlanError
from advisor.folders import PLAN_FILE, record_in, zip_folder
from advisor.formats.table import packed_bytes
from advisor.knowledge import find_format, find_target
from advisor.measured_speed import is_for_this_machine, with_speed
from advisor.methods import NEAREST, applied_method, codes_notes, methods_of, recovery_of
from advisor.paths import absolute, data_dir
from advisor.types import (
    AppliedMethod,
    ApplyRequest,
    Evaluation,
    ModelRef,
    Plan,
    Progress,
    Recovery,
    Target,
    ZipRequest,
)
from advisor.units import plural
from advisor.use_cases.calibrating import calibration_of
from advisor.use_cases.reporting import Cancelled, Report, stoppable


def own_export_folder(request: ApplyRequest) -> Path:
    """Where an applied plan goes when nobody says where: one folder for each plan and way, in the data folder."""
    way = [request.to]
    if methods_of(request.to):
        way.append(request.method)
    if request.recover:
        way.append(f"recovered-{request.recover}")
    if request.calibration:
        way.append(hashlib.sha256(request.calibration.encode()).hexdigest()[:8])
    return data_dir() / "exports" / "-".join([request.plan_id, *way])


def holds_export(folder: Path, plan: Plan, target: Target, request: ApplyRequest) -> bool:
    """Whether an earlier run exported this very plan in this very way to `folder`."""
    from advisor.export.registry import module_of

    found = plan_in(folder)
    same = holds_plan(folder, plan) and _same_method(found, request) and _same_recovery(found, request)
    return same and module_of(target).is_one(folder)


def holds_plan(folder: Path, plan: Plan) -> bool:
    """Whether a folder says that it was written from this plan."""
    found = plan_in(folder)
    return found is not None and (found.model, found.assignments) == (plan.model, plan.assignments)


def _same_method(found: Plan, request: ApplyRequest) -> bool:
    if not methods_of(request.to):
        return True
    applied = applied_method(found)
    if applied is None:
        return request.method == NEAREST
    return applied.asked == request.method and applied.text in (None, calibration_of(found, request.calibration).text)


def _same_recovery(found: Plan, request: ApplyRequest) -> bool:
    recovery = recovery_of(found)
    if recovery is None or not request.recover:
        return recovery is None and not request.recover
    return (recovery.steps, recovery.text) == (request.recover, calibration_of(found, request.calibration).text)


def recovery_in(folder: Path) -> Recovery | None:
    """What was trained of an export, and what that won; None where nothing was."""
    return recovery_of(plan_in(folder))


def method_in(folder: Path) -> AppliedMethod | None:
    """How the codes of an export were chosen; None for those of earlier versions, and where there is none of ours."""
    return applied_method(plan_in(folder))


def exported_plan(folder: Path) -> tuple[Target, Plan]:
    """How a folder that `apply` wrote was written, and its plan; raises ModelError for any other folder."""
    from advisor.export.registry import target_of

    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder}: check the path.")
    target, plan, record = target_of(folder), plan_in(folder), record_in(folder)
    if target is None and record is not None:  # what it is told by is gone, and will be named
        target = find_target(record.target)
    if target is None or plan is None:
        raise ModelError(f"{folder} holds no applied plan that can be read: give a folder that `apply` wrote.")
    return target, plan


def is_finished(folder: Path) -> bool:
    """Whether the folder is an engine's to load; K-quants may be left to be made by llama-quantize."""
    return not any(folder.glob("*-unquantized.gguf"))


def served_file(folder: Path) -> str:
    """The name of the file that an engine loads, made already or not; empty where it loads the folder."""
    return next((path.name.replace("-unquantized", "") for path in sorted(folder.glob("*.gguf"))), "")


def versions(target: Target) -> dict[str, str]:
    """Package -> version, of those that take part in writing its files."""
    found = {name: _version(name) for name in (*_PACKAGES, *target.packages)}
    return {name: version for name, version in found.items() if version}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def notes_on(folder: Path, simulated: Collection[str]) -> tuple[str, ...]:
    """Why the layers in `simulated` are not packed in an export, one sentence a reason."""
    record = record_in(folder)
    reasons = Counter(record.otherwise.get(name, "") for name in simulated) if record else {}
    return tuple(f"{plural(count, 'layer')} {reason}" for reason, count in reasons.items() if reason)


def plan_in(folder: Path) -> Plan | None:
    """The plan that an export carries; None where there is none of ours."""
    try:
        return check_plan_document((folder / PLAN_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, PlanError):
        return None


# Of every target; its own are in its row.
_PACKAGES = ("torch", "transformers", "safetensors")


def zip_export(request: ZipRequest, report: Report, cancelled: Cancelled) -> str:
    """Make one file of an applied plan's folder, beside it; returns its path.

    Raises:
        ModelError: the folder is gone. StorageError: the disk is full. JobCancelled: `cancelled()` became true.
    """
    folder, report = Path(request.folder), stoppable(report, cancelled)
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder} any more: apply the plan again.")

    def advance(done: int, total: int) -> None:
        report(Progress(stage="zip", done=done, total=total, message=f"Packing {folder.name}"))

    return str(zip_folder(folder, advance))


class Evaluated(NamedTuple):
    """What a person named to be evaluated, loaded; `sizes` are the fields of an Evaluation that say how large it is."""

    model: Any
    tokenizer: Any
    ref: ModelRef
    max_context: int
    sizes: dict[str, Any]
    notes: tuple[str, ...] = ()
    # Adds what an evaluation says of the speed of the plan that is evaluated.
    with_speed: Callable[[Evaluation], Evaluation] = lambda evaluation: evaluation


def check_evaluated(source: str) -> None:
    """Say early, before any model is loaded, that `source` names nothing to be evaluated; raises ModelError."""
    _foreign(source)


def load_for_evaluation(source: str, report: Report) -> Evaluated:
    """Any model, or a folder that `apply` wrote, with the sizes that can be said of it; raises ModelError."""
    from advisor.export.registry import target_of

    folder = Path(source).expanduser()
    ready_made = _ready_made(source, report)
    if ready_made is not None:
        return ready_made
    target = target_of(folder)
    if target is not None:
        return _load_export(folder, target, report)
    loaded = models.load(source, report)
    catalogue = loaded.catalogue
    own = find_format(catalogue.dtype)
    sizes = {"weights_bytes": sum(packed_bytes(own, layer) for layer in catalogue.layers)}
    return Evaluated(loaded.model, loaded.tokenizer, catalogue.model, catalogue.max_context, sizes)


def _ready_made(source: str, report: Report) -> Evaluated | None:
    """A quantized checkpoint or GGUF file that is none of our exports; None where it is something else."""
    from advisor import ready_made

    ref = _foreign(source)
    method = ready_made.method_of(ref) if ref else None
    if method is None:
        return None
    report(Progress(stage="load", message=f"Loading {ref.name}"))
    found = ready_made.load(ref, method)
    why = {name: find_target(name).note for name in ("gguf", "compressed-tensors")}
    unpacked = () if found.packed else (why.get(method, f"transformers unpacks {method} here: not timed"),)
    sizes = {"weights_bytes": found.bytes, "file_bytes": found.bytes, "timed": found.packed}
    context = found.model.config.get_text_config().max_position_embeddings
    notes = (f"quantized by {method}, as its files say", *unpacked)
    return Evaluated(found.model, found.tokenizer, ref, context, sizes, notes)


def _foreign(source: str) -> ModelRef | None:
    """What `source` names; None for a folder with a plan of ours. Raises ModelError where it names nothing readable."""
    from advisor.export.gguf_file import file_of

    folder = absolute(source)
    if folder is None or not folder.is_dir():
        return models.resolve(source)
    if plan_in(folder) is not None:
        return None
    return models.resolve(str(file_of(folder)) if any(folder.glob("*.gguf")) else source)


def _load_export(folder: Path, target: Target, report: Report) -> Evaluated:
    """An export by the module of its target; files that are not packed stand for weights of the plan's size."""
    from advisor.export.registry import module_of

    export, plan = module_of(target), plan_in(folder)
    ref = ModelRef(source=str(folder.resolve()), kind="folder", name=folder.resolve().name)
    report(Progress(stage="load", message=f"Loading {ref.name}"))
    device = models.pick_device()
    model = export.load(folder, models.pick_dtype("auto", device, _stored_dtype(folder))).to(device)
    files = sum(stored.bytes for stored in export.read(folder).values())
    held = files if target.packed or plan is None else plan.memory.model_weights_bytes
    sizes = {"weights_bytes": held, "file_bytes": files, "timed": target.timed}
    context = model.config.get_text_config().max_position_embeddings
    notes = (*([target.note] if target.note else []), *codes_notes(plan))
    described = model, models.load_tokenizer(str(folder)), ref, context, sizes, notes
    if plan is None or not (target.timed and is_for_this_machine(plan)):
        return Evaluated(*described)
    catalogue, simulated = export.catalogue_of(folder, plan)
    return Evaluated(*described, partial(with_speed, plan=plan, catalogue=catalogue, simulated=simulated))


def _stored_dtype(folder: Path) -> Any:
    """The dtype of what is not quantized, by config.json; BF16 where there is none, as beside a GGUF file."""
    import torch

    try:
        config = json.loads((folder / "config.json").read_text())
        return getattr(torch, config.get("dtype") or config["torch_dtype"])
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return torch.bfloat16
