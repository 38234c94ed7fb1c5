"""Blind pairs and their votes: sides are fair and hidden, the sign test is scipy's, nothing is lost in the table."""

import csv
import io
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from advisor import preferences, prompts
from advisor.errors import StorageError, TextError
from advisor.types import MOST_PROMPTS
from tests import blind_cases
from tests.blind_cases import blind_test, stored, voted
from tests.stored_nouns import count_rows, make_evaluation, make_plan

MANY = tuple((f"a{n}", f"b{n}") for n in range(20))


def told(original: int, plan: int, equal: int = 0):
    votes = voted(*["original"] * original, *["plan"] * plan, *["equal"] * equal)
    pairs = [(f"a{n}", f"b{n}") for n in range(max(1, len(votes)))]
    return preferences.result(blind_test(tuple(pairs), votes))


# ------------------------------------------------------------------------------------------ the sides


def test_every_pair_that_differs_is_shown_once_and_identical_ones_never():
    test, seen = blind_test(), []
    while (pair := preferences.next_pair(test, "ann")) is not None:
        seen.append(pair.number)
        assert {pair.left, pair.right} == set(blind_cases.PAIRS[pair.number])
        vote = preferences.vote(test, "ann", pair.number, "left")
        assert vote.preferred == ("plan" if pair.left == blind_cases.PAIRS[pair.number][1] else "original")
        test = test.model_copy(update={"votes": (*test.votes, vote)})
    assert sorted(seen) == [0, 2, 3]
    assert preferences.identical(test) == [1]


@pytest.mark.parametrize("shuffle", "abcdef")
def test_who_always_takes_one_side_prefers_neither(shuffle):
    test = blind_test(MANY, shuffle=shuffle)
    votes = [preferences.vote(test, "ann", number, "left") for number in range(20)]
    assert Counter(vote.preferred for vote in votes) == {"plan": 10, "original": 10}


def test_sides_are_the_same_after_a_reload_and_others_for_other_raters_and_tests():
    def sides(shuffle, rater):
        test = blind_test(MANY, shuffle=shuffle)
        return [preferences.vote(test, rater, number, "left").plan_left for number in range(20)]

    assert sides("a", "ann") == sides("a", "ann")
    assert len({tuple(sides(shuffle, rater)) for shuffle in "ab" for rater in ("ann", "bob")}) == 4


# ------------------------------------------------------------------------------------------ the result


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5))
def test_the_sign_test_is_scipys_over_the_pairs_with_a_preference(original, plan, equal):
    found = told(original, plan, equal)
    assert (found.original, found.plan, found.equal) == (original, plan, equal)
    if not original + plan:
        assert (found.p_value, found.share) == (1.0, None)
        return
    expected = binomtest(plan, original + plan)
    assert found.p_value == expected.pvalue
    assert (found.share_low, found.share_high) == tuple(expected.proportion_ci(0.95))
    excludes_half = not found.share_low <= 0.5 <= found.share_high
    assert preferences.significant(found) == excludes_half


def test_the_p_value_is_the_sum_of_binomial_tails():
    assert told(2, 8).p_value == pytest.approx(2 * sum(math.comb(10, k) for k in range(3)) / 2**10)


def test_several_raters_of_a_pair_count_once_for_whom_more_of_them_preferred():
    votes = [
        *voted("plan", "plan", "original"),
        *voted("plan", "original", "original", rater="bob"),
        *voted("original", rater="eve"),
    ]
    found = preferences.result(blind_test(MANY, votes))
    assert (found.plan, found.equal, found.original, found.unvoted) == (1, 1, 1, 17)
    assert [(r.rater, r.original, r.plan, r.equal) for r in found.raters] == [
        ("ann", 1, 2, 0),
        ("bob", 2, 1, 0),
        ("eve", 1, 0, 0),
    ]


def test_every_prompt_is_counted_once():
    found = preferences.result(blind_test(votes=voted("plan")))
    assert (found.prompts, found.plan, found.identical, found.unvoted) == (4, 1, 1, 2)


def test_of_identical_answers_alone_nobody_is_said_to_have_judged():
    said = preferences.sentence(preferences.result(blind_test((("same", "same"),))))
    assert said.endswith("All answers are identical.") and "raters" not in said


@pytest.mark.parametrize(
    "original, plan, said",
    [
        (0, 5, "fewer than 6 such pairs cannot show a difference"),
        (0, 6, "these raters prefer the plan's answers"),
        (9, 1, "these raters prefer the original's answers"),
        (8, 7, "Nor does it show that there is none: a share of 21 % to 73 % agrees"),
        (0, 0, "nothing to test"),
    ],
)
def test_the_sentence_says_what_the_votes_show_and_what_they_do_not(original, plan, said):
    assert said in preferences.sentence(told(original, plan))


def test_the_table_has_a_row_for_every_vote_and_every_pair_without_one():
    pairs = (('say "a,b"\nand c', "ä=1"), ("same", "same"), ("x", "y"))
    votes = [*voted("plan"), *voted("equal", rater="bob")]
    rows = list(csv.DictReader(io.StringIO(preferences.to_csv(blind_test(pairs, votes)), newline="")))
    assert [tuple(row.values())[:7] for row in rows] == [
        ("Question 0?", *pairs[0], "left", "left", "plan", "ann"),
        ("Question 0?", *pairs[0], "left", "equal", "equal", "bob"),
        ("Question 1?", *pairs[1], "", "identical", "equal", ""),
        ("Question 2?", *pairs[2], "", "", "", ""),
    ]
    assert rows[0]["time"] == votes[0].created.isoformat()


# ------------------------------------------------------------------------------------------ prompts


def test_prompts_are_the_lines_of_a_text_without_empty_ones_and_repetitions():
    assert prompts.parse("\ufeffone \n\n two\r\none\n") == ("one", "two")
    assert len(set(prompts.EXAMPLES)) == len(prompts.parse("\n".join(prompts.EXAMPLES)))


def test_no_prompts_too_many_and_no_text_are_refused():
    with pytest.raises(TextError, match="at least one"):
        prompts.parse(" \n")
    with pytest.raises(TextError, match=f"at most {MOST_PROMPTS}"):
        prompts.parse("\n".join(map(str, range(MOST_PROMPTS + 1))))
    with pytest.raises(TextError, match="notes.txt is not UTF-8"):
        prompts.decoded(b"\xff\xfe", "notes.txt")


# ------------------------------------------------------------------------------------------ stored


@pytest.fixture
def plan_id(store):
    return store.save_plan(make_plan(), None)


def test_a_test_comes_back_as_it_was_stored(store, plan_id):
    test_id = stored(store, plan_id)
    votes = voted("plan", "equal")
    for vote in votes:
        store.save_vote(test_id, vote)
    test = store.blind_test(test_id)
    assert (test.request, test.answers, list(test.votes)) == (
        blind_cases.request(plan_id),
        blind_cases.answers(),
        votes,
    )
    assert test.complete and test.revealed is None
    (listed,) = store.blind_tests(plan_id)
    assert (listed.id, listed.prompts, listed.answers, listed.votes) == (test_id, 4, 8, 2)
    assert listed.model_name == "SmolLM2" and store.blind_tests("other") == []
    assert store.blind_test("gone") is None


def test_the_same_request_finds_its_test_until_the_result_is_shown(store, plan_id):
    test_id = stored(store, plan_id)
    assert store.open_blind_test(blind_cases.request(plan_id)) == test_id
    longer = blind_cases.request(plan_id).model_copy(update={"tokens": 33})
    assert store.open_blind_test(longer) != test_id
    store.reveal(test_id)
    assert store.open_blind_test(blind_cases.request(plan_id)) != test_id


def test_a_second_vote_replaces_the_first_and_the_last_one_is_taken_back(store, plan_id):
    test_id = stored(store, plan_id)
    for vote in [*voted("plan", "original"), *voted("original"), *voted("plan", rater="bob")]:
        store.save_vote(test_id, vote)
    assert [(v.rater, v.number, v.preferred) for v in store.blind_test(test_id).votes] == [
        ("ann", 1, "original"),
        ("ann", 0, "original"),
        ("bob", 0, "plan"),
    ]
    store.withdraw_vote(test_id, "ann")
    assert [(v.rater, v.number) for v in store.blind_test(test_id).votes] == [("ann", 1), ("bob", 0)]
    store.withdraw_vote(test_id, "nobody")


def test_nobody_votes_once_the_result_was_shown(store, plan_id):
    test_id = stored(store, plan_id)
    store.save_vote(test_id, voted("plan")[0])
    store.reveal(test_id)
    shown = store.blind_test(test_id).revealed
    store.reveal(test_id)
    for change in (lambda: store.save_vote(test_id, voted("plan")[0]), lambda: store.withdraw_vote(test_id, "ann")):
        with pytest.raises(StorageError, match="takes no more votes"):
            change()
    assert store.blind_test(test_id).revealed == shown and len(store.blind_test(test_id).votes) == 1


def test_purging_a_test_or_its_plan_deletes_answers_and_votes(store, plan_id):
    for delete in (lambda test_id: store.delete("blind test", test_id), lambda test_id: store.delete("plan", plan_id)):
        test_id = stored(store, plan_id)
        store.save_vote(test_id, voted("plan")[0])
        store.purge(delete(test_id))
        assert [count_rows(store, table) for table in ("blind_tests", "answers", "votes")] == [0, 0, 0]


def test_a_plan_is_found_by_what_it_says(store, plan_id):
    assert store.find_plan(make_plan()) == plan_id
    assert store.find_plan(make_plan().model_copy(update={"assignments": {}})) is None


def test_what_the_previous_schema_held_is_there_after_the_migration(store, plan_id):
    from alembic import command

    from storage.engine import alembic_config, migrate

    store.save_evaluation(make_evaluation(), plan_id)
    config = alembic_config()
    with store._engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
    migrate(store._engine)
    assert store.plan(plan_id) == make_plan() and len(store.evaluations(plan_id)) == 1
    assert store.blind_test(stored(store, plan_id)).complete
