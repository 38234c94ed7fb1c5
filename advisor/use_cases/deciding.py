"""The use cases that decide: a plan, the range of what is possible, a plan refined on its model."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from advisor import models
from advisor.errors import AdvisorError, PlanError
from advisor.knowledge import find_target
from advisor.paths import data_dir
from advisor.planner import front, nearest, planning, remarks
from advisor.planner.prediction import predict
from advisor.types import (
    Catalogue,
    FeasibleRange,
    Front,
    Plan,
    PlanRequest,
    Progress,
    RefineRequest,
    SensitivityProfile,
)
from advisor.use_cases.reporting import Cancelled, Report, counted, never, silent, stoppable
from storage.repository import Repository

if TYPE_CHECKING:
    from advisor.profiler.probe import PlanProbe

_REFINEMENT_DRAWS = 4


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


def by_scores(plan: Plan, profile: SensitivityProfile) -> Plan:
    """The plan with what the profile's scores predict of it, also where a run has told more: as plans of scores are."""
    return plan.model_copy(update={"predicted": predict(profile, plan.assignments)})


def remarks_on(plan: Plan, profile: SensitivityProfile) -> tuple[str, ...]:
    """What to know beside a plan of this profile and of its text.

    May solve for another plan, to say what a tolerance would save.
    """
    quality = profile.calibration.quality
    said = list(quality.warnings) if quality is not None else []
    said += [of(plan, profile) for of in (remarks.of_tolerance, remarks.of_unused, remarks.of_hopes)]
    wanted = remarks.with_a_tolerance(plan, profile.catalogue)
    if wanted is not None:
        with suppress(AdvisorError):  # what cannot be had is not worth a remark
            said.append(remarks.of_room(plan, planning.make_plan(profile, wanted)))
    return tuple(filter(None, said))


def remarks_on_front(found: Front, profile: SensitivityProfile) -> tuple[str, ...]:
    """What to know beside a front of this profile."""
    return tuple(filter(None, [remarks.of_hopeful_points(found, profile)]))


def nearest_plan(plan: Plan, to: str, store: Repository, report: Report = silent) -> Plan:
    """The plan of least change that can be written as `to`, predicted anew where its profile is stored.

    Raises:
        PlanError: the plan is not for its model any more. ModelError: the model cannot be read.
    """
    catalogue = store.catalogue_for_source(plan.model.source)
    if catalogue is None or catalogue.model.fingerprint != plan.model.fingerprint:
        catalogue = models.load(plan.model.source, report, dtype="own").catalogue
    profile = store.profile(str(plan.provenance.get("profile_id", "")))
    return nearest.nearest_plan(plan, find_target(to), catalogue, profile)


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
    other text tells what the chosen one loses. What an earlier run found before it was stopped is not measured again. A
    `probe` of the same profile saves loading the model again.

    Raises:
        InfeasibleBudget, PlanError, KnowledgeError: as `make_plan`.
        ModelError, TextError: the model or its text is not there any more, or is another one; the text is too short.
        JobCancelled: `cancelled()` became true.
    """
    report = stoppable(report, cancelled)
    planning.make_plan(profile, request)  # what cannot be met is refused before the model is loaded
    probe = probe or plan_probe(profile, report)
    from advisor.planner.kept_answers import KeptProbe
    from advisor.planner.refine import refine

    probe.advanced = counted("gradients", "with the plan in place, block by block", "", report)
    kept = KeptProbe(probe, data_dir() / "refining" / probe.identity)

    def tell(done: int, message: str) -> None:
        report(Progress(stage="rounds", done=done, total=rounds, message=message))

    plan = refine(profile, request, kept, rounds, profile.calibration.text, tell)
    kept.forget()
    return plan


def refine_and_store(
    request: RefineRequest, store: Repository, report: Report = silent, cancelled: Cancelled = never
) -> str:
    """Refine the plan of a stored profile and store it; returns its id. Raises what `refine_plan` raises."""
    profile = store.profile(request.profile_id)
    if profile is None:
        raise PlanError(f"There is no stored sensitivity profile {request.profile_id}: profile the model again.")
    plan = refine_plan(profile, request.plan, request.rounds, report, cancelled)
    return store.save_plan(plan, request.profile_id, request.name)


def keep_plan(plan: Plan, store: Repository, name: str = "") -> str:
    """The id under which this very plan is stored; stored now where it is new, beside its profile if that is here."""
    found = store.find_plan(plan)
    if found is not None:
        return found
    profile_id = str(plan.provenance.get("profile_id", ""))
    known = {profile.id for profile in store.profiles()}
    return store.save_plan(plan, profile_id if profile_id in known else None, name)


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
