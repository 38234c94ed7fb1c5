"""The database: nouns come back as they went in, a failed save leaves nothing, and migrations make the tables."""

import math
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text

from advisor.errors import StorageError
from advisor.types import (
    AttentionGeometry,
    Baseline,
    Budget,
    CalibrationSpec,
    Catalogue,
    Evaluation,
    JobStatus,
    Layer,
    Measurement,
    MemoryEstimate,
    ModelRef,
    Plan,
    PlanRequest,
    Prediction,
    Progress,
    Reason,
    Role,
    SensitivityProfile,
    TextSpec,
    now,
)
from storage.engine import alembic_config, open_repository
from storage.job_queue import LOG_TAIL_CHARACTERS
from storage.tables import HEAD_REVISION, Base

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'advisor.db'}"


@pytest.fixture
def store(url):
    repository = open_repository(url)
    yield repository
    repository.close()


def make_catalogue(source="smollm2", fingerprint="f" * 64, vocabulary=100):
    name = "model.layers.0.mlp.down_proj"
    layer = Layer(
        name=name,
        parameter=f"{name}.weight",
        role=Role.MLP_DOWN,
        block=0,
        shape=(8, 64),
        quantizable=True,
        tied_names=(),
    )
    return Catalogue(
        model=ModelRef(source=source, kind="demo", name="SmolLM2", fingerprint=fingerprint),
        architecture="LlamaForCausalLM",
        dtype="bf16",
        hidden_size=8,
        intermediate_size=64,
        vocabulary=vocabulary,
        max_context=128,
        attention=AttentionGeometry(blocks=1, attention_heads=2, kv_heads=1, head_dim=4),
        layers=(layer,),
    )


def make_header(profile_id="p1", measurements=(), catalogue=None):
    return SensitivityProfile(
        id=profile_id,
        catalogue=catalogue or make_catalogue(),
        calibration=CalibrationSpec(text="python-docs", samples=8, seq_len=256, seed=3, text_sha256="ab"),
        method="exact",
        dtype="fp32",
        baseline=Baseline(nll=3.25, nll_stderr=0.125, tokens=2048),
        measurements=measurements,
        provenance={"torch": "2.13.0"},
    )


def make_measurement(layer="a", format="int8", delta_nll=0.1, sequences=(0.1, -0.2)):
    return Measurement(
        layer=layer,
        format=format,
        delta_nll=delta_nll,
        delta_nll_stderr=0.01,
        kl=0.05,
        kl_stderr=0.002,
        tokens=2048,
        delta_nll_by_sequence=sequences,
        seconds=1.5,
    )


def make_plan():
    return Plan(
        model=make_catalogue().model,
        request=PlanRequest(
            hardware="h100-sxm-80gb", engine="vllm", budget=Budget(weight_bits=4.5), locks={"lm_head": "bf16"}
        ),
        assignments={"model.layers.0.mlp.down_proj": "int4_g64"},
        predicted=Prediction(
            delta_nll=0.1,
            delta_nll_stderr=0.01,
            kl=0.05,
            kl_stderr=0.01,
            base_perplexity=30.0,
            perplexity=33.2,
            perplexity_low=32.0,
            perplexity_high=34.0,
        ),
        memory=MemoryEstimate(
            weights_bytes=5 * 2**30,
            kv_cache_bytes=2**30,
            activation_bytes=0,
            overhead_bytes=0,
            limit_bytes=2**35,
            decided_bits=4.25,
            original_weights_bytes=2**34,
        ),
        reasons={"model.layers.0.mlp.down_proj": Reason(text="cheapest")},
    )


def make_evaluation(variant="plan"):
    return Evaluation(
        variant=variant,
        model=make_catalogue().model,
        text=TextSpec(text="python-docs", tokens=4096, seq_len=256),
        nll=3.4,
        nll_stderr=0.02,
        perplexity=math.exp(3.4),
        perplexity_stderr=0.6,
    )


def count_rows(store, table):
    with store._engine.connect() as connection:
        return connection.execute(text(f"SELECT count(*) FROM {table}")).scalar()


class Statements:
    """The statements that reach the database inside the block."""

    def __init__(self, store):
        self.engine, self.seen = store._engine, []

    def _note(self, connection, cursor, statement, parameters, context, executemany):
        if not statement.startswith("BEGIN"):
            self.seen.append(statement)

    def __enter__(self):
        event.listen(self.engine, "before_cursor_execute", self._note)
        return self.seen

    def __exit__(self, *_):
        event.remove(self.engine, "before_cursor_execute", self._note)


# ------------------------------------------------------------------------------------------ round trips


def test_a_catalogue_comes_back_as_it_was_saved(store):
    store.save_catalogue(make_catalogue())
    assert store.catalogue_for_source("smollm2") == make_catalogue()


def test_saving_a_catalogue_again_replaces_it(store):
    store.save_catalogue(make_catalogue(vocabulary=100))
    store.save_catalogue(make_catalogue(vocabulary=200))
    assert store.catalogue_for_source("smollm2").vocabulary == 200
    assert count_rows(store, "models") == 1


def test_the_same_weights_are_found_by_each_source_they_came_from(store):
    store.save_catalogue(make_catalogue(source="smollm2"))
    store.save_catalogue(make_catalogue(source="/models/smol"))
    assert store.catalogue_for_source("smollm2").model.source == "smollm2"
    assert store.catalogue_for_source("/models/smol").model.source == "/models/smol"
    assert store.catalogue_for_source("elsewhere") is None


def test_a_source_whose_weights_changed_gives_the_newer_catalogue(store):
    store.save_catalogue(make_catalogue(fingerprint="1" * 64))
    store.save_catalogue(make_catalogue(fingerprint="2" * 64))
    assert store.catalogue_for_source("smollm2").model.fingerprint == "2" * 64


def test_a_profile_comes_back_with_its_measurements_in_the_order_measured(store):
    header = make_header()
    assert store.open_profile(header) == header
    measurements = [make_measurement("b"), make_measurement("a"), make_measurement("a", "int4_g64")]
    store.add_measurements("p1", measurements[:1])
    store.add_measurements("p1", measurements[1:])
    assert store.profile("p1") == header.model_copy(update={"measurements": tuple(measurements)})


def test_opening_a_stored_profile_returns_what_was_measured_already(store):
    store.open_profile(make_header())
    store.add_measurements("p1", [make_measurement()])
    assert store.open_profile(make_header()).measurements == (make_measurement(),)
    assert len(store.profiles()) == 1


def test_a_profile_opened_with_measurements_keeps_them(store):
    store.open_profile(make_header(measurements=(make_measurement(),)))
    assert store.profile("p1").measurements == (make_measurement(),)


def test_measuring_again_replaces_the_older_measurement(store):
    store.open_profile(make_header())
    store.add_measurements("p1", [make_measurement(delta_nll=0.1), make_measurement("b")])
    store.add_measurements("p1", [make_measurement(delta_nll=0.2), make_measurement(delta_nll=0.3)])
    assert {(m.layer, m.delta_nll) for m in store.profile("p1").measurements} == {("a", 0.3), ("b", 0.1)}


finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=finite, sequences=st.lists(finite, max_size=4).map(tuple))
def test_every_finite_number_comes_back_exactly(store, value, sequences):
    measurement = make_measurement(delta_nll=value, sequences=sequences)
    store.open_profile(make_header())
    store.add_measurements("p1", [measurement])
    assert store.profile("p1").measurements == (measurement,)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_measurement_that_is_no_number_is_refused_with_its_whole_batch(store, bad):
    store.open_profile(make_header())
    with pytest.raises(StorageError, match="layer_x in int8 is not a finite number"):
        store.add_measurements("p1", [make_measurement("good"), make_measurement("layer_x", delta_nll=bad)])
    assert store.profile("p1").measurements == ()


def test_a_plan_and_its_evaluations_come_back_as_they_were_saved(store):
    store.open_profile(make_header())
    plan_id = store.save_plan(make_plan(), "p1", "my plan")
    other = store.save_plan(make_plan(), None)
    store.save_evaluation(make_evaluation("original"), plan_id=plan_id)
    store.save_evaluation(make_evaluation("plan"), plan_id=plan_id)
    store.save_evaluation(make_evaluation("alone"))
    assert store.plan(plan_id) == make_plan()
    assert store.plan("nothing") is None
    assert [e.variant for e in store.evaluations(plan_id)] == ["original", "plan"]
    assert store.evaluations(plan_id)[1] == make_evaluation("plan")
    assert len(store.evaluations()) == 3
    assert [p.id for p in store.plans()] == [other, plan_id]
    assert [p.name for p in store.plans("p1")] == ["my plan"]


# ------------------------------------------------------------------------------------------------ lists


def test_a_profile_summary_tells_what_was_measured(store):
    store.open_profile(make_header())
    store.add_measurements("p1", [make_measurement("b", "int8"), make_measurement("b", "int4_g64"), make_measurement()])
    (summary,) = store.profiles()
    assert (summary.id, summary.model_name, summary.source, summary.text) == ("p1", "SmolLM2", "smollm2", "python-docs")
    assert (summary.samples, summary.seq_len, summary.measured) == (8, 256, 3)
    assert summary.formats == ("int8", "int4_g64")


def test_a_summary_changes_when_scores_are_replaced_in_their_places(store):
    store.open_profile(make_header())
    estimate = make_measurement().model_copy(update={"method": "fisher", "tokens": 1024})
    keys = []
    for replacing in ([], [estimate], [estimate.model_copy(update={"tokens": 2048})], [make_measurement()]):
        store.add_measurements("p1", replacing)
        (summary,) = store.profiles()
        keys.append(summary.scores_key)
    assert len(set(keys)) == 4
    assert (summary.measured, summary.exact, summary.tokens) == (1, 1, 2048)


def test_listing_profiles_takes_two_queries_however_many_there_are_and_loads_no_measurement(store):
    for number in range(5):
        store.open_profile(make_header(f"p{number}"))
        store.add_measurements(f"p{number}", [make_measurement(str(layer)) for layer in range(20)])
    with Statements(store) as statements:
        assert [p.measured for p in store.profiles()] == [20] * 5
    assert len(statements) == 2
    assert not any("delta_nll" in statement for statement in statements)


def test_listing_plans_takes_one_query_and_loads_no_document(store):
    store.open_profile(make_header())
    for _ in range(5):
        store.save_plan(make_plan(), "p1")
    with Statements(store) as statements:
        (plan, *rest) = store.plans()
    assert len(rest) == 4
    assert (plan.decided_bits, plan.total_bytes, plan.perplexity) == (4.25, 6 * 2**30, 33.2)
    assert (plan.model_name, plan.hardware, plan.engine) == ("SmolLM2", "h100-sxm-80gb", "vllm")
    assert len(statements) == 1 and "document" not in statements[0]


def test_profiles_and_plans_can_be_renamed(store):
    store.open_profile(make_header())
    plan_id = store.save_plan(make_plan(), "p1")
    store.rename_profile("p1", "long text")
    store.rename_plan(plan_id, "small")
    assert (store.profiles()[0].name, store.plans()[0].name) == ("long text", "small")
    with pytest.raises(StorageError, match="nothing stored under the id gone"):
        store.rename_plan("gone", "x")


def test_deleting_a_profile_takes_everything_that_was_made_from_it_and_nothing_else(store):
    for profile_id in ("p1", "p2"):
        store.open_profile(make_header(profile_id))
        store.add_measurements(profile_id, [make_measurement()])
        store.save_evaluation(make_evaluation(), plan_id=store.save_plan(make_plan(), profile_id))
    store.delete_profile("p1")
    assert [p.id for p in store.profiles()] == ["p2"]
    counted = [count_rows(store, table) for table in ("measurements", "plans", "evaluations", "models")]
    assert counted == [1, 1, 1, 1]


def test_deleting_a_plan_takes_its_evaluations(store):
    plan_id = store.save_plan(make_plan(), None)
    store.save_evaluation(make_evaluation(), plan_id=plan_id)
    store.delete_plan(plan_id)
    assert store.plans() == [] and store.evaluations() == []


# ------------------------------------------------------------------------------------------------- jobs


def test_only_the_oldest_unfinished_job_can_be_claimed(store):
    first, second = store.create_job("profile", {}), store.create_job("apply", {})
    assert not store.claim_job(second.id, 2)
    assert store.claim_job(first.id, 1)
    assert not store.claim_job(first.id, 3)
    assert not store.claim_job(second.id, 2)
    assert store.finish_job(first.id, JobStatus.DONE, result={"profile_id": "p"})
    assert store.claim_job(second.id, 2)
    assert store.job(first.id).result == {"profile_id": "p"}
    assert (store.job(second.id).pid, store.job(second.id).status) == (2, JobStatus.RUNNING)


def test_how_a_job_ended_is_decided_once(store):
    job = store.create_job("profile", {"model": "smollm2"})
    store.claim_job(job.id, 1)
    assert store.finish_job(job.id, JobStatus.FAILED, error="out of memory", log_tail="last words")
    assert not store.finish_job(job.id, JobStatus.DONE, result={})
    ended = store.job(job.id)
    assert (ended.status, ended.error, ended.log_tail) == (JobStatus.FAILED, "out of memory", "last words")
    assert ended.result is None and ended.finished is not None


def test_cancelling_ends_a_queued_job_and_only_asks_a_running_one(store):
    running, queued = store.create_job("profile", {}), store.create_job("profile", {})
    store.claim_job(running.id, 1)
    assert store.request_cancel(queued.id).status is JobStatus.CANCELLED
    asked = store.request_cancel(running.id)
    assert (asked.status, asked.cancel_requested, asked.finished) == (JobStatus.RUNNING, True, None)
    assert store.cancel_requested(running.id)
    assert store.request_cancel("nobody") is None


def test_an_ended_job_ignores_progress_and_requests(store):
    job = store.create_job("profile", {})
    store.claim_job(job.id, 1)
    store.report(job.id, Progress(stage="measure", done=1, total=2))
    store.finish_job(job.id, JobStatus.DONE)
    store.report(job.id, Progress(stage="measure", done=2, total=2))
    store.request_cancel(job.id)
    assert (store.job(job.id).progress.done, store.job(job.id).status) == (1, JobStatus.DONE)


def test_jobs_are_listed_newest_first_and_the_log_keeps_its_end(store):
    jobs = [store.create_job("profile", {"number": number}) for number in range(3)]
    store.finish_job(jobs[1].id, JobStatus.DONE)
    store.append_log(jobs[0].id, "x" * LOG_TAIL_CHARACTERS)
    store.append_log(jobs[0].id, "the \x00end")
    assert [job.params["number"] for job in store.jobs(limit=2)] == [2, 1]
    assert [job.params["number"] for job in store.jobs(active_only=True)] == [2, 0]
    log = store.job(jobs[0].id).log_tail
    assert len(log) == LOG_TAIL_CHARACTERS and log.endswith("xthe end")


# --------------------------------------------------------------------------------------------- failures


def test_a_full_disk_is_a_sentence_and_nothing_is_half_written(store):
    store.open_profile(make_header())
    store.add_measurements("p1", [make_measurement("before")])

    @event.listens_for(store._engine, "connect")
    def _small_disk(connection, _record):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 10}")

    store.close()
    batch = [make_measurement(f"layer {number}", sequences=(0.1,) * 100) for number in range(500)]
    with pytest.raises(StorageError, match="disk is full, so nothing was saved; free some space"):
        store.add_measurements("p1", batch)
    assert [m.layer for m in store.profile("p1").measurements] == ["before"]
    store.add_measurements("p1", batch[:1])
    assert len(store.profile("p1").measurements) == 2


def test_readers_go_on_while_another_program_writes_and_writers_say_who_blocks_them(url, store, tmp_path):
    store.open_profile(make_header())
    impatient = open_repository(url, busy_seconds=0.05)
    other = sqlite3.connect(tmp_path / "advisor.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        assert len(impatient.profiles()) == 1
        with pytest.raises(StorageError, match="Another program holds the database .*advisor.db.*try again"):
            impatient.add_measurements("p1", [make_measurement()])
    finally:
        other.execute("ROLLBACK")
        other.close()
    impatient.add_measurements("p1", [make_measurement()])
    impatient.close()


def test_a_database_that_may_only_be_read_is_read_and_refuses_to_save_in_a_sentence(store, tmp_path):
    store.save_catalogue(make_catalogue())
    reader = open_repository(f"sqlite:///file:{tmp_path / 'advisor.db'}?mode=ro&uri=true")
    assert reader.catalogue_for_source("smollm2") == make_catalogue()
    with pytest.raises(StorageError, match="cannot be written to; allow this user"):
        reader.save_plan(make_plan(), None)
    reader.close()


def test_saving_under_something_that_was_deleted_is_refused_in_a_sentence(store):
    for save in (
        lambda: store.save_plan(make_plan(), "gone"),
        lambda: store.save_evaluation(make_evaluation(), plan_id="gone"),
        lambda: store.add_measurements("gone", [make_measurement()]),
    ):
        with pytest.raises(StorageError, match="no longer stored"):
            save()
    assert [count_rows(store, table) for table in ("plans", "evaluations", "measurements")] == [0, 0, 0]


def test_an_unusable_database_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("words, and not a database " * 100)
    for address, sentence in {
        f"sqlite:///{tmp_path}/file/advisor.db": "folder .* cannot be created",
        f"sqlite:///{tmp_path}/file": "not a readable database",
        f"sqlite:///{tmp_path}": "cannot be opened",
        "not an address": "cannot be read; write it like",
        "nosuchdatabase://host/name": "No driver",
    }.items():
        with pytest.raises(StorageError, match=sentence):
            open_repository(address)


def test_no_message_shows_the_password():
    with pytest.raises(StorageError) as refusal:
        open_repository("nosuchdatabase://me:secret@host/name")
    assert "secret" not in str(refusal.value)


def test_a_document_of_another_version_is_refused_in_a_sentence(store):
    plan_id = store.save_plan(make_plan(), None)
    with store._engine.begin() as connection:
        connection.execute(text("""UPDATE plans SET document = '{"schema_version": 99}'"""))
    with pytest.raises(StorageError, match="Plan is not understood by this version"):
        store.plan(plan_id)


# ------------------------------------------------------------------------------------ opening, migrating


def test_the_migrations_make_exactly_the_tables_that_the_code_declares(store):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_head_revision_in_the_code_is_the_newest_migration(store):
    from alembic.script import ScriptDirectory

    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [HEAD_REVISION]


def test_migrations_can_be_undone_to_an_empty_database(store):
    from alembic import command

    config = alembic_config()
    with store._engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        left = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'")).scalars().all()
    assert left == ["alembic_version"]


def test_opening_an_up_to_date_database_loads_neither_torch_nor_alembic(url, store):
    code = f"import sys; from storage.engine import open_repository; open_repository({url!r}).profiles()"
    code += "; sys.exit(str(sorted({'torch', 'transformers', 'alembic', 'streamlit'} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_a_database_of_a_newer_version_is_left_alone(url, store):
    with store._engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match="another version of this program .*; update the program"):
        open_repository(url)


def test_processes_and_threads_that_start_at_once_all_open_the_same_new_database(tmp_path):
    url, signal = f"sqlite:///{tmp_path / 'folder' / 'new.db'}", tmp_path / "go"
    code = f"""
import pathlib, time
from storage.engine import open_repository
pathlib.Path({str(tmp_path)!r}, f"ready-{{time.time_ns()}}").touch()
while not pathlib.Path({str(signal)!r}).exists():
    time.sleep(0.001)
open_repository({url!r}).create_job("profile", {{}})
"""
    children = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("ready-*"))) < len(children) and time.monotonic() < deadline:
        time.sleep(0.01)
    signal.touch()
    failures = []

    def open_and_write():
        try:
            open_repository(url).create_job("profile", {})
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=open_and_write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [child.wait(timeout=30) for child in children] == [0, 0]
    assert failures == []
    assert len(open_repository(url).jobs()) == 6


def test_sqlite_is_opened_with_its_safeguards_on(store):
    with store._engine.connect() as connection:
        settings = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        ]
    assert settings == ["wal", 1, 15000]


def test_a_relative_address_means_the_same_file_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_repository("sqlite:///here.db")
    assert store.url == f"sqlite:///{tmp_path}/here.db"
    assert (tmp_path / "here.db").exists()


def test_the_address_is_taken_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVISOR_DATABASE_URL", f"sqlite:///{tmp_path}/from-environment.db")
    open_repository().close()
    assert (tmp_path / "from-environment.db").exists()


def test_times_come_back_in_utc(store):
    job = store.create_job("profile", {})
    assert job.created.utcoffset() == timedelta(0)
    assert abs((store.job(job.id).created - now()).total_seconds()) < 5
