"""Mixes and instructions: equal shares, no passage twice or on both sides, the model's own chat template."""

import json
import re

import datasets
import pytest

from advisor import texts
from advisor.conversations import rendered
from advisor.errors import TextError
from advisor.text_sources import python_documents
from tests.tiny_models import byte_tokenizer

_TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[end]{% endfor %}"
_PARTS = ("python-docs", "python-chat")


def chat_tokenizer(template: str = _TEMPLATE):
    """Bytes, a BOS token that the tokenizer does not add by itself, and a chat template that writes it."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.chat_template = template
    return tokenizer


def written(folder, name, rows) -> str:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def lettered(folder, letter: str) -> str:
    return written(folder, f"{letter}.jsonl", [{"text": f"{letter * 400} {n}"} for n in range(400)])


def paragraphs(passages) -> set[str]:
    """Paragraphs of 60 or more characters, their spaces evened out: shorter ones are headings and names."""
    contents = [p if isinstance(p, str) else "\n\n".join(content for _, content in p) for p in passages]
    found = {" ".join(text.split()) for content in contents for text in re.split(r"\n\s*\n", content)}
    return {text for text in found if len(text) >= 60}


def decoded(windows) -> list[str]:
    return byte_tokenizer().batch_decode(windows)


def test_a_mix_gives_equal_shares_and_its_first_windows_are_a_mix(tmp_path):
    source = "+".join(lettered(tmp_path, letter) for letter in "abc")
    windows = decoded(texts.token_windows(source, byte_tokenizer(), "calibration", 8, 32))
    assert [re.sub("[^abc]", "", window)[0] for window in windows] == list("abcabcab")


def test_the_windows_of_a_part_are_those_that_it_has_alone(tmp_path):
    a, b = lettered(tmp_path, "a"), lettered(tmp_path, "b")
    mixed = texts.token_windows(f"{a}+{b}", byte_tokenizer(), "calibration", 6, 32, seed=3)
    assert mixed[1::2].equal(texts.token_windows(b, byte_tokenizer(), "calibration", 3, 32, seed=3))


def test_an_evaluation_mix_ends_where_its_shortest_part_does(tmp_path):
    short = written(tmp_path, "short.jsonl", [{"text": f"{n} sss"} for n in range(1500)])
    windows = decoded(
        texts.token_windows(f"{short}+{lettered(tmp_path, 'l')}", byte_tokenizer(), "evaluation", 99, 256)
    )
    assert ["s" if "s" in window else "l" for window in windows] == ["s", "l"] * (len(windows) // 2) + ["s"] * (
        len(windows) % 2
    )
    assert 2 <= len(windows) < 99


def test_a_mix_is_checked_part_by_part_and_named_by_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lettered(tmp_path, "a")
    assert texts.check_source("python-docs + a.jsonl") == f"python-docs+{tmp_path / 'a.jsonl'}"
    assert texts.check_source("mix") == "mix"
    assert texts.check_source("mix+c4") == "python-docs+python-chat+c4"
    for source, message in {
        "python-docs+nothing.txt": "There is no text 'nothing.txt'",
        "python-docs+": "There is no text ''",
        "mix+python-docs": "holds a text twice",
        "a.jsonl+./a.jsonl": "holds a text twice",
    }.items():
        with pytest.raises(TextError, match=message):
            texts.check_source(source)


def test_a_plus_in_a_files_own_path_joins_nothing(tmp_path):
    folder = tmp_path / "a+b"
    folder.mkdir()
    one, two = lettered(folder, "x+y"), lettered(folder, "c4+c4")
    assert texts.check_source(one) == one
    assert texts.check_source(f"{one}+c4+{two}") == f"{one}+c4+{two}"
    assert texts.token_windows(f"{one}+{two}", byte_tokenizer(), "calibration", 2, 64).shape == (2, 64)


@pytest.mark.parametrize("calibrated", [["python-docs"], ["python-chat"], _PARTS])
@pytest.mark.parametrize("evaluated", [["python-docs"], ["python-chat"], _PARTS])
def test_no_paragraph_of_pythons_prose_is_on_both_sides(calibrated, evaluated):
    calibration = [p for part in calibrated for p in texts._passages(part, "calibration", calibrated)]
    evaluation = [p for part in evaluated for p in texts._passages(part, "evaluation", evaluated)]
    assert len(paragraphs(calibration)) > 300 and len(paragraphs(evaluation)) > 80
    assert not paragraphs(calibration) & paragraphs(evaluation)


@pytest.mark.parametrize("purpose", ["calibration", "evaluation"])
def test_documents_and_conversations_of_a_mix_share_no_paragraph(purpose):
    docs, chat = (texts._passages(part, purpose, _PARTS) for part in _PARTS)
    assert paragraphs(docs) and paragraphs(chat)
    assert not paragraphs(docs) & paragraphs(chat)


def test_answers_of_python_chat_are_paragraphs_of_the_reference_under_the_heading_asked_for():
    reference = {" ".join(p.split()) for d in python_documents() for p in re.split(r"\n\s*\n", d)}
    conversations = texts._passages("python-chat", "calibration", ["python-chat"])
    for (asker, question), (answerer, answer) in conversations:
        assert (asker, answerer) == ("user", "assistant")
        assert 200 <= len(answer) <= 4000 and len(question) < 200
        assert {" ".join(p.split()) for p in answer.split("\n\n")} <= reference
    questions = [question for (_, question), _ in conversations]
    assert len(set(questions)) == len(questions) > 100
    assert any("The assert statement" in question for question in questions)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Why? {n}"}, {"role": "assistant", "content": "So {n}."}]},
        {"prompt": "Why? {n}", "completion": "So {n}."},
        {"instruction": "Why? {n}", "output": "So {n}."},
        {"instruction": "Why?", "input": "{n}", "output": "So {n}."},
    ],
)
def test_rows_of_every_kind_become_conversations_in_the_models_template(tmp_path, row):
    rows = [json.loads(json.dumps(row).replace("{n}", str(n))) for n in range(100, 200)]
    windows = texts.token_windows(written(tmp_path, "c.jsonl", rows), chat_tokenizer(), "calibration", 4, 100)
    text = chat_tokenizer().decode(windows.flatten())
    asked = re.findall(r"\[user\]Why\?\s+(\d+)\[end\]\[assistant\]So (\d+)\.\[end\]", text)
    assert len(asked) > 5 and all(question == answer for question, answer in asked)
    assert "<s>" in text[:3]


def test_without_a_template_speakers_are_named_in_plain_words():
    conversation = (("user", "Why? "), ("assistant", "So."))
    assert rendered(conversation, byte_tokenizer()) == "User: Why?\n\nAssistant: So.\n\n"


def test_a_template_that_writes_the_start_token_does_not_double_it(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = chat_tokenizer()
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    assert tokenizer("a").input_ids[0] == bos
    rows = [{"prompt": f"Why {n}?", "completion": f"So {n}."} for n in range(200)]
    windows = texts.token_windows(written(tmp_path, "c.jsonl", rows), tokenizer, "calibration", 4, 100)
    assert (windows[:, 0] == bos).all() and not (windows[:, 1:] == bos).any()


def test_a_template_with_todays_date_gives_the_same_text_every_day():
    template = "{{ strftime_now('%Y') }} {{ messages[0]['content'] }}"
    assert rendered((("user", "Why?"),), chat_tokenizer(template)) == "2025 Why?"


def test_a_conversation_that_the_template_refuses_gets_a_sentence():
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    with pytest.raises(TextError, match="refuses a conversation of system, user .no system role.: give"):
        rendered((("system", "Be kind."), ("user", "Why?")), chat_tokenizer(template))


def test_a_question_asked_twice_stands_on_one_side_only(tmp_path):
    same = [{"prompt": f"Why {n % 50}? " * 20, "completion": f"So {n}."} for n in range(400)]
    path = written(tmp_path, "c.jsonl", same)
    sides = [texts._passages(path, purpose, [path]) for purpose in ("calibration", "evaluation")]
    questions = [{conversation[0] for conversation in side} for side in sides]
    assert not questions[0] & questions[1]
    assert [len(side) for side in sides] == [38, 12]


def test_text_and_conversations_may_stand_in_one_file(tmp_path):
    rows = [{"text": f"{n} words " * 300} for n in range(8)]
    rows += [{"prompt": f"Why {n}?", "completion": "So."} for n in range(8)]
    path = written(tmp_path, "both.jsonl", rows)
    kinds = {type(passage) for passage in texts._passages(path, "calibration", [path])}
    assert kinds == {str, tuple}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "line 1: `messages` is no list of messages"),
        ({"messages": "hello"}, "line 1: `messages` is no list of messages"),
        ({"messages": [{"role": "user"}]}, "line 1: a message has no text"),
        ({"prompt": "a", "completion": None}, "line 1: a message has no text"),
        ({"instruction": 3, "output": "b"}, "line 1: `instruction` or `input` is no text"),
        ({"prompt": "a"}, "line 1 has no string field `text` and no conversation"),
        ({"messages": [{"role": "user", "content": " "}]}, "is empty"),
    ],
)
def test_rows_that_are_no_conversation_are_refused_in_a_sentence(tmp_path, row, message):
    with pytest.raises(TextError, match=message):
        texts.token_windows(written(tmp_path, "c.jsonl", [row]), byte_tokenizer(), "calibration", 1, 32)


def test_ultrachat_calibrates_on_its_train_and_evaluates_on_its_test_split(monkeypatch):
    def rows(name, subset, split, streaming):  # stands in for the hub, which tests do not reach
        assert (name, streaming) == ("HuggingFaceH4/ultrachat_200k", True)
        for n in range(50):
            yield {"messages": [{"role": "user", "content": f"{split} {n}"}, {"role": "assistant", "content": "So."}]}

    monkeypatch.setattr(datasets, "load_dataset", rows)
    for purpose, split in {"calibration": "train_sft", "evaluation": "test_sft"}.items():
        text = chat_tokenizer().decode(texts.token_windows("ultrachat", chat_tokenizer(), purpose, 4, 64).flatten())
        assert re.search(rf"\[user\]{split} \d+\[end\]\[assistant\]So.\[end\]", text)


def test_random_draws_every_ordinary_token_and_no_special_one():
    tokenizer = chat_tokenizer()
    windows = texts.token_windows("random", tokenizer, "calibration", 64, 256, seed=1)
    assert set(windows.flatten().tolist()) == set(range(256)) and tokenizer.bos_token_id == 256
    assert windows.equal(texts.token_windows("random", tokenizer, "calibration", 64, 256, seed=1))
    assert not windows.equal(texts.token_windows("random", tokenizer, "calibration", 64, 256, seed=2))


def test_random_is_called_a_bad_example_and_refused_for_evaluation():
    assert "bad example" in texts.BUILT_IN["random"]
    for source in ("random", "python-docs+random"):
        with pytest.raises(TextError, match="evaluate on `python-docs` or your own text"):
            texts.token_windows(source, byte_tokenizer(), "evaluation", 1, 32)
        with pytest.raises(TextError, match="no model can be judged"):
            texts.check_source(source, "evaluation")
