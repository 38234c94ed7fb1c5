"""Text: built in or the user's own; calibration and evaluation never overlap; what is unreadable gets a sentence."""

import json
from types import SimpleNamespace

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor import texts
from advisor.errors import TextError


class Letters:
    """A tokenizer that gives every character a token."""

    bos_token_id = 1

    def __init__(self, starts_with_bos=False):
        self.start = [1] if starts_with_bos else []

    def __call__(self, text, add_special_tokens=True):
        return SimpleNamespace(input_ids=(self.start if add_special_tokens else []) + [ord(c) for c in text])


def decoded(windows) -> list[str]:
    return ["".join(map(chr, row)) for row in windows.tolist()]


def test_calibration_and_evaluation_share_no_window_of_the_built_in_text():
    calibration = decoded(texts.token_windows("python-docs", Letters(), "calibration", 200, 200))
    evaluation = "".join(decoded(texts.token_windows("python-docs", Letters(), "evaluation", 10_000, 200)))
    assert len(set(calibration)) == 200
    assert not any(window in evaluation for window in calibration)


@given(st.lists(st.text("abc \n", min_size=0, max_size=3000), min_size=1, max_size=8))
def test_passages_lose_no_text_but_what_is_blank(documents):
    passages = list(texts._split(iter(documents)))
    joined = "".join(passages).split()
    assert joined == "".join((d.rstrip("\n") + "\n") for d in documents).split()
    assert all(len(passage) <= 2 * texts._PASSAGE_CHARACTERS for passage in passages)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_a_file_of_ones_own_is_read(tmp_path, suffix):
    documents = [f"document {i} " + "words and more words " * 200 for i in range(8)]
    path = tmp_path / f"mine{suffix}"
    if suffix == ".txt":
        path.write_text("\n".join(documents))
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"text": d}) for d in documents))
    else:
        pandas.DataFrame({"text": documents}).to_parquet(path)
    windows = texts.token_windows(str(path), Letters(), "calibration", 4, 100)
    assert windows.shape == (4, 100)
    assert "words" in decoded(windows)[0]


def test_repeated_passages_stand_on_one_side_only(tmp_path):
    line = "the same words again and again, to the end of the line of this passage. " * 30 + "\n"
    path = tmp_path / "repeated.txt"
    for separator in ("", "\n"):
        path.write_text((line + separator) * 12)
        with pytest.raises(TextError, match="too little evaluation text"):
            texts.token_windows(str(path), Letters(), "evaluation", 4, 100)


def test_windows_start_with_bos_where_the_tokenizer_does():
    windows = texts.token_windows("python-docs", Letters(starts_with_bos=True), "calibration", 3, 50)
    assert (windows[:, 0] == 1).all()
    assert windows.shape == (3, 50)
    assert (texts.token_windows("python-docs", Letters(), "calibration", 3, 50)[:, 0] != 1).all()


def test_the_seed_chooses_the_passages():
    first, again, other = (
        texts.token_windows("python-docs", Letters(), "calibration", 4, 64, seed=seed) for seed in (0, 0, 1)
    )
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n \n", "is empty"),
        ("short.txt", b"a few words", "too little calibration text"),
        ("binary.txt", b"\xff\xfe\x00\x80", "could not be read as text"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": ', "could not be read as text"),
        ("other.jsonl", b'{"body": "a"}', "no string field `text`"),
        ("broken.parquet", b"PAR1", "could not be read as text"),
        ("numbers.jsonl", b'{"text": 7}', "no string field `text`"),
        ("notes.pdf", b"%PDF", "not text that can be read here"),
    ],
)
def test_unusable_files_are_refused_in_a_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TextError, match=message):
        texts.token_windows(str(path), Letters(), "calibration", 8, 256)


def test_line_separators_inside_a_json_string_do_not_end_a_line(tmp_path):
    path = tmp_path / "mine.jsonl"
    document = "one sentence\u2028and another\u0085and a third. " * 100
    path.write_text("\n".join(json.dumps({"text": f"{i} {document}"}, ensure_ascii=False) for i in range(8)))
    assert texts.token_windows(str(path), Letters(), "calibration", 4, 100).shape == (4, 100)


def test_a_parquet_column_of_numbers_is_refused(tmp_path):
    path = tmp_path / "numbers.parquet"
    pandas.DataFrame({"text": [1, 2, 3]}).to_parquet(path)
    with pytest.raises(TextError, match="no string field `text`"):
        texts.token_windows(str(path), Letters(), "calibration", 1, 100)


def test_an_unknown_name_is_refused_with_what_there_is():
    with pytest.raises(TextError, match="python-docs, .*wikitext2, c4"):
        texts.check_source("wikipedia")
