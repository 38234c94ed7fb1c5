"""Downstream tasks through lm-eval, on a model in memory: its own by name, or files of one's own without code."""

from __future__ import annotations

import copy
import difflib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from advisor.errors import TaskError
from advisor.task_files import plain_copies
from advisor.types import TaskScore

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH = 8
_BOOTSTRAPS = 1000  # for the few metrics whose standard error has no formula
_SHOWN_NAMES = 3
_SEED = 1234

# (task, metric) -> the value of each document, in order.
Answers = Mapping[tuple[str, str], torch.Tensor]
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Tasks:
    """Tasks and groups as lm-eval holds them, documents included; they can be answered by several models in turn."""

    by_name: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None

    @property
    def leaves(self) -> list[Task]:
        return [leaf for one in self.by_name.values() for leaf in _leaves_of(one)]

    def answered_by(self, scores: Sequence[TaskScore]) -> bool:
        """Whether `scores` hold all of these tasks, on as many documents."""
        return set(self.by_name) <= {score.task for score in scores if score.limit == self.limit}


def load_tasks(names: Sequence[str], limit: int | None = None, folder: str | None = None) -> Tasks:
    """Tasks with their documents, which come from the hub for lm-eval's own and are kept there by `datasets`.

    Args:
        names: of tasks, groups and tags, as lm-eval has them or as files in `folder` have them.
        limit: documents of each task.
        folder: YAML files in lm-eval's format, below which their data lies.

    Raises:
        TaskError: a name is unknown, a file would run code or is wrong, or documents cannot be fetched.
    """
    if not names:
        return Tasks(limit=limit)
    found: dict[str, Any] = {}
    with _careful() as foreign_metrics, TemporaryDirectory() as copies:
        manager = _manager(names, Path(folder).expanduser() if folder else None, Path(copies))
        for name in names:
            _check_name(name, manager.all_tasks)
            loaded = _load(name, manager, foreign_metrics)
            found |= {name: loaded["groups"][name]} if name in loaded["groups"] else loaded["tasks"]
    tasks = Tasks(found, limit)
    for leaf in tasks.leaves:
        # As lm-eval's own command has it: no solved examples where a task names no number, always the same ones else.
        if leaf.get_config("num_fewshot") is None:
            leaf.set_config("num_fewshot", 0)
        leaf.set_fewshot_seed(_SEED)
    return tasks


def names_in(folder: Path) -> list[str]:
    """Tasks, groups and tags of a folder that need nothing of lm-eval's own, sorted. Raises TaskError."""
    with TemporaryDirectory() as copies:
        return sorted(plain_copies(folder, Path(copies)))


def score_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Tasks,
    original: Answers | None = None,
    advance: Advance = lambda done, total: None,
) -> tuple[tuple[TaskScore, ...], Answers]:
    """What the model answers, and for a comparison each document's value.

    Args:
        original: the unquantized model's values, with which changes are paired.
        advance: called after every answer with (answers, answers in all); what it raises stops the run.

    Raises:
        TaskError: a task's templates do not fit its documents.
    """
    if not tasks.by_name:
        return (), {}
    import jinja2
    from lm_eval import evaluate

    with _careful():
        lm = _in_memory(model, tokenizer)
        lm.set_cache_hook(_Counter(tasks.leaves, advance))
        try:
            # `simple_evaluate` is this and half a minute of looking for drivers, compilers and commits.
            found = evaluate(lm, _as_lm_eval_has_them(tasks), limit=tasks.limit, bootstrap_iters=_BOOTSTRAPS)
        except (jinja2.TemplateError, KeyError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise TaskError(
                f"lm-eval could not run {', '.join(tasks.by_name)} on this model ({_first_line(error)}): check the "
                "task's templates and fields, or leave it out."
            ) from error
    answers = {
        (name, metric): values
        for name, one in tasks.by_name.items()
        for metric, values in _answers(one, found["samples"]).items()
    }
    scores = [
        _with_change(score, original, answers)
        for name in tasks.by_name
        for score in _scores(name, found, tasks.limit, answers)
    ]
    return tuple(scores), answers


# ------------------------------------------------------------------------------------------- load


def _manager(names: Sequence[str], folder: Path | None, copies: Path) -> Any:
    from lm_eval.tasks import TaskManager

    if folder is None:
        return TaskManager()
    own = plain_copies(folder, copies)
    # Indexing lm-eval's own 14,000 names takes seconds, which only a name of theirs is worth.
    return TaskManager(include_path=str(copies), include_defaults=not set(names) <= own)


def _check_name(name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, _SHOWN_NAMES, 0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists lm-eval's own."
    raise TaskError(f"There is no task {name!r}: {hint}")


def _load(name: str, manager: Any, foreign_metrics: list[str]) -> dict[str, dict[str, Any]]:
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        loaded = manager.load([name])
    except (OSError, HfHubHTTPError, DatasetsError) as error:  # a lost connection is an OSError
        raise TaskError(
            f"The documents of {name} could not be fetched: check the network, or give the task as files of your own. "
            f"({_first_line(error)})"
        ) from error
    except Exception as error:  # whatever a task's own checks raise
        if not foreign_metrics:
            raise TaskError(f"lm-eval cannot load {name}: check the task's file. ({_first_line(error)})") from error
    if foreign_metrics:
        raise TaskError(
            f"{name} is judged by {foreign_metrics[0]}, which is code from the hub: give a task that lm-eval's own "
            "metrics judge."
        )
    return {"groups": {}, **loaded}


@contextmanager
def _careful() -> Iterator[list[str]]:
    """lm-eval without code from the hub, with templates in a sandbox, in one process, and silent.

    Yields the names of metrics that would be code from the hub, as they are asked for.
    """
    import evaluate
    import lm_eval.api.task
    import lm_eval.utils
    from datasets.utils import logging as datasets_logging
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment
    from tqdm import tqdm

    foreign: list[str] = []

    def refuse(name: str, *args: Any, **kwargs: Any) -> None:
        foreign.append(name)
        raise PermissionError(f"the metric {name} is code from the hub")

    sandbox = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters.update(lm_eval.utils.env.filters)
    logger = logging.getLogger("lm_eval")
    with ExitStack() as stack:
        stack.enter_context(_replaced(lm_eval.utils, "env", sandbox))
        stack.enter_context(_replaced(evaluate, "load", refuse))
        stack.enter_context(_replaced(lm_eval.api.task, "tqdm", partial(tqdm, disable=True)))
        # A bootstrap prints, which would stand in the midst of a command's JSON.
        stack.enter_context(redirect_stdout(sys.stderr))
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        datasets_logging.disable_progress_bar()
        os.environ["DISABLE_MULTIPROC"] = "1"  # lm-eval's bootstrap forks a process for each core
        yield foreign


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


# ------------------------------------------------------------------------------------------ score


def _in_memory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    from lm_eval.models.huggingface import HFLM

    class Silent(HFLM):
        """Answers without progress bars."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

    # lm-eval asks the tokenizer what begins a text; the few that do not know leave it to the model.
    begin = None if tokenizer.bos_token or tokenizer.eos_token else model.config.get_text_config().bos_token_id
    # A copy, because tokenizers without a padding token are given one.
    tokenizer = copy.deepcopy(tokenizer)
    return Silent(pretrained=model, tokenizer=tokenizer, batch_size=_BATCH, prefix_token_id=begin)


def _as_lm_eval_has_them(tasks: Tasks) -> dict[str, Any]:
    """What its task manager returns: tasks, groups, and the names of each group's children."""
    top = [one for one in tasks.by_name.values() if _is_group(one)]
    groups = {group.name: group for one in top for group in (one, *one.get_all_groups())}
    return {
        "tasks": {leaf.task_name: leaf for leaf in tasks.leaves},
        "groups": groups,
        "group_map": {name: group.child_names for name, group in groups.items()},
    }


def _is_group(one: Any) -> bool:
    return hasattr(one, "get_all_tasks")


def _leaves_of(one: Any) -> list[Task]:
    return one.get_all_tasks() if _is_group(one) else [one]


class _Counter:
    """lm-eval tells its cache of every answer, so in place of one this tells how far it is."""

    def __init__(self, leaves: Sequence[Task], advance: Advance):
        self._leaves, self._advance, self._done = leaves, advance, 0

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        self._done += 1
        self._advance(self._done, sum(len(leaf.instances) for leaf in self._leaves))


def _scores(name: str, found: Mapping[str, Any], limit: int | None, answers: Answers) -> Iterator[TaskScore]:
    results = found["results"][name]
    for key, value in results.items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr") or _finite(value) is None:
            continue
        yield TaskScore(
            task=name,
            metric=_metric_name(metric, chosen),
            value=value,
            stderr=_finite(results.get(f"{metric}_stderr,{chosen}")),
            samples=results["sample_len"],
            limit=limit,
            shots=found["n-shot"].get(name),
            higher_is_better=found["higher_is_better"].get(name, {}).get(metric) is not False,
        )


def _answers(one: Any, samples: Mapping[str, list[dict]]) -> dict[str, torch.Tensor]:
    """Metric -> the value of each document of a task, or of all documents of a group's tasks."""
    found: dict[str, list[float]] = {}
    for leaf in _leaves_of(one):
        for sample in samples[leaf.task_name]:
            for metric in sample["metrics"]:
                if isinstance(sample[metric], int | float):
                    found.setdefault(_metric_name(metric, sample["filter"]), []).append(float(sample[metric]))
    return {metric: torch.tensor(values, dtype=torch.float64) for metric, values in found.items()}


def _finite(value: Any) -> float | None:
    """lm-eval writes words where there is no number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _metric_name(metric: str, chosen: str) -> str:
    return metric if chosen == "none" else f"{metric},{chosen}"


def _with_change(score: TaskScore, original: Answers | None, answers: Answers) -> TaskScore:
    """The score with its change, where the metric is the mean over documents: of anything else no pairs can be made."""
    key = score.task, score.metric
    before, after = (original or {}).get(key), answers.get(key)
    if before is None or after is None or len(before) != len(after) or abs(after.mean().item() - score.value) > 1e-9:
        return score
    change = after - before
    stderr = change.std().item() / len(change) ** 0.5 if len(change) > 1 else None
    return score.model_copy(update={"change": change.mean().item(), "change_stderr": stderr})


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
