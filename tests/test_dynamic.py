"""The search of what a relaxation left open: the same as trying every choice, or told to be incomplete."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from advisor import dynamic
from advisor.dynamic import Open, best_choices
from advisor.knapsack import Table
from advisor.solver import solve_min_cost, solve_min_loss, solve_min_time
from benchmarks.solver import instance


def problem(seed: int, limits: int, sizes=(1, 3, 2, 4, 1, 3, 2)) -> tuple[Open, np.ndarray, np.ndarray]:
    """A random one with its slacks, and all of its choices that keep them."""
    chance = np.random.default_rng(seed)
    ends = np.cumsum(sizes)
    groups = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    count = ends[-1]
    found = Open(
        groups, chance.random(count), chance.random(count), chance.integers(0, 50, (limits, count)).astype(float)
    )
    least, most = (sum(pick(found.used[:, group], axis=1) for group in groups) for pick in (np.min, np.max))
    slacks = least + 0.5 * (most - least)
    choices = np.array(list(product(*groups)))
    return found, slacks, choices[np.all(found.used[:, choices].sum(2) <= slacks[:, None], axis=0)]


@pytest.mark.parametrize("limits", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_the_first_choice_is_the_best_of_all(seed, limits):
    found, slacks, choices = problem(seed, limits)
    best = best_choices(found, slacks, np.inf)
    assert best.complete
    first = next(best.choices)
    assert found.objective[first].sum() == pytest.approx(found.objective[choices].sum(1).min())
    assert np.all(found.used[:, first].sum(1) <= slacks)


def test_no_choice_comes_back_where_the_bound_or_a_limit_leaves_none():
    found, slacks, choices = problem(0, 2)
    least = found.reduced[choices].sum(1).min()
    assert list(best_choices(found, slacks, 0.99 * least).choices) == []
    assert list(best_choices(found, 0 * slacks - 1, np.inf).choices) == []


def test_a_narrow_search_says_that_it_passed_choices_over(monkeypatch):
    found, slacks, _ = problem(1, 2)
    narrow = best_choices(found, slacks, np.inf, width=2)
    assert not narrow.complete and np.all(found.used[:, next(narrow.choices)].sum(1) <= slacks)
    monkeypatch.setattr(dynamic, "_MOST_COMPARED", 3)
    assert best_choices(found, slacks, np.inf) is None


@pytest.mark.parametrize("seed", range(3))
def test_branching_and_cutting_finds_the_same(seed, monkeypatch):
    groups = instance(40, 4, seed)
    limit = sum(group[1].cost for group in groups)
    loss = 1.3 * solve_min_loss(groups, limit).loss

    def solved():
        one, other = solve_min_loss(groups, limit), solve_min_cost(groups, loss, loss)
        third = solve_min_time(groups, limit, loss, loss)
        assert one.gap == other.gap == third.gap == 0.0
        return one.loss, other.cost, third.time

    found = solved()
    monkeypatch.setattr(Table, "_enumerated", lambda self, a, relaxed, known, limits, step: (known, False))
    assert solved() == pytest.approx(found, rel=1e-12)
