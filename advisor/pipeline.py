"""The use cases: the only place where the rooms of the road are put together. Pages, commands and jobs call these.

`advisor.use_cases` has them by what is done; this is their one address. Importing it is cheap: torch and
transformers are imported inside the functions that measure.
"""

from __future__ import annotations

import os

from advisor import models, texts
from advisor.folders import record_in
from advisor.paths import data_dir
from advisor.planner.simple_plans import simple_plans
from advisor.types import ModelRef
from advisor.use_cases.answering import (
    answer_prompts,
    applied_folder,
    longest_answering,
    open_blind_test,
    revealed_test,
)
from advisor.use_cases.calibrating import calibration_of
from advisor.use_cases.confirming import apply_and_evaluate, apply_plan, verify_export
from advisor.use_cases.deciding import (
    by_scores,
    check_plan_fits,
    feasible_range,
    keep_plan,
    make_plan,
    nearest_plan,
    pareto_front,
    plan_probe,
    refine_and_store,
    refine_plan,
    remarks_on,
    remarks_on_front,
)
from advisor.use_cases.evaluating import evaluate_source
from advisor.use_cases.exports import (
    holds_export,
    holds_plan,
    method_in,
    own_export_folder,
    plan_in,
    recovery_in,
    zip_export,
)
from advisor.use_cases.housekeeping import delete_stored, free_space, space_used
from advisor.use_cases.profiling import inspect_model, prepare, preview_profile, profile_model
from advisor.use_cases.reporting import Cancelled, Report, never, silent
from storage.engine import open_repository
from storage.repository import Repository

__all__ = [
    "Cancelled",
    "Report",
    "answer_prompts",
    "applied_folder",
    "apply_and_evaluate",
    "apply_plan",
    "by_scores",
    "calibration_of",
    "check_plan_fits",
    "check_source",
    "check_text",
    "data_dir",
    "delete_stored",
    "evaluate_source",
    "feasible_range",
    "free_space",
    "holds_export",
    "holds_plan",
    "inspect_model",
    "keep_plan",
    "longest_answering",
    "make_plan",
    "method_in",
    "nearest_plan",
    "never",
    "open_blind_test",
    "open_store",
    "own_export_folder",
    "pareto_front",
    "plan_in",
    "plan_probe",
    "prepare",
    "preview_profile",
    "profile_model",
    "record_in",
    "recovery_in",
    "refine_and_store",
    "refine_plan",
    "remarks_on",
    "remarks_on_front",
    "revealed_test",
    "silent",
    "simple_plans",
    "space_used",
    "verify_export",
    "zip_export",
]


def open_store() -> Repository:
    """The database: `ADVISOR_DATABASE_URL`, else SQLite in the data folder; migrated to the newest schema."""
    return open_repository(os.environ.get("ADVISOR_DATABASE_URL") or f"sqlite:///{data_dir() / 'advisor.sqlite'}")


def check_source(source: str) -> ModelRef:
    """What `source` names, without loading it; raises ModelError with what to do instead."""
    return models.resolve(source)


def check_text(source: str) -> str:
    """Calibration text as a job can read it from any folder; raises TextError when it is none that can be read."""
    return texts.check_source(source)
