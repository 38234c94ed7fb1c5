"""Applied as planned: whatever is changed in an export afterwards is found, and named; nothing wrong is left behind."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader

from advisor import models, pipeline
from advisor.errors import AdvisorError, ModelError, PlanError
from advisor.folders import CARD_FILE, PLAN_FILE, QUANTO_MAP, RECORD_FILE
from advisor.types import ApplyRequest, ExportRecord
from tests.gguf_cases import VOCABULARY, a_model
from tests.test_apply import a_plan
from tests.tiny_models import merging_tokenizer

TARGETS = ("quanto", "simulated", "compressed-tensors", "gguf")
# Written and read by the same few functions: one change of bytes and one cut are tried on each.
BY_MODULES = ("torchao", "torchao-cuda", "mlx", "gptqmodel", "bitsandbytes")
UP, GATE, DOWN = (f"model.layers.1.mlp.{name}_proj" for name in ("up", "gate", "down"))
IN_GGUF = {UP: "blk.1.ffn_up.weight", GATE: "blk.1.ffn_gate.weight"}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "original"
    a_model(hidden_size=128, intermediate_size=256)[0].save_pretrained(folder)
    merging_tokenizer(VOCABULARY).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plan(original):
    catalogue = models.load(str(original), lambda progress: None, dtype="own").catalogue
    found = a_plan(catalogue, {UP: "int8", GATE: "int8", DOWN: "int4_g64", "model.layers.0.mlp.down_proj": "int8"})
    return found.model_copy(update={"request": found.request.model_copy(update={"engine": "vllm"})})


def plan_for(to, plan):
    """The plan; all in INT8 for bitsandbytes, which holds one format."""
    int8 = dict.fromkeys(plan.assignments, "int8")
    return plan.model_copy(update={"assignments": int8}) if to == "bitsandbytes" else plan


@pytest.fixture(scope="module")
def exported(plan, tmp_path_factory):
    """Target -> a folder that was applied once; take a copy of it."""
    folders = {to: tmp_path_factory.mktemp("exports") / to for to in (*TARGETS, *BY_MODULES)}
    for to, folder in folders.items():
        # Codes that a method chose are nowhere but in the files: without its record, only what they compute is held.
        pipeline.apply_plan(plan_for(to, plan), to, folder, method="rtn")
    return folders


@pytest.fixture
def copy(exported, tmp_path):
    return lambda to: shutil.copytree(exported[to], tmp_path / to)


def tensors_of(folder):
    """Tensor name -> (file, offset, bytes)."""
    found = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        found |= {
            n: (path, start + h["data_offsets"][0], h["data_offsets"][1] - h["data_offsets"][0])
            for n, h in header.items()
        }
    for path in folder.glob("*.gguf"):
        found |= {t.name: (path, int(t.data_offset), int(t.n_bytes)) for t in GGUFReader(path).tensors}
    return found


def codes_of(folder, layer):
    """Where the codes of a layer are: its largest tensor."""
    mine = [place for name, place in tensors_of(folder).items() if name.startswith((layer, IN_GGUF[layer]))]
    return max(mine, key=lambda place: place[2])


def overwrite(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(folder):
    path, offset, size = codes_of(folder, UP)
    middle = offset + size // 2
    overwrite(path, middle, bytes(byte ^ 0x55 for byte in path.read_bytes()[middle : middle + 8]))


def swap(folder):
    (path, one, size), (_, other, _) = codes_of(folder, UP), codes_of(folder, GATE)
    data = path.read_bytes()
    overwrite(path, one, data[other : other + size])
    overwrite(path, other, data[one : one + size])


@pytest.mark.parametrize("to", TARGETS)
def test_a_folder_is_as_planned_right_after_it_was_applied(to, exported, plan):
    record = ExportRecord.model_validate_json((exported[to] / RECORD_FILE).read_text())
    assert record.target == to and record.verified == pipeline.verify_export(exported[to], plan)
    assert record.verified.largest_row_difference == 0  # the very values that were measured
    assert record.verified.kl < 1e-4


def forget_digests(folder: Path) -> None:
    """As records of earlier versions are: nothing but formats, bytes and values is left to compare."""
    record = json.loads((folder / RECORD_FILE).read_text())
    (folder / RECORD_FILE).write_text(json.dumps(record | {"tensors": {}, "files": {}}))


@pytest.mark.parametrize("record", [None, "", "{}"], ids=["missing", "empty", "damaged"])
def test_without_the_record_of_what_was_written_nothing_is_said_to_be_as_planned(record, copy, plan):
    folder = copy("quanto")
    (folder / RECORD_FILE).unlink()
    if record is not None:
        (folder / RECORD_FILE).write_text(record)
    with pytest.raises(ModelError, match=r"export.json, which keeps what was written, is missing or damaged"):
        pipeline.verify_export(folder, plan)


@pytest.mark.parametrize("to", ["quanto", "compressed-tensors", "gguf", "mlx"])
def test_missing_weights_are_named_as_the_file_that_they_were_in(to, copy, plan):
    folder = copy(to)
    (weights,) = [*folder.glob("*.safetensors"), *folder.glob("*.gguf")]
    weights.unlink()
    with pytest.raises(ModelError, match=rf"planned: {weights.name}: it is missing\. Apply"):
        pipeline.verify_export(folder, plan)


def test_a_missing_file_is_named_before_what_needs_it_fails(copy, plan):
    folder = copy("quanto")
    (folder / QUANTO_MAP).unlink()
    with pytest.raises(ModelError, match=f"planned: {QUANTO_MAP}: it is missing"):
        pipeline.verify_export(folder, plan)


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "without digests"])
@pytest.mark.parametrize("tamper", [flip, swap])
@pytest.mark.parametrize("to", TARGETS)
def test_changed_bytes_are_found_with_the_tensors_name(to, tamper, recorded, copy, plan):
    folder = copy(to)
    tamper(folder)
    if not recorded:
        forget_digests(folder)
    with pytest.raises(ModelError) as refused:
        pipeline.verify_export(folder, plan)
    named = str(refused.value).partition("planned: ")[2]
    assert named.startswith((UP, GATE, *IN_GGUF.values())), named
    assert ("bytes are not those that were written" in named) == recorded
    assert ("values are not those of the plan" in named) == (not recorded)


@pytest.mark.parametrize("to", BY_MODULES)
def test_changed_bytes_are_found_with_or_without_digests_whatever_packed_them(to, copy, plan):
    folder = copy(to)
    flip(folder)
    with pytest.raises(ModelError, match=rf"planned: {UP}\.\S+: its bytes are not those that were written"):
        pipeline.verify_export(folder, plan_for(to, plan))
    forget_digests(folder)
    with pytest.raises(ModelError, match=f"planned: {UP}: its values are not those of the plan"):
        pipeline.verify_export(folder, plan_for(to, plan))


@pytest.mark.parametrize("to", ["quanto", "simulated", "compressed-tensors"])
def test_an_edited_configuration_is_found_by_what_the_model_computes(to, copy, plan):
    folder = copy(to)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 3.0
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="planned: config.json: its bytes are not those that were written"):
        pipeline.verify_export(folder, plan)
    forget_digests(folder)
    with pytest.raises(ModelError, match=r"computes something else than the simulated plan \(KL"):
        pipeline.verify_export(folder, plan)


def test_a_layer_that_the_configuration_leaves_out_is_missed(copy, plan):
    folder = copy("simulated")
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    forget_digests(folder)
    with pytest.raises(ModelError, match="lacks layers of the plan .*: its configuration was changed"):
        pipeline.verify_export(folder, plan)


@pytest.mark.parametrize(
    "name, what",
    [
        ("chat_template.jinja", "its bytes are not those that were written"),
        ("modeling_x.py", "it was added after the rest was written"),
    ],
)
def test_another_chat_template_and_added_code_are_found_with_the_files_name(name, what, copy, plan):
    folder = copy("quanto")
    (folder / name).write_text("{{ messages }}")
    with pytest.raises(ModelError, match=f"planned: {name}: {what}"):
        pipeline.verify_export(folder, plan)


@pytest.mark.parametrize("to", TARGETS)
def test_another_tokenizer_is_found_with_the_files_name(to, copy, plan):
    folder = copy(to)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    one, other = list(words)[-2:]
    words[one], words[other] = words[other], words[one]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="planned: tokenizer.json: its bytes are not those that were written"):
        pipeline.verify_export(folder, plan)


def test_the_header_of_a_gguf_file_is_held_beside_its_tensors(copy, plan):
    folder = copy("gguf")
    [path] = folder.glob("*.gguf")
    data = path.read_bytes()
    key = b"tokenizer.ggml.eos_token_id"
    value = data.index(key) + len(key) + 4  # after four bytes that say its type
    overwrite(path, value, bytes([data[value] ^ 1]))
    with pytest.raises(ModelError, match=rf"planned: {path.name}: its bytes are not those that were written"):
        pipeline.verify_export(folder, plan)


def test_a_file_that_engines_read_and_was_added_and_one_that_went_are_told_and_a_card_may_be_edited(copy, plan):
    folder = copy("simulated")
    (folder / CARD_FILE).write_text("My own words.")
    (folder / "notes.txt").write_text("mine")
    pipeline.verify_export(folder, plan)
    (folder / "added_tokens.json").write_text("{}")
    with pytest.raises(ModelError, match="planned: added_tokens.json: it was added"):
        pipeline.verify_export(folder, plan)
    (folder / "added_tokens.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="planned: tokenizer_config.json: it is missing"):
        pipeline.verify_export(folder, plan)


def test_a_record_of_an_earlier_version_is_held_for_what_it_says(copy, plan):
    folder = copy("simulated")
    record = json.loads((folder / RECORD_FILE).read_text())
    del record["files"]
    (folder / RECORD_FILE).write_text(json.dumps(record))
    (folder / "tokenizer_config.json").write_text("{}")
    pipeline.verify_export(folder, plan)
    flip(folder)
    with pytest.raises(ModelError, match="its bytes are not those that were written"):
        pipeline.verify_export(folder, plan)


@pytest.mark.parametrize("to", (*TARGETS, *BY_MODULES))
def test_a_truncated_file_is_refused(to, copy, plan):
    folder = copy(to)
    [path] = {place[0] for place in tensors_of(folder).values()}
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match="apply the plan again"):
        pipeline.verify_export(folder, plan_for(to, plan))


def test_another_plan_another_model_and_another_folder_are_refused(exported, original, plan, tmp_path):
    other = plan.model_copy(update={"assignments": plan.assignments | {DOWN: "int8"}})
    with pytest.raises(ModelError, match=rf"{DOWN}: int8 \(.* was planned, but the files hold int4_g64"):
        pipeline.verify_export(exported["quanto"], other)
    unknown = plan.model_copy(update={"assignments": plan.assignments | {DOWN: "int3_g64"}})
    with pytest.raises(
        ModelError, match=r"does not store int3_g64.* written from another plan: its own is \S+plan.json"
    ):
        pipeline.verify_export(exported["gguf"], unknown)
    stranger = plan.model_copy(update={"model": plan.model.model_copy(update={"fingerprint": "another"})})
    with pytest.raises(PlanError, match="give the plan that was applied"):
        pipeline.verify_export(exported["quanto"], stranger)
    with pytest.raises(ModelError, match="There is no folder"):
        pipeline.verify_export(tmp_path / "nowhere", plan)
    with pytest.raises(ModelError, match="holds no applied plan"):
        pipeline.verify_export(original, plan)


@pytest.fixture
def faulty(monkeypatch):
    """A writer that rounds one layer twice."""
    from advisor.export import simulated

    def wrong(tensor):
        return (tensor * 8).round() / 8 if tensor.shape == torch.Size([256, 128]) else tensor

    monkeypatch.setattr(simulated, "whole", wrong)


def test_an_export_that_is_not_what_was_planned_does_not_stay_behind(faulty, plan, tmp_path):
    with pytest.raises(AdvisorError, match="mlp.gate_proj: its values are not those of the plan"):
        pipeline.apply_plan(plan, "simulated", tmp_path / "exports" / "out")
    assert list((tmp_path / "exports").iterdir()) == []


def test_a_job_verifies_also_what_an_earlier_run_wrote(copy, plan, store):
    folder = copy("quanto")
    plan_id = store.save_plan(plan, None)
    request = ApplyRequest(plan_id=plan_id, to="quanto", out=str(folder), tokens=64, seq_len=32, baselines=())
    stages = []
    pipeline.apply_and_evaluate(request, store, lambda progress: stages.append(progress.stage))
    assert "verify" in stages and "apply" not in stages
    card = (folder / CARD_FILE).read_text()
    assert "1 layer in int4_g64" in card and re.search(r"\| plan \| \d+\.\d+ ± ", card)
    measured = len(store.evaluations(plan_id))
    flip(folder)
    with pytest.raises(ModelError, match=f"{UP}.weight._data: its bytes are not those that were written"):
        pipeline.apply_and_evaluate(request, store)
    assert len(store.evaluations(plan_id)) == measured
    assert json.loads((folder / PLAN_FILE).read_text())["assignments"] == plan.assignments
