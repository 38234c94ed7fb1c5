"""What the History lists: every stored thing as one row with its links, found by any words in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from advisor import jobs, units
from advisor.demo import DEMO_SOURCE
from advisor.types import (
    BlindTestSummary,
    DeletedKind,
    Deletion,
    Job,
    ModelSummary,
    PlanSummary,
    ProfileSummary,
    StoredEvaluation,
    UsedSpace,
)
from advisor.ui import blind, job_panel, wording
from storage.repository import Repository


@dataclass(frozen=True)
class Row:
    """One stored thing: its id, what people call it, the name they gave it, and its cells."""

    id: str | int
    label: str
    name: str
    cells: dict[str, object]

    def matches(self, words: list[str]) -> bool:
        """Whether each word is in some cell or in the id, in whatever case; formats by their ids too."""
        text = " ".join(map(str, (self.id, self.label, *self.cells.values()))).lower()
        return all(word in text or wording.format_label(word).lower() in text for word in words)


@dataclass(frozen=True)
class Listing:
    """All things of one kind.

    Attributes:
        links: the columns that lead to pages.
        rename: (id, name) -> None where they can be named.
        goes_too: what is deleted with one of them.
    """

    title: str
    kind: DeletedKind
    rows: list[Row]
    links: tuple[str, ...] = ()
    rename: Callable[..., None] | None = None
    goes_too: str = ""


def listings(store: Repository) -> dict[str, Listing]:
    """Everything that is stored, by the word that stands for it in links; newest first."""
    profiles, plans, known_jobs = store.profiles(), store.plans(), jobs.list_jobs(store)
    names = job_panel.names(plans, profiles)
    return {
        "models": Listing(
            "Models",
            "model",
            [_model(model, profiles) for model in store.models()],
            ("Open",),
            store.rename_model,
            "its profiles and all that was made from them; its files stay",
        ),
        "profiles": Listing(
            "Sensitivity profiles",
            "profile",
            [_profile(profile) for profile in profiles],
            ("Scores", "Plan"),
            store.rename_profile,
            "its plans, their evaluations and blind tests",
        ),
        "plans": Listing(
            "Plans",
            "plan",
            [_plan(plan) for plan in plans],
            ("Plan", "Results"),
            store.rename_plan,
            "its evaluations and blind tests; the folder of the quantized model stays",
        ),
        "evaluations": Listing(
            "Evaluations",
            "evaluation",
            [_evaluation(found) for found in store.stored_evaluations()],
            ("Results",),
            store.rename_evaluation,
        ),
        "blind": Listing(
            "Blind tests",
            "blind test",
            [_blind_test(test) for test in store.blind_tests()],
            ("Open",),
            goes_too="its answers and votes",
        ),
        "jobs": Listing("Jobs", "job", [_job(job, names, known_jobs) for job in known_jobs], ("Open",)),
    }


def deleted(found: list[Deletion]) -> list[Row]:
    """What can be brought back."""
    return [
        Row(
            one.id,
            one.label,
            "",
            {
                "What": one.kind,
                "Name": one.label,
                "With it": also(one),
                "Deleted": wording.moment(one.created),
                "Gone for good": wording.moment(one.gone_on),
            },
        )
        for one in found
    ]


def also(deletion: Deletion) -> str:
    """What went with it; a dash where nothing did."""
    return counted(deletion.also) or "–"


def counted(counts: Mapping[DeletedKind, int]) -> str:
    """How many of each kind: `2 plans, 1 evaluation`."""
    return ", ".join(wording.plural(count, kind) for kind, count in counts.items())


def space(found: list[UsedSpace], plans: list[PlanSummary]) -> list[Row]:
    """Who takes how much room; an export is called by its plan, whose id its folder begins with."""
    labels = {plan.id: wording.plan_label(plan) for plan in plans}
    return [
        Row(
            one.place,
            f"{one.what} {one.place}",
            "",
            {
                "What": one.what,
                "Of": _of(one, labels),
                "Size": wording.size(one.bytes),
                "Can be freed": wording.size(one.spare_bytes),
                "And then": one.note or "–",
                "Place": one.place,
            },
        )
        for one in found
    ]


def _of(used: UsedSpace, plans: dict[str, str]) -> str:
    name = Path(used.place).name
    return name if used.what == "model" else plans.get(name.partition("-")[0], "–")


def _model(model: ModelSummary, profiles: list[ProfileSummary]) -> Row:
    made = sum((one.source, one.fingerprint) == (model.source, model.fingerprint) for one in profiles)
    cells = {
        "Model": model.name,
        "Name": model.label,
        "Source": model.source,
        "Open": f"./?from=own&source={quote(model.source, safe='')}" if model.source != DEMO_SOURCE else "./?from=demo",
        "Profiles": made,
        "Fingerprint": model.fingerprint[:12],
        "Read": wording.moment(model.saved),
    }
    return Row(model.id, model.label or f"{model.name} from {model.source}", model.label, cells)


def _profile(profile: ProfileSummary) -> Row:
    cells = {
        "Model": profile.model_name,
        "Name": profile.name,
        "Formats": wording.format_labels(profile.formats),
        "Scores": f"sensitivity?profile={profile.id}",
        "Plan": "" if profile.around else f"plan?profile={profile.id}",
        "Method": wording.method(profile),
        "Measurements": profile.measured,
        "Text": profile.text,
        "Tokens": profile.samples * profile.seq_len,
        "Created": wording.moment(profile.created),
    }
    return Row(profile.id, wording.profile_label(profile), profile.name, cells)


def _plan(plan: PlanSummary) -> Row:
    cells = {
        "Model": plan.model_name,
        "Name": plan.name,
        "Device": wording.device_label(plan.hardware),
        "Engine": wording.engine_label(plan.engine),
        "Plan": f"plan?profile={plan.profile_id}&plan={plan.id}" if plan.profile_id else "",
        "Results": f"apply?plan={plan.id}",
        "Average bits": f"{plan.decided_bits:.2f}",
        "Layers by format": wording.format_counts(plan.formats),
        "Refined": "refined" if plan.refined else "–",
        "Memory in use": wording.size(plan.total_bytes),
        "Expected perplexity": wording.number(plan.perplexity, 4),
        "Created": wording.moment(plan.created),
    }
    return Row(plan.id, wording.plan_label(plan), plan.name, cells)


def _evaluation(stored: StoredEvaluation) -> Row:
    found = stored.evaluation
    cells = {
        "Model": found.model.name,
        "Name": stored.name,
        "Variant": wording.labelled(found.variant),
        "Results": f"apply?plan={stored.plan_id}" if stored.plan_id else "",
        "Text": found.text.text,
        "Tokens": found.text.tokens,
        "Perplexity": wording.with_error(found.perplexity, found.perplexity_stderr),
        "Size": wording.size(found.weights_bytes) if found.weights_bytes else "not known",
        "Created": wording.moment(found.created),
    }
    name = stored.name or f"{wording.labelled(found.variant)} of {found.model.name}, perplexity {cells['Perplexity']}"
    return Row(stored.id, name, stored.name, cells)


def _blind_test(test: BlindTestSummary) -> Row:
    cells = {
        "Model": test.model_name,
        "Open": f"blind?plan={test.plan_id}&test={test.id}",
        "Prompts": test.prompts,
        "Answers": f"{test.answers} of {2 * test.prompts}",
        "Votes": test.votes,
        "Result": "shown" if test.revealed else "not shown",
        "Created": wording.moment(test.created),
    }
    return Row(test.id, f"{test.model_name} · {blind.test_label(test)}", "", cells)


def _job(job: Job, names: Mapping[str, str], others: list[Job]) -> Row:
    """`names`: what plans and profiles are called, by their ids."""
    what = job_panel.full_title(job, names)
    page, query = job_panel.place(job)
    took = units.duration((job.finished - job.started).total_seconds()) if job.finished and job.started else "–"
    cells = {
        "What": what,
        "State": job_panel.state(job, others)[1],
        "Open": f"./{'' if page == 'model' else page}?{urlencode(query)}",
        "Submitted": wording.moment(job.created),
        "Took": took,
        "Error": wording.labelled(job.error),
    }
    return Row(job.id, f"{what}, {wording.moment(job.created)}", "", cells)
