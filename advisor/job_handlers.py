"""What each kind of job does: its parameters to the use case, in the job's own process, and the result to keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from advisor import pipeline
from advisor.pipeline import Cancelled, Report
from advisor.types import ApplyRequest, ProfileRequest, RefineRequest, ZipRequest
from storage.repository import Repository

Handler = Callable[[dict[str, Any], Repository, Report, Cancelled], dict[str, Any]]


def _inspect(params: dict[str, Any], store: Repository, report: Report, cancelled: Cancelled) -> dict[str, Any]:
    catalogue = pipeline.inspect_model(params["model"], store, report, cancelled)
    return {"fingerprint": catalogue.model.fingerprint}


def _preview(params: dict[str, Any], store: Repository, report: Report, cancelled: Cancelled) -> dict[str, Any]:
    return pipeline.preview_profile(ProfileRequest(**params), report, cancelled).model_dump(mode="json")


def _profile(params: dict[str, Any], store: Repository, report: Report, cancelled: Cancelled) -> dict[str, Any]:
    return {"profile_id": pipeline.profile_model(ProfileRequest(**params), store, report, cancelled).id}


def _refine(params: dict[str, Any], store: Repository, report: Report, cancelled: Cancelled) -> dict[str, Any]:
    return {"plan_id": pipeline.refine_and_store(RefineRequest(**params), store, report, cancelled)}


def _apply(params: dict[str, Any], store: Repository, report: Report, cancelled: Cancelled) -> dict[str, Any]:
    return pipeline.apply_and_evaluate(ApplyRequest(**params), store, report, cancelled)


def _zip(params: dict[str, Any], store: Repository, report: Report, cancelled: Cancelled) -> dict[str, Any]:
    return {"zip": pipeline.zip_export(ZipRequest(**params), report, cancelled)}


def _answers(params: dict[str, Any], store: Repository, report: Report, cancelled: Cancelled) -> dict[str, Any]:
    return pipeline.answer_prompts(params["test_id"], store, report, cancelled)


HANDLERS: dict[str, Handler] = {
    "inspect": _inspect,
    "preview": _preview,
    "profile": _profile,
    "refine": _refine,
    "apply": _apply,
    "zip": _zip,
    "answers": _answers,
}
