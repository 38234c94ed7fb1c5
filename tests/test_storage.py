"""The database: nouns come back as they went in, and lists are cheap."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from advisor.errors import StorageError
from storage.engine import alembic_config, migrate
from tests import planning_cases, sample_results
from tests.stored_nouns import (
    Statements,
    count_rows,
    make_catalogue,
    make_evaluation,
    make_header,
    make_measurement,
    make_plan,
)

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


def test_estimates_can_be_looked_at_without_what_they_saw_of_every_sequence(store):
    estimated = planning_cases.fisher_profile(1)
    store.open_profile(estimated)
    seen = store.profile(estimated.id, whole=False)
    assert [(m.layer, m.format, m.kl) for m in seen.measurements] == [
        (m.layer, m.format, m.kl) for m in estimated.measurements
    ]
    assert not any(m.projections or m.delta_nll_by_sequence for m in seen.measurements)


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


possible = st.floats(-1e9, 1e9)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=possible, sequences=st.lists(possible, max_size=4).map(tuple))
def test_every_number_comes_back_exactly(store, value, sequences):
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
    evaluation = make_evaluation("plan")
    store.save_evaluation(make_evaluation("original"), plan_id=plan_id)
    store.save_evaluation(evaluation, plan_id=plan_id)
    store.save_evaluation(make_evaluation("alone"))
    assert store.plan(plan_id) == make_plan()
    assert store.plan("nothing") is None
    assert [e.variant for e in store.evaluations(plan_id)] == ["original", "plan"]
    assert store.evaluations(plan_id)[1] == evaluation
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


def test_purging_a_profile_takes_everything_that_was_made_from_it_and_nothing_else(store):
    for profile_id in ("p1", "p2"):
        store.open_profile(make_header(profile_id))
        store.add_measurements(profile_id, [make_measurement()])
        store.save_evaluation(make_evaluation(), plan_id=store.save_plan(make_plan(), profile_id))
    store.purge(store.delete("profile", "p1"))
    assert [p.id for p in store.profiles()] == ["p2"]
    counted = [count_rows(store, table) for table in ("measurements", "plans", "evaluations", "models")]
    assert counted == [1, 1, 1, 1]


def test_deleting_a_plan_takes_its_evaluations(store):
    plan_id = store.save_plan(make_plan(), None)
    store.save_evaluation(make_evaluation(), plan_id=plan_id)
    store.delete("plan", plan_id)
    assert store.plans() == [] and store.evaluations() == []


def test_plans_of_earlier_versions_say_their_formats_and_whether_they_were_refined(store):
    from alembic import command

    plain = make_plan().model_copy(update={"assignments": {"a": "int8", "b": "int4_g64", "c": "int4_g64"}})
    expected = [({"int4_g64": 2, "int8": 1}, refined) for refined in (True, False)]
    for plan in (plain, sample_results.refined(plain)):
        store.save_plan(plan, None)
    assert [(plan.formats, plan.refined) for plan in store.plans()] == expected
    config = alembic_config()
    with store._engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0005")
    migrate(store._engine)
    listed = [(plan.formats, plan.refined) for plan in store.plans()]
    assert listed == expected and list(listed[0][0]) == ["int4_g64", "int8"]  # the most first
