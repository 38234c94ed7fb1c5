"""Downstream tasks: lm-eval on a model in memory and on files of one's own, offline, without any code of theirs."""

import json

import pytest
import yaml

from advisor import pipeline, tasks
from advisor.errors import JobCancelled, TaskError
from advisor.types import ApplyRequest, EvaluationOptions
from tests.tiny_models import byte_tokenizer, tiny_folder, tiny_model

SUMS = {
    "task": "sums",
    "tag": "own_tasks",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "sums.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question.strip()}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def folder(tmp_path):
    where = tmp_path / "tasks"
    where.mkdir()
    documents = [
        {"question": f"What is {i} and {i}? ", "choices": [str(2 * i), str(2 * i + 1), "many"], "answer": i % 3}
        for i in range(12)
    ]
    (where / "sums.jsonl").write_text("\n".join(map(json.dumps, documents)))
    return write(where, SUMS)


def write(folder, task, name="sums.yaml"):
    (folder / name).write_text(task if isinstance(task, str) else yaml.safe_dump(task))
    return folder


def load(folder, *names, limit=None):
    return tasks.load_tasks(names or ("sums",), limit, str(folder))


def scored(found, seed=0, original=None, **more):
    return tasks.score_tasks(tiny_model("llama", seed), byte_tokenizer(), found, original, **more)


def by_hand(seed, documents=12):
    """Document by document, whether the right choice is the likeliest one after the question."""
    import torch

    model, tokenizer, right = tiny_model("llama", seed), byte_tokenizer(), []
    for i in range(documents):
        before = tokenizer(f"What is {i} and {i}?").input_ids
        sums = []
        for choice in (str(2 * i), str(2 * i + 1), "many"):
            after = tokenizer(f" {choice}").input_ids
            with torch.no_grad():
                log_p = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
            sums.append(sum(log_p[len(before) - 1 + k, token].item() for k, token in enumerate(after)))
        right.append(float(max(range(3), key=sums.__getitem__) == i % 3))
    return right


def test_a_task_of_ones_own_runs_offline_and_scores_what_the_likelihoods_say(folder):
    (score,), _ = scored(load(folder))
    right = by_hand(0)
    assert (score.task, score.metric, score.samples, score.limit, score.shots) == ("sums", "acc", 12, None, 0)
    assert score.value == pytest.approx(sum(right) / 12)
    share = score.value
    assert score.stderr == pytest.approx((share * (1 - share) / 11) ** 0.5) and score.change is None


def test_a_limit_takes_the_first_documents_and_changes_are_paired(folder):
    found = load(folder, limit=9)
    _, answers = scored(found)
    (score,), _ = scored(found, seed=1, original=answers)
    differences = [b - a for a, b in zip(by_hand(0, 9), by_hand(1, 9), strict=True)]
    mean = sum(differences) / 9
    error = (sum((d - mean) ** 2 for d in differences) / 8 / 9) ** 0.5
    assert (score.samples, score.limit) == (9, 9)
    assert (score.change, score.change_stderr) == (pytest.approx(mean), pytest.approx(error))
    assert found.answered_by([score]) and not load(folder).answered_by([score])


def test_groups_tags_and_included_files_are_what_lm_eval_makes_of_them(folder):
    write(folder, {"include": "sums.yaml", "task": "more_sums"}, "more.yaml")
    write(
        folder,
        {
            "group": "all_sums",
            "task": ["sums", "more_sums"],
            "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        },
        "group.yaml",
    )
    one = scored(load(folder))[0][0].value
    both, _ = scored(load(folder, "own_tasks"))
    assert {score.task: score.value for score in both} == {"sums": one, "more_sums": one}
    found = tasks.load_tasks(("all_sums",), None, str(folder))
    (whole,), answers = scored(found)
    assert (whole.task, whole.value, whole.samples) == ("all_sums", pytest.approx(one), 24)
    assert scored(found, original=answers)[0][0].change == 0


def test_an_error_that_is_drawn_again_and_again_leaves_standard_output_clean(folder, capsys):
    write(
        folder,
        SUMS | {"metric_list": [{"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True}]},
    )
    (score,), _ = scored(load(folder))
    assert score.metric == "mcc" and score.stderr > 0 and score.change is None
    assert capsys.readouterr().out == ""


def test_progress_counts_answers_and_can_stop_the_run(folder):
    told = []
    scored(load(folder), advance=lambda done, total: told.append((done, total)))
    assert told == [(n, 36) for n in range(1, 37)]

    def stop(done, total):
        if done == 5:
            raise JobCancelled("enough")

    with pytest.raises(JobCancelled):
        scored(load(folder), advance=stop)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"doc_to_text": "{{nothing}}"}, "lm-eval cannot load sums: check the task's file. .'nothing' is undefined"),
        ({"output_type": "guessing"}, "lm-eval cannot load sums"),
        ({"dataset_kwargs": {"data_files": "gone.jsonl"}}, "gone.jsonl, which is not there"),
        ({"include": "gone.yaml"}, "gone.yaml, which is not there"),
        ({"include": "sums.yaml"}, "includes itself"),
        ({"metric_list": [{"metric": "bleurt"}]}, "code from the hub"),
        ({"dataset_path": "nobody/nothing", "dataset_kwargs": {}}, "could not be fetched: check the network"),
    ],
)
def test_a_wrong_task_is_refused_in_a_sentence(folder, change, said):
    write(folder, SUMS | change)
    with pytest.raises(TaskError, match=said):
        scored(load(folder))


def test_unknown_names_and_empty_folders_are_refused(folder, tmp_path):
    with pytest.raises(TaskError, match="There is no task 'summs': did you mean sums"):
        load(folder, "summs")
    (tmp_path / "empty").mkdir()
    for nowhere in (tmp_path / "empty", tmp_path / "gone"):
        with pytest.raises(TaskError, match="no folder with .yaml files"):
            load(nowhere)


def test_code_in_task_files_never_runs(folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\ndef right(docs):\n    return docs\n")
    plain = yaml.safe_dump(SUMS)
    for field in ("process_docs: !function own.right", "x: !!python/object/apply:os.system ['true']"):
        write(folder, f"{plain}\n{field}\n")
        with pytest.raises(TaskError, match="would run code"):
            load(folder)
    write(folder, f"{plain}\nprocess_docs: !function own.right\n", "hidden.txt")
    write(folder, {"include": "hidden.txt", "task": "sums"})
    with pytest.raises(TaskError, match="would run code"):
        load(folder)
    escape = f"{{{{ cycler.__init__.__globals__.os.system('touch {ran}') }}}}"
    write(folder, SUMS | {"doc_to_text": escape})
    with pytest.raises(TaskError, match="lm-eval cannot load sums.*unsafe"):
        scored(load(folder))
    assert not ran.exists()


def test_the_whole_of_evaluate_answers_tasks_beside_the_original(folder, run, tmp_path):  # noqa: F811
    original, other = (str(tiny_folder(tmp_path / name, seed=seed)) for seed, name in enumerate(("one", "two")))
    short = ["--tokens", "64", "--seq-len", "32", "--stride", "16", "--tasks", "sums", "--tasks-from", folder]
    status, out, err = run("evaluate", other, "--against", original, *short, "--limit", "6", "--speed", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["text"]["stride"] == 16 and found["tasks"][0]["samples"] == 6
    assert found["tasks"][0]["change"] == pytest.approx(
        found["tasks"][0]["value"] - found["original"]["tasks"][0]["value"]
    )
    assert found["speed"]["new_tokens"] == found["original"]["speed"]["new_tokens"] == 16
    status, out, err = run("evaluate", other, "--against", original, *short)
    assert status == 0 and "change, paired" in out and "sums" in out


def test_applying_answers_tasks_with_every_variant_and_again_only_where_others_are_asked(folder, tmp_path):
    from tests.test_apply import a_plan, loaded_in_own_dtype

    loaded = loaded_in_own_dtype(tiny_folder(tmp_path / "model"))
    names = [layer.name for layer in loaded.catalogue.quantizable if layer.block is not None]
    store = pipeline.open_store()
    plan_id = store.save_plan(a_plan(loaded.catalogue, dict.fromkeys(names, "int4_g32")), None)
    plain = ApplyRequest(plan_id=plan_id, to="simulated", tokens=64, seq_len=32, baselines=("int8",))
    more = plain.model_copy(update={"tasks": ("sums",), "tasks_from": str(folder), "limit": 6})
    for request, variants in ((plain, 3), (more, 3), (more, 1)):
        before = len(store.evaluations(plan_id))
        pipeline.apply_and_evaluate(request, store)
        assert len(store.evaluations(plan_id)) - before == variants  # the plan itself is always measured again
    found = {evaluation.variant: evaluation for evaluation in store.evaluations(plan_id)}
    assert {name: [score.task for score in one.tasks] for name, one in found.items()} == dict.fromkeys(
        ("original", "uniform int8", "plan"), ["sums"]
    )
    assert found["plan"].tasks[0].change is not None and found["original"].tasks[0].change is None


def test_options_that_cannot_be_are_refused(run, folder, tmp_path):  # noqa: F811
    for wrong in ({"limit": 0}, {"stride": 0}):
        with pytest.raises(ValueError):
            EvaluationOptions(**wrong)
    model = tiny_folder(tmp_path / "model")
    for alone, said in ((["--limit", "5"], "name at least one"), (["--tasks-from", folder], "it has own_tasks, sums.")):
        status, _, err = run("evaluate", model, *alone)
        assert status == 2 and said in err
