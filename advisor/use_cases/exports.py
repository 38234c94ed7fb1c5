"""Folders that hold applied plans: whose plan, and the model read back to be evaluated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from advisor import models
from advisor.documents import check_plan_document
from advisor.errors import PlanError
from advisor.folders import PLAN_FILE, QUANTO_MAP
from advisor.formats.table import packed_bytes
from advisor.knowledge import find_format
from advisor.measured_speed import is_for_this_machine, with_speed
from advisor.paths import data_dir
from advisor.types import ApplyRequest, Evaluation, ModelRef, Plan, Progress
from advisor.use_cases.reporting import Report

Target = Literal["quanto", "compressed-tensors", "gguf", "gguf-k-quants", "simulated"]
SIMULATED = "simulated: the files hold de-quantized values; the size is that of the packed weights they stand for"
UNPACKED = "transformers unpacks compressed-tensors: not timed, since vLLM computes with the packed weights"
DEQUANTIZED = "computed by transformers from the file's de-quantized weights: llama.cpp also rounds what they multiply"


def own_export_folder(request: ApplyRequest) -> Path:
    """Where an applied plan goes when nobody says where: one folder for each plan and way, in the data folder."""
    return data_dir() / "exports" / f"{request.plan_id}-{request.to}"


def holds_export(folder: Path, plan: Plan, to: Target) -> bool:
    """Whether an earlier run exported this very plan in this very way to `folder`."""
    found = plan_in(folder)
    same = found is not None and (found.model, found.assignments) == (plan.model, plan.assignments)
    return same and _way(folder) == to


def _way(folder: Path) -> Target:
    from advisor.export.compressed_tensors_files import is_one

    if (folder / QUANTO_MAP).is_file():
        return "quanto"
    if folder.is_dir() and any(folder.glob("*.gguf")):
        return "gguf"
    return "compressed-tensors" if is_one(folder) else "simulated"


def plan_in(folder: Path) -> Plan | None:
    """The plan that an export carries; None where there is none of ours."""
    try:
        return check_plan_document((folder / PLAN_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, PlanError):
        return None


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


def load_for_evaluation(source: str, report: Report) -> Evaluated:
    """Any model, or a folder that `apply` wrote, with the sizes that can be said of it; raises ModelError."""
    folder = Path(source).expanduser()
    ready_made = _ready_made(source, report)
    if ready_made is not None:
        return ready_made
    packed = {"quanto": _load_packed, "compressed-tensors": _load_compressed, "gguf": _load_gguf}.get(_way(folder))
    if packed is not None:
        return packed(folder, report)
    loaded = models.load(source, report)
    catalogue = loaded.catalogue
    described = loaded.model, loaded.tokenizer, catalogue.model, catalogue.max_context
    plan = plan_in(folder)
    if plan is not None:
        sizes = {"weights_bytes": plan.memory.model_weights_bytes, "timed": False}
        return Evaluated(*described, sizes, (SIMULATED,))
    own = find_format(catalogue.dtype)
    return Evaluated(*described, {"weights_bytes": sum(packed_bytes(own, layer) for layer in catalogue.layers)})


def _ready_made(source: str, report: Report) -> Evaluated | None:
    """A quantized checkpoint or GGUF file that is none of our exports; None where it is something else."""
    from advisor import ready_made
    from advisor.export.gguf_file import file_of

    folder = Path(source).expanduser()
    if plan_in(folder) is not None:
        return None
    ref = models.resolve(str(file_of(folder)) if _way(folder) == "gguf" else source)
    method = ready_made.method_of(ref)
    if method is None:
        return None
    report(Progress(stage="load", message=f"Loading {ref.name}"))
    found = ready_made.load(ref, method)
    why = {"gguf": DEQUANTIZED, "compressed-tensors": UNPACKED}
    unpacked = () if found.packed else (why.get(method, f"transformers unpacks {method} here: not timed"),)
    sizes = {"weights_bytes": found.bytes, "file_bytes": found.bytes, "timed": found.packed}
    context = found.model.config.get_text_config().max_position_embeddings
    notes = (f"quantized by {method}, as its files say", *unpacked)
    return Evaluated(found.model, found.tokenizer, ref, context, sizes, notes)


def _load_compressed(folder: Path, report: Report) -> Evaluated:
    from advisor.evaluate import tensor_bytes
    from advisor.export import compressed_tensors, quanto

    ref = models.resolve(str(folder))
    report(Progress(stage="load", message=f"Loading {ref.name}"))
    device = models.pick_device()
    dtype = models.pick_dtype("auto", device, quanto.stored_dtype(folder))
    model = compressed_tensors.load(folder, dtype).to(device)
    size = tensor_bytes(folder)
    sizes = {"weights_bytes": size, "file_bytes": size, "timed": False}
    context = model.config.get_text_config().max_position_embeddings
    return Evaluated(model, models.load_tokenizer(str(folder)), ref, context, sizes, (UNPACKED,))


def _load_packed(folder: Path, report: Report) -> Evaluated:
    from advisor.evaluate import tensor_bytes
    from advisor.export import quanto

    ref = models.resolve(str(folder))
    report(Progress(stage="load", message=f"Loading {ref.name}"))
    device = models.pick_device()
    model = quanto.load(folder, models.pick_dtype("auto", device, quanto.stored_dtype(folder))).to(device)
    plan, size = plan_in(folder), tensor_bytes(folder)
    sizes = {"weights_bytes": plan.memory.model_weights_bytes if plan else size, "file_bytes": size}
    context = model.config.get_text_config().max_position_embeddings
    tokenizer = models.load_tokenizer(str(folder))
    if plan is None or not is_for_this_machine(plan):
        return Evaluated(model, tokenizer, ref, context, sizes)
    catalogue, simulated = quanto.catalogue_of(folder, plan)
    timed = partial(with_speed, plan=plan, catalogue=catalogue, simulated=simulated)
    return Evaluated(model, tokenizer, ref, context, sizes, with_speed=timed)


def _load_gguf(folder: Path, report: Report) -> Evaluated:
    from advisor.export.gguf_file import file_of

    ref, size = models.resolve(str(file_of(folder))), gguf_bytes(folder)
    report(Progress(stage="load", message=f"Loading {ref.name}"))
    model, tokenizer = load_gguf(folder), models.load_tokenizer(str(folder))
    sizes = {"weights_bytes": size, "file_bytes": size, "timed": False}
    return Evaluated(model, tokenizer, ref, model.config.max_position_embeddings, sizes, (DEQUANTIZED,))


def load_gguf(folder: Path, dtype: Any = None) -> Any:
    """The model of an export for llama.cpp on the device that computes, in `dtype` or what suits that device."""
    import torch

    from advisor.export import gguf

    device = models.pick_device()
    return gguf.load(folder, dtype or models.pick_dtype("auto", device, torch.bfloat16)).to(device)


def gguf_bytes(folder: Path) -> int:
    """Bytes of all weights in an export for llama.cpp."""
    from advisor.export import gguf

    return sum(stored.bytes for stored in gguf.read(folder).values())
