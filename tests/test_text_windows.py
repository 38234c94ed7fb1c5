"""The tokens of a text never change: stored profiles, plans and published numbers name them by their hash."""

import hashlib
import json
from pydoc_data.topics import topics

import datasets
import pytest

from advisor import texts
from tests.tiny_models import byte_tokenizer

# Hashes by the first version of the passage splitting. Python's prose differs from one Python to the next.
_PYTHON_DOCS = {
    "37d06970fc926e60": ("fb10708d402db1d7", "7b1f3ba0d2dce9a8"),  # 3.11.7
    "64a4b3fd3c33d73d": ("a86428d1e5b1e24d", "8fba8f49b318cfc9"),  # 3.12.1
    "a68b7f5ba5e4f20a": ("1f833ed761203d78", "bf50aadae1016a48"),  # 3.13.0
}


def digest(source, purpose="calibration", windows=8, length=256, **seed) -> str:
    return texts.text_sha256(texts.token_windows(str(source), byte_tokenizer(), purpose, windows, length, **seed))


def documents(count: int) -> list[str]:
    """Documents with paragraphs of several lengths, some of which repeat in later documents."""
    return [
        "\n\n".join(f"Number {n * n % 97} is as good as {n}. " * (n % 13 + 1) for n in range(d, d + 9))
        for d in range(0, 5 * count, 5)
    ]


def test_the_windows_of_pythons_prose_are_those_of_the_published_numbers():
    found = hashlib.sha256("".join(topics[name] for name in sorted(topics)).encode()).hexdigest()[:16]
    if found not in _PYTHON_DOCS:
        pytest.skip(f"the reference prose of this Python ({found}) has no recorded windows")
    assert (digest("python-docs"), digest("python-docs", "evaluation", 1000)) == _PYTHON_DOCS[found]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_the_windows_of_a_file_stay_the_same(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    path.write_text(
        "\n\n".join(documents(40)) if suffix == ".txt" else "\n".join(json.dumps({"text": d}) for d in documents(40))
    )
    hashes = digest(path), digest(path, seed=7), digest(path, "evaluation", 1000)
    assert (
        hashes
        == {
            ".txt": ("fcbe46bffc33027c", "77559d082cabb7fc", "39a5260286ebf9d9"),
            ".jsonl": ("f9d07e24a0e79ce0", "cdf1972cbac714bd", "6a21e98f48814b05"),
        }[suffix]
    )


@pytest.mark.parametrize("source", ["wikitext2", "c4"])
def test_the_windows_of_a_hub_text_stay_the_same(monkeypatch, source):
    def rows(name, subset, split, streaming):  # stands in for the hub, which tests do not reach
        return ({"text": f"{split} {document}"} for document in documents(40))

    monkeypatch.setattr(datasets, "load_dataset", rows)
    assert (digest(source), digest(source, "evaluation")) == {
        "wikitext2": ("ce72791017f75b1b", "379c5c1177b3225c"),
        "c4": ("ce72791017f75b1b", "d63daec27aacabc2"),
    }[source]
