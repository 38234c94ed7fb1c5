"""The use case of a blind test: the original and a plan answer a person's prompts, to be judged side by side."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor import models
from advisor.errors import PlanError
from advisor.types import Answer, AnswersRequest, BlindTest, Evaluation, JobStatus, Plan, Progress, Variant
from advisor.units import plural
from advisor.use_cases.deciding import check_plan_fits, keep_plan
from advisor.use_cases.exports import holds_plan, load_for_evaluation
from advisor.use_cases.reporting import Cancelled, Report, never, silent, stoppable
from storage.repository import Repository

if TYPE_CHECKING:
    from advisor.answers import Asking


def applied_folder(store: Repository, plan_id: str) -> str:
    """The folder to which the plan was last applied and where it still lies; empty where there is none."""
    plan = store.plan(plan_id)
    for job in store.jobs(limit=200):
        done = job.kind == "apply" and job.status is JobStatus.DONE and job.params.get("plan_id") == plan_id
        folder = (job.result or {}).get("folder", "") if done else ""
        if folder and plan is not None and holds_plan(Path(folder), plan):
            return folder
    return ""


def longest_answering(request: AnswersRequest, store: Repository) -> float | None:
    """Seconds until all answers are there if none ends early, by the newest measured pace; None where there is none.

    A plan that is simulated computes as the original does, so it answers at the original's pace.
    """
    plan = store.plan(request.plan_id)
    if plan is None:
        return None
    stored = [one for one in store.stored_evaluations() if one.evaluation.model.fingerprint == plan.model.fingerprint]
    original = _ms_per_token((one.evaluation for one in stored), "original")
    own = (one.evaluation for one in stored if one.plan_id == request.plan_id)
    planned = _ms_per_token(own, "plan") if request.folder else original
    if original is None or planned is None:
        return None
    return len(request.prompts) * request.tokens * (original + planned) / 1000


def _ms_per_token(newest_first: Iterable[Evaluation], variant: Variant) -> float | None:
    timed = (found.ms_per_token for found in newest_first if found.variant == variant)
    return next((ms for ms in timed if ms is not None), None)


def open_blind_test(plan: Plan, store: Repository, **fields: Any) -> str:
    """The id of a blind test of this plan, with `fields` of an AnswersRequest; plan and test are stored where new.

    Raises:
        PlanError: the folder that should answer holds another plan.
    """
    _check_folder(fields.get("folder", ""), plan)
    return store.open_blind_test(AnswersRequest(plan_id=keep_plan(plan, store), **fields))


def answer_prompts(
    test_id: str, store: Repository, report: Report = silent, cancelled: Cancelled = never
) -> dict[str, Any]:
    """Generate the answers of a blind test that are not stored yet, storing each as it arrives.

    An answer that another test has to the same prompt, by the same weights and settings, is taken from there.

    Returns:
        `test_id`.

    Raises:
        PlanError: the test or its plan is gone, or its folder holds another plan. TextError: a prompt is too long.
    """
    report = stoppable(report, cancelled)
    test = _stored(store, test_id)
    if test.complete:
        return {"test_id": test_id}
    plan, folder = _plan_of(store, test), test.request.folder
    loaded = models.load(plan.model.source, report)
    from advisor.answers import Asking, end_tokens
    from advisor.apply import simulated

    check_plan_fits(plan, loaded.catalogue)
    ends = end_tokens(loaded.model, loaded.tokenizer)
    asking = Asking(test.request, loaded.tokenizer, ends, loaded.catalogue.max_context)
    session = _Session(test, asking, [asking.prompt_ids(prompt) for prompt in test.request.prompts], store, report)
    weights = f"{loaded.catalogue.model.fingerprint} {loaded.model.dtype} {loaded.device.type}"
    session.generate(session.missing("original", weights), loaded.model)
    planned = _files(Path(folder)) if folder else sorted(plan.assignments.items())
    missing = session.missing("plan", f"{weights} {planned}")
    if missing and folder:
        del loaded  # two models may not fit into memory
        session.generate(missing, load_for_evaluation(folder, report).model)
    elif missing:
        with simulated(loaded.model, loaded.catalogue, plan.assignments):
            session.generate(missing, loaded.model)
    return {"test_id": test_id}


def revealed_test(test_id: str, store: Repository, reveal: bool = False) -> BlindTest:
    """A blind test whose result may be seen.

    Args:
        reveal: end the voting, for good, if it has not ended.

    Raises:
        PlanError: there is no such test, or people can still vote and `reveal` is not given.
    """
    test = _stored(store, test_id)
    if test.revealed is None and not reveal:
        raise PlanError(
            f"The voting on {test_id} has not ended ({plural(len(test.votes), 'vote')} so far): go on voting on the "
            "page, or add --reveal, after which nobody can vote any more."
        )
    store.reveal(test_id)
    return _stored(store, test_id)


@dataclass(frozen=True)
class _Missing:
    """An answer to be generated: of whom, to which prompt, and the key that it will have."""

    variant: Variant
    number: int
    key: str


@dataclass(frozen=True)
class _Session:
    """One test as it is carried out; `ids` are the tokens of its prompts, in their order."""

    test: BlindTest
    asking: Asking
    ids: list[list[int]]
    store: Repository
    report: Report

    def missing(self, variant: Variant, answering: str) -> list[_Missing]:
        """What these weights have not answered in any test; what they have is taken over."""
        wanted = [_Missing(variant, n, self.asking.key(ids, answering)) for n, ids in enumerate(self.ids)]
        known = self.store.known_answers(one.key for one in wanted)
        own = {(a.number, a.key) for a in self.test.answers if a.variant == variant}
        found = [
            known[one.key].model_copy(update={"number": one.number, "variant": variant})
            for one in wanted
            if one.key in known and (one.number, one.key) not in own
        ]
        self.store.save_answers(self.test.id, found)
        return [one for one in wanted if one.key not in known]

    def generate(self, missing: list[_Missing], model: Any) -> None:
        """Have the model give these answers, storing each."""
        for done, one in enumerate(missing):
            message = f"Prompt {one.number + 1} of {len(self.ids)}"
            stage = f"answers of the {one.variant}"
            progress = Progress(stage=stage, done=done, total=len(missing), message=message)
            self.report(progress)
            started = time.monotonic()
            text, cut = self.asking.answer(model, self.ids[one.number], lambda now=progress: self.report(now))
            answer = Answer(
                number=one.number,
                variant=one.variant,
                key=one.key,
                text=text,
                cut=cut,
                seconds=time.monotonic() - started,
            )
            self.store.save_answers(self.test.id, [answer])


def _stored(store: Repository, test_id: str) -> BlindTest:
    test = store.blind_test(test_id)
    if test is None:
        raise PlanError(f"There is no stored blind test {test_id}: start one from its plan; `answers` prints the id.")
    return test


def _plan_of(store: Repository, test: BlindTest) -> Plan:
    plan = store.plan(test.request.plan_id)
    if plan is None:
        raise PlanError(f"There is no stored plan {test.request.plan_id}: save the plan first.")
    _check_folder(test.request.folder, plan)
    return plan


def _check_folder(folder: str, plan: Plan) -> None:
    if folder and not holds_plan(Path(folder), plan):
        raise PlanError(f"{folder} does not hold this plan: apply the plan again, or have the simulated plan answer.")


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """What tells the weights in a folder from later ones in the same place: names, sizes and times of its files."""
    files = sorted(path for pattern in ("*.safetensors", "*.gguf") for path in folder.glob(pattern))
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
