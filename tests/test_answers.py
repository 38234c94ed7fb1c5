"""Answers of the original and a plan: the same question, nothing generated twice, whatever stops the run."""

import json

import pytest
import torch

from advisor import pipeline, preferences
from advisor.answers import Asking, end_tokens
from advisor.catalogue import catalogue_model
from advisor.errors import JobCancelled, PlanError, TextError
from advisor.types import AnswersRequest, ApplyRequest, JobStatus, ModelRef
from tests.test_apply import a_plan
from tests.tiny_models import CONTEXT, byte_tokenizer, merging_tokenizer, tiny_folder, tiny_model

PROMPTS = ("What is a list?", "Name two colours.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def catalogue(folder):
    model, ref = tiny_model("llama").bfloat16(), ModelRef(source=str(folder), kind="folder", name="model")
    return catalogue_model(model, ref)


@pytest.fixture
def plan_id(store, catalogue):
    return store.save_plan(a_plan(catalogue, dict.fromkeys(matrices(catalogue), "int2_g64")), None)


def matrices(catalogue):
    return [layer.name for layer in catalogue.quantizable]


def started(store, plan_id, **fields):
    return store.open_blind_test(AnswersRequest(**{"plan_id": plan_id, "prompts": PROMPTS, "tokens": 6} | fields))


def asking(**fields):
    request = AnswersRequest(**{"plan_id": "p", "prompts": PROMPTS, "tokens": 8} | fields)
    return Asking(request, byte_tokenizer(), (2,), CONTEXT)


class Stages:
    """Counts what is generated; stops before prompt number `stop` of a stage."""

    def __init__(self, stage="", stop=None):
        self.seen, self.stage, self.stop = [], stage, stop

    def __call__(self, progress):
        if progress.stage.startswith("answers") and (progress.stage, progress.done) not in self.seen:
            if (progress.stage, progress.done) == (self.stage, self.stop):
                raise JobCancelled("enough")
            self.seen.append((progress.stage, progress.done))


# ------------------------------------------------------------------------------------------ one answer


def test_greedy_answers_are_the_likeliest_tokens_one_by_one():
    model, ids = tiny_model("llama"), [72, 101, 108]
    for _ in range(8):
        ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
    text, cut = asking().answer(model, ids[:3])
    assert (text, cut) == (byte_tokenizer().decode(ids[3:]).strip(), True)


def test_drawn_answers_follow_from_the_seed_and_leave_the_processs_numbers_alone():
    model, ids = tiny_model("llama"), [72, 101, 108]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    answers = [asking(temperature=1.0, seed=seed, tokens=24).answer(model, ids)[0] for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    assert answers[0] == answers[1] != answers[2]
    assert answers[0] != asking(tokens=24).answer(model, ids)[0]


def test_what_a_models_files_say_of_drawing_changes_no_answer():
    model, ids = tiny_model("llama"), [72, 101, 108]
    plain = asking(temperature=1.0).answer(model, ids)
    model.generation_config.update(top_k=1, top_p=0.1, repetition_penalty=5.0)
    assert asking(temperature=1.0).answer(model, ids) == plain


def test_an_answer_ends_at_the_models_end_token_which_is_not_shown():
    model = tiny_model("llama")
    ids = [72, 101, 108]
    first = model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
    one = Asking(AnswersRequest(plan_id="p", prompts=PROMPTS), byte_tokenizer(), (first,), CONTEXT)
    assert one.answer(model, ids)[1] is False
    model.generation_config.eos_token_id = [5, 6]
    assert end_tokens(model, byte_tokenizer()) == (5, 6)


def test_a_chat_template_is_used_where_there_is_one():
    tokenizer = merging_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
    )
    chat = Asking(AnswersRequest(plan_id="p", prompts=PROMPTS), tokenizer, (), CONTEXT)
    assert tokenizer.decode(chat.prompt_ids("Hi")) == "<s>Hi</s><s>"
    tokenizer.chat_template = None
    assert tokenizer.decode(chat.prompt_ids("Hi")) == "Hi"


def test_a_prompt_beyond_the_context_is_refused_by_name():
    with pytest.raises(TextError, match="'What is .* shorter answers"):
        asking(tokens=CONTEXT).prompt_ids("What is a list?")


# ------------------------------------------------------------------------------------------ a whole test


def test_a_stopped_run_goes_on_where_it_was_and_a_finished_one_generates_nothing(store, plan_id):
    test_id = started(store, plan_id)
    with pytest.raises(JobCancelled):
        pipeline.answer_prompts(test_id, store, Stages("answers of the plan", 1))
    assert [(a.number, a.variant) for a in store.blind_test(test_id).answers] == [
        (0, "original"),
        (0, "plan"),
        (1, "original"),
    ]
    rest = Stages()
    pipeline.answer_prompts(test_id, store, rest)
    assert rest.seen == [("answers of the plan", 0)]
    test = store.blind_test(test_id)
    assert test.complete
    assert all(test.answer(n, "plan").text != test.answer(n, "original").text for n in range(2))
    again = Stages()
    pipeline.answer_prompts(test_id, store, again)
    assert again.seen == []


def test_answers_of_another_test_are_taken_over_where_weights_and_settings_are_the_same(store, plan_id, catalogue):
    first = started(store, plan_id)
    pipeline.answer_prompts(first, store)
    store.reveal(first)
    second, longer = started(store, plan_id, prompts=PROMPTS[::-1]), started(store, plan_id, tokens=7)
    other = started(store, store.save_plan(a_plan(catalogue, {matrices(catalogue)[0]: "int8"}), None))
    generated = {}
    for test_id in (second, longer, other):
        generated[test_id] = Stages()
        pipeline.answer_prompts(test_id, store, generated[test_id])
    assert generated[second].seen == []
    assert len(generated[longer].seen) == 4
    assert {stage for stage, _ in generated[other].seen} == {"answers of the plan"}
    one, two = store.blind_test(first), store.blind_test(second)
    for variant in ("original", "plan"):
        assert one.answer(0, variant).text == two.answer(1, variant).text


def test_an_export_answers_for_its_plan_and_another_plans_folder_is_refused(store, plan_id, catalogue, tmp_path):
    out = tmp_path / "out"
    pipeline.apply_plan(store.plan(plan_id), "simulated", out)
    job = store.create_job("apply", ApplyRequest(plan_id=plan_id, to="simulated").model_dump())
    store.finish_job(job.id, JobStatus.DONE, {"folder": str(out)})
    assert pipeline.applied_folder(store, plan_id) == str(out)
    simulated, exported = started(store, plan_id), started(store, plan_id, folder=str(out))
    for test_id in (simulated, exported):
        pipeline.answer_prompts(test_id, store)
    one, two = store.blind_test(simulated), store.blind_test(exported)
    assert one.answer(0, "plan").text == two.answer(0, "plan").text
    assert one.answer(0, "plan").key != two.answer(0, "plan").key
    other = store.save_plan(a_plan(catalogue, {matrices(catalogue)[0]: "int8"}), None)
    assert pipeline.applied_folder(store, other) == ""
    with pytest.raises(PlanError, match="does not hold this plan"):
        pipeline.answer_prompts(started(store, other, folder=str(out)), store)


def test_a_test_that_is_gone_is_said_so(store):
    with pytest.raises(PlanError, match="no stored blind test gone"):
        pipeline.answer_prompts("gone", store)


# ------------------------------------------------------------------------------------------ the commands


def test_the_commands_generate_answers_and_tell_the_result_after_the_voting(run, catalogue, tmp_path):
    plan, asked, votes = tmp_path / "plan.json", tmp_path / "prompts.txt", tmp_path / "votes.csv"
    plan.write_text(a_plan(catalogue, dict.fromkeys(matrices(catalogue), "int2_g64")).model_dump_json())
    asked.write_text("One?\nTwo?\n")
    status, out, err = run("answers", plan, "--prompts", asked, "--tokens", 4, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["pairs"] == 2 and found["page"] == f"/blind?plan={found['plan']}&test={found['test']}"
    status, out, _ = run("answers", plan, "--prompts", asked, "--tokens", 4)
    assert status == 0 and f"python -m advisor preferences {found['test']}" in out
    status, _, err = run("preferences", found["test"], "--json")
    assert status == 2 and "add --reveal" in err and err.count("\n") == 1
    store = pipeline.open_store()
    test = store.blind_test(found["test"])
    for number in preferences.asked(test):
        store.save_vote(test.id, preferences.vote(test, "ann", number, "left"))
    status, out, err = run("preferences", found["test"], "--reveal", "--out", votes, "--json")
    assert status == 0, err
    told = json.loads(out)
    assert told["prompts"] == 2 and told["original"] + told["plan"] + told["identical"] == 2
    assert votes.read_text().count(",ann,") == 2 - told["identical"]
    assert "sign test" in run("preferences", found["test"])[1]


def test_commands_refuse_in_one_line(run, catalogue, tmp_path):
    plan, empty = tmp_path / "plan.json", tmp_path / "prompts.txt"
    plan.write_text(a_plan(catalogue, {matrices(catalogue)[0]: "int8"}).model_dump_json())
    empty.write_text("\n")
    for arguments, sentence in (
        (("answers", plan, "--prompts", empty), "There is no prompt"),
        (("answers", plan, "--folder", tmp_path / "elsewhere"), "does not hold this plan"),
        (("preferences", "gone"), "no stored blind test gone"),
    ):
        status, _, err = run(*arguments)
        assert status == 2 and sentence in err and err.count("\n") == 1
    assert pipeline.open_store().blind_tests() == []
