"""The whole road on a tiny real model, by the command line: profile, plan, apply, evaluate, and every refusal on it."""

import json
import random
import re
from pathlib import Path

import pytest

from advisor import documents, pipeline
from advisor.errors import JobCancelled, StorageError, TextError
from advisor.memory import decided_bits
from advisor.types import ApplyRequest, Budget, Plan, PlanRequest, ProfileRequest
from tests.tiny_models import CONTEXT, tiny_folder

TARGET = ["--hardware", "h100-sxm-80gb", "--engine", "transformers"]
PROFILE = ["--samples", "2", "--seq-len", "64", "--formats", "int8,int4_g32"]


@pytest.fixture
def model(tmp_path) -> str:
    return str(tiny_folder(tmp_path / "model"))


@pytest.fixture
def profile(model, run, tmp_path):
    path = tmp_path / "profile.json"
    status, out, err = run("profile", model, *PROFILE, "--out", path)
    assert status == 0, err
    assert "perplexity" in out
    return path


def test_profile_plan_apply_and_evaluate_run_through(profile, run, tmp_path):
    plan = tmp_path / "plan.json"
    status, out, err = run("plan", profile, *TARGET, "--weights", "6bits", "--out", plan)
    assert status == 0, err
    assert "average bits" in out
    document = json.loads(plan.read_text())
    assert {"schema_version", "model", "assignments", "predicted", "memory", "reasons", "provenance"} <= set(document)
    assert document["memory"]["decided_bits"] <= 6
    assert set(document["assignments"].values()) <= {"int8", "int4_g32", "bf16"}
    for target in ("quanto", "simulated"):
        status, out, err = run("apply", plan, "--to", target, "--out", tmp_path / target, "--json")
        assert (status, json.loads(out)["simulated"]) == (0, {}), err
    evaluations = {}
    for source in ("model", "quanto", "simulated"):
        status, out, err = run("evaluate", tmp_path / source, "--tokens", "512", "--seq-len", "64", "--json")
        assert status == 0, err
        evaluations[source] = json.loads(out)
    assert evaluations["quanto"]["perplexity"] == pytest.approx(evaluations["simulated"]["perplexity"], rel=1e-3)
    assert evaluations["quanto"]["perplexity"] != evaluations["model"]["perplexity"]
    assert evaluations["model"]["text"]["tokens"] == 8 * 63
    assert evaluations["quanto"]["file_bytes"] == document["memory"]["weights_bytes"]
    assert evaluations["simulated"]["weights_bytes"] == document["memory"]["weights_bytes"]
    assert evaluations["simulated"]["ms_per_token"] is None


def test_profiling_again_measures_nothing_twice(model, profile, run, tmp_path, monkeypatch):
    def measure_nothing(self, candidates):
        assert list(candidates) == []
        return iter(())

    monkeypatch.setattr("advisor.profiler.exact.ExactSweep.measure", measure_nothing)
    again = tmp_path / "again.json"
    assert run("profile", model, *PROFILE, "--out", again)[0] == 0
    assert json.loads(again.read_text())["measurements"] == json.loads(profile.read_text())["measurements"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--weights", "2bits"], "smallest"),
        (["--vram", "1MiB"], "smallest"),
        (["--vram", "lots"], "write it like 24GiB"),
        (["--weights", "0.00000001KiB"], "must be more than zero"),
        (["--weights", "4.5"], "write it like 4.5bits or 3GiB"),
        (["--max-ppl-increase", "5"], "write it like 5%"),
        (["--weights", "4bits", "--vram", "1GiB"], "exclude each other"),
        (["--weights", "6bits", "--lock", "nonsense"], "LAYERS=FORMAT"),
        (["--weights", "6bits", "--lock", "lm_head=int5"], "int5"),
        (["--weights", "6bits", "--lock", "no.such.layer=int8"], "matches no layer"),
        (["--weights", "6bits", "--exclude", "blocks 7-9"], "The exclusion 'blocks 7-9' goes beyond"),
        (["--weights", "6bits", "--floor", "mlp=8"], "names no role"),
        (["--weights", "6bits", "--floor", "mlp_down=64"], "gives no bits from 0 to 16"),
        (["--hardware", "h1000"], "h100"),
        (["--engine", "vlm"], "vllm"),
    ],
)
def test_a_plan_that_cannot_be_is_one_line_and_writes_nothing(profile, run, tmp_path, arguments, sentence):
    out = tmp_path / "plan.json"
    status, _, err = run("plan", profile, *TARGET, *arguments, "--out", out)
    assert status == 2
    assert sentence in err
    assert err.count("\n") == 1
    assert not out.exists()


def test_bad_models_texts_and_files_are_one_line(model, profile, run, tmp_path):
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "fake.gguf").write_bytes(b"not a gguf")
    out = ["--out", tmp_path / "never.json"]
    refused = [
        (["profile", tmp_path / "missing", *out], "no file or folder"),
        (["profile", tmp_path / "pickled", *out], "pickled weights are never loaded"),
        (["profile", tmp_path / "fake.gguf", *out], "not a GGUF file"),
        (["profile", "no such model", *out], "names no model"),
        (["profile", "x" * 300 + "/y", *out], "error: "),
        (["profile", "~nosuchuser/model", *out], "no file or folder"),
        (["profile", model, "--text", tmp_path / "short.txt", *out], "too little calibration text"),
        (["profile", model, "--text", tmp_path / "nothing.txt", *out], "There is no text"),
        (["profile", model, "--formats", "int5", *out], "int5"),
        (["profile", model, "--formats", ",", *out], "--formats is empty"),
        (["profile", model, "--out", tmp_path / "short.txt" / "p.json"], "which is a file: choose another place"),
        (["profile", model, "--layers", "nothing", *out], "The choice of layers 'nothing' matches no layer"),
        (["plan", tmp_path / "missing.json", *TARGET, *out], "cannot be read"),
        (["plan", tmp_path / "short.txt", *TARGET, *out], "is not JSON"),
        (["apply", profile, *out], "a sensitivity profile, not a plan"),
        (["evaluate", tmp_path / "missing"], "no file or folder"),
    ]
    for arguments, sentence in refused:
        status, _, err = run(*arguments)
        assert status == 2, arguments
        assert sentence in err, arguments
        assert "Traceback" not in err
        assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "never.json").exists()


@pytest.mark.network
def test_a_measured_plan_beats_uniform_int4_and_chance_at_its_size_on_held_out_text(demo_models_dir, store):
    """On the first and last block of SmolLM2: what the product is for, at a size that the budget fixes."""
    request = ProfileRequest(
        model="smollm2", samples=2, seq_len=128, formats=("int8", "int4_g64"), layers=r".*layers\.(0|29)\..*"
    )
    found = pipeline.profile_model(request, store)
    plan = pipeline.make_plan(found, a_request(budget=Budget(weight_bits=5.25, context=CONTEXT)))
    by_chance = chance_assignments(found.catalogue, plan)
    assert plan.memory.decided_bits <= 5.25
    from advisor import models, texts
    from advisor.apply import simulated
    from advisor.evaluate import score

    loaded = models.load("smollm2", lambda progress: None)
    windows = texts.token_windows("python-docs", loaded.tokenizer, "evaluation", 4, 256)
    original = score(loaded.model, windows, keep=True)
    kl, nll = {}, {}
    uniform = dict.fromkeys(plan.assignments, "int4_g64")
    for name, assignments in {"plan": plan.assignments, "uniform": uniform, "chance": by_chance}.items():
        with simulated(loaded.model, loaded.catalogue, assignments):
            scores = score(loaded.model, windows, original)
        kl[name], nll[name] = scores.kl.mean().item(), scores.nll.mean().item()
    assert kl["plan"] < 0.8 * kl["chance"] < kl["uniform"]
    assert nll["plan"] < nll["uniform"]


def chance_assignments(catalogue, plan) -> dict[str, str]:
    """INT8 for layers drawn by chance, as many as the plan's bytes allow, INT4 for the rest."""
    names = sorted(plan.assignments)
    random.Random(0).shuffle(names)
    found = dict.fromkeys(plan.assignments, "int4_g64")
    for name in names:
        more = found | {name: "int8"}
        if decided_bits(catalogue, more) <= plan.memory.decided_bits:
            found = more
    return found


def a_request(**changes) -> PlanRequest:
    budget = Budget(weight_bits=6, context=CONTEXT)
    return PlanRequest(**{"hardware": "h100-sxm-80gb", "engine": "transformers", "budget": budget} | changes)


@pytest.fixture
def store(data_folder):
    return pipeline.open_store()


def test_a_plan_for_this_machine_has_its_speed_corrected_by_its_own_evaluation(profile, run, store, tmp_path):
    plan, folder = tmp_path / "plan.json", tmp_path / "model-int"
    here = ["--hardware", "this-machine", "--engine", "transformers"]
    assert run("plan", profile, *here, "--weights", "6bits", "--context", "32", "--out", plan)[0] == 0
    assert run("apply", plan, "--out", folder)[0] == 0
    status, out, err = run("evaluate", folder, "--tokens", "64", "--seq-len", "32")
    assert status == 0, err
    assert re.search(r"as planned for: [\d,]+ tokens per second, .*estimated, corrected by a measured run on cpu", out)
    plan_id = store.save_plan(documents.check_plan_document(plan.read_text()), None)
    pipeline.apply_and_evaluate(ApplyRequest(plan_id=plan_id, tokens=64, seq_len=32, baselines=()), store)
    found = {evaluation.variant: evaluation for evaluation in store.evaluations(plan_id)}
    assert found["original"].latency is None and found["plan"].latency.basis == "measured"
    assert found["plan"].latency.decode_ms_per_step == pytest.approx(found["plan"].ms_per_token, rel=0.2)


@pytest.fixture
def stored_plan(model, store) -> tuple[str, Plan]:
    request = ProfileRequest(model=model, samples=2, seq_len=64, formats=("int8", "int4_g32"))
    found = pipeline.profile_model(request, store)
    plan = pipeline.make_plan(found, a_request())
    return store.save_plan(plan, found.id), plan


@pytest.mark.parametrize("to", ["quanto", "simulated"])
def test_applying_measures_the_plan_beside_the_original_and_uniform_plans(stored_plan, store, to):
    plan_id, plan = stored_plan
    stages = []
    request = ApplyRequest(plan_id=plan_id, to=to, tokens=256, seq_len=64, baselines=("int8", "int4_g32", "nf4_g64"))
    result = pipeline.apply_and_evaluate(request, store, lambda progress: stages.append(progress.stage))
    found = {evaluation.variant: evaluation for evaluation in store.evaluations(plan_id)}
    assert list(found) == ["original", "uniform int8", "uniform int4_g32", "plan"]
    assert found["original"].kl_to_original is None
    assert (
        0
        < found["uniform int8"].kl_to_original
        < found["plan"].kl_to_original
        < found["uniform int4_g32"].kl_to_original
    )
    assert found["uniform int4_g32"].weights_bytes < found["plan"].weights_bytes < found["original"].weights_bytes
    assert {found[name].text.text_sha256 for name in found} == {found["plan"].text.text_sha256}
    assert stages[0] == "load" and "apply" in stages and "evaluate plan" in stages
    assert found["plan"].weights_bytes == plan.memory.weights_bytes
    assert (found["plan"].ms_per_token is None) == (to == "simulated")
    on_disk, unpacked = found["plan"].file_bytes, found["original"].weights_bytes
    assert on_disk == unpacked if to == "simulated" else on_disk < unpacked
    again = pipeline.apply_and_evaluate(request, store)
    assert again == result
    variants = [evaluation.variant for evaluation in store.evaluations(plan_id)]
    assert variants == ["original", "uniform int8", "uniform int4_g32", "plan", "plan"]
    assert store.evaluations(plan_id)[-1].notes == found["plan"].notes
    alone = pipeline.apply_and_evaluate(request.model_copy(update={"tokens": 64, "baselines": ()}), store)
    assert alone == result and "of a single sequence for independent" in store.evaluations(plan_id)[-1].notes[-1]


def test_an_export_is_used_again_only_for_the_same_plan_and_target(stored_plan, store, tmp_path):
    plan_id, _ = stored_plan
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is free
    request = ApplyRequest(plan_id=plan_id, to="simulated", out=str(out), tokens=64, seq_len=64, baselines=())
    pipeline.apply_and_evaluate(request, store)
    with pytest.raises(StorageError, match="written in another way"):
        pipeline.apply_and_evaluate(request.model_copy(update={"to": "quanto"}), store)
    edited = stored_plan[1].model_copy(update={"memory": stored_plan[1].memory.model_copy(update={"weights_bytes": 5})})
    request = request.model_copy(update={"plan_id": store.save_plan(edited, None), "out": str(tmp_path / "edited")})
    assert pipeline.apply_and_evaluate(request, store) == pipeline.apply_and_evaluate(request, store)


def test_a_baseline_that_does_not_fit_every_layer_is_measured_where_it_does(tmp_path, store):
    narrow = str(tiny_folder(tmp_path / "narrow", hidden_size=80, head_dim=20))
    request = ProfileRequest(model=narrow, samples=2, seq_len=32, formats=("int8", "int4_g64"), layers=".*mlp.*")
    found = pipeline.profile_model(request, store)
    plan_id = store.save_plan(
        pipeline.make_plan(found, a_request(budget=Budget(weight_bits=8, context=CONTEXT))), found.id
    )
    pipeline.apply_and_evaluate(ApplyRequest(plan_id=plan_id, tokens=64, seq_len=32), store)
    assert "uniform int4_g64" in {evaluation.variant for evaluation in store.evaluations(plan_id)}


def test_sequences_longer_than_the_context_are_refused(model, profile, run, tmp_path, stored_plan, store):
    for arguments in (["profile", model, "--out", tmp_path / "p.json"], ["evaluate", model]):
        status, _, err = run(*arguments, "--seq-len", "512")
        assert (status, "reads at most 256 tokens" in err) == (2, True)
    with pytest.raises(TextError, match="reads at most 256 tokens"):
        pipeline.apply_and_evaluate(ApplyRequest(plan_id=stored_plan[0], seq_len=512), store)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "gpt2"])
def test_experts_and_conv1d_survive_the_journey_to_disk_and_back(architecture, run, tmp_path):
    model = tiny_folder(tmp_path / "model", architecture)
    assert run("profile", model, *PROFILE, "--out", tmp_path / "p.json")[0] == 0
    for engine in ("transformers", "mlx"):
        device = "m4-max-128gb" if engine == "mlx" else "h100-sxm-80gb"
        out = ["--hardware", device, "--engine", engine, "--out", tmp_path / f"{engine}.json"]
        status, _, err = run("plan", tmp_path / "p.json", "--weights", "9bits", *out)
        if (architecture, engine) == ("gpt2", "transformers"):
            assert status == 2 and "error: " in err  # quanto packs none of its layers, so there is nothing to decide
            continue
        assert status == 0, err
        assert run("apply", tmp_path / f"{engine}.json", "--to", "quanto", "--out", tmp_path / engine)[0] == 0
        status, _, err = run("evaluate", tmp_path / engine, "--tokens", "64", "--seq-len", "32")
        assert status == 0, err


def test_an_edited_plan_is_exported_with_the_memory_of_what_it_holds(profile, run, tmp_path):
    plan = tmp_path / "plan.json"
    assert run("plan", profile, *TARGET, "--weights", "6bits", "--out", plan)[0] == 0
    document = json.loads(plan.read_text())
    true_bytes = document["memory"]["weights_bytes"]
    document["memory"]["weights_bytes"] = 5
    plan.write_text(json.dumps(document))
    assert run("apply", plan, "--to", "simulated", "--out", tmp_path / "out")[0] == 0
    exported = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert exported["memory"]["weights_bytes"] == true_bytes
    document["memory"]["weights_bytes"] = -1
    plan.write_text(json.dumps(document))
    status, _, err = run("apply", plan, "--out", tmp_path / "never")
    assert status == 2 and "memory.weights_bytes" in err


def test_wrong_usage_is_one_line(run):
    for arguments in (["profile"], ["nonsense"], ["tables", "bogus"], ["tables"], ["plan", "--weights"]):
        status, _, err = run(*arguments)
        assert (status, err.count("\n")) == (2, 1), (arguments, err)


def test_a_foreign_plan_in_a_model_folder_does_not_matter(model, run):
    for content in (b"{}", b"\xff\xfe"):
        (Path(model) / "plan.json").write_bytes(content)
        assert run("evaluate", model, "--tokens", "64", "--seq-len", "32")[0] == 0


def test_a_ruined_layer_still_gives_a_plan_that_can_be_stored(model, store):
    request = ProfileRequest(model=model, samples=2, seq_len=32, formats=("int8", "int4_g32"))
    found = pipeline.profile_model(request, store)
    ruined = tuple(m.model_copy(update={"delta_nll": 300.0, "kl": 300.0}) for m in found.measurements)
    plan = pipeline.make_plan(found.model_copy(update={"measurements": ruined}), a_request())
    assert documents.check_plan_document(plan.model_dump_json()) == plan


def test_cancelling_keeps_what_was_finished(stored_plan, store):
    plan_id, _ = stored_plan
    request = ApplyRequest(plan_id=plan_id, tokens=128, seq_len=64)

    def cancelled() -> bool:
        return len(store.evaluations(plan_id)) == 1

    with pytest.raises(JobCancelled):
        pipeline.apply_and_evaluate(request, store, cancelled=cancelled)
    assert [evaluation.variant for evaluation in store.evaluations(plan_id)] == ["original"]
