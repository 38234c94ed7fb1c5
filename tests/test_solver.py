"""The solver against every choice there is, on instances small enough to try them all."""

import itertools
import math
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.errors import InfeasibleBudget
from advisor.planner import solver
from advisor.planner.measures import Candidate
from advisor.planner.solver import supported_solutions

losses = st.one_of(st.just(0.0), st.sampled_from([1.0, 2.0, 3.0]), st.floats(1e-7, 10.0))
costs = st.one_of(st.integers(1, 6), st.integers(1, 10**9))
# Sums of floats cannot tell side losses apart that differ by less than their rounding.
side_losses = st.floats(-0.5, 5.0).map(lambda value: round(value, 9))
times = st.one_of(st.integers(1, 5), st.integers(1, 10**6))
candidates = st.builds(
    lambda loss, cost, side, time: Candidate("", loss, cost, side, time), losses, costs, side_losses, times
)
instances = st.lists(st.lists(candidates, min_size=1, max_size=4), min_size=1, max_size=5)
shares = st.floats(0.0, 1.0)

ROOT = Path(__file__).resolve().parent.parent
few = settings(max_examples=60, deadline=None)

# What is exact is exact however slow the machine: nothing here may end because time is up.
solve_min_loss = partial(solver.solve_min_loss, time_limit=120)
solve_min_cost = partial(solver.solve_min_cost, time_limit=120)
solve_min_time = partial(solver.solve_min_time, time_limit=120)


def every_choice(groups):
    """(loss, cost, side loss) of each possible choice."""
    for choice in itertools.product(*groups):
        yield (
            math.fsum(c.loss for c in choice),
            sum(c.cost for c in choice),
            math.fsum(c.side_loss for c in choice),
        )


def limit_between(groups, share):
    least = sum(min(c.cost for c in group) for group in groups)
    most = sum(max(c.cost for c in group) for group in groups)
    return least + int(share * (most - least))


def totals(groups, solution):
    chosen = [group[index] for group, index in zip(groups, solution.choice, strict=True)]
    return math.fsum(c.loss for c in chosen), sum(c.cost for c in chosen), math.fsum(c.side_loss for c in chosen)


@given(instances, shares)
@few
def test_the_least_loss_within_a_limit_equals_trying_every_choice(groups, share):
    limit = limit_between(groups, share)
    solution = solve_min_loss(groups, limit)
    best = min(loss for loss, cost, _ in every_choice(groups) if cost <= limit)
    assert solution.loss == pytest.approx(best, rel=1e-9, abs=1e-15)
    assert solution.cost <= limit
    assert (solution.loss, solution.cost) == totals(groups, solution)[:2]
    assert solution.gap == 0.0


@given(instances, shares)
@few
def test_of_equal_losses_the_one_of_least_bytes_is_taken(groups, share):
    limit = limit_between(groups, share)
    solution = solve_min_loss(groups, limit)
    cheapest = min(cost for loss, cost, _ in every_choice(groups) if loss <= solution.loss and cost <= limit)
    assert solution.cost == cheapest


@given(instances, shares)
@few
def test_the_least_cost_within_a_loss_equals_trying_every_choice(groups, share):
    everything = list(every_choice(groups))
    least, most = min(loss for loss, *_ in everything), max(loss for loss, *_ in everything)
    max_loss = least + share * (most - least)
    solution = solve_min_cost(groups, max_loss)
    assert solution.cost == min(cost for loss, cost, _ in everything if loss <= max_loss)
    assert solution.loss <= max_loss
    assert solution.loss == pytest.approx(
        min(loss for loss, cost, _ in everything if cost == solution.cost and loss <= max_loss), rel=1e-9, abs=1e-15
    )


@given(instances, shares, shares)
@few
def test_two_loss_limits_hold_at_once_at_the_least_cost(groups, share, side_share):
    everything = list(every_choice(groups))
    max_loss, max_side = [
        min(values) + part * (max(values) - min(values))
        for values, part in (([e[0] for e in everything], share), ([e[2] for e in everything], side_share))
    ]
    within = [cost for loss, cost, side in everything if loss <= max_loss and side <= max_side]
    if not within:
        with pytest.raises(InfeasibleBudget):
            solve_min_cost(groups, max_loss, max_side)
        return
    solution = solve_min_cost(groups, max_loss, max_side)
    loss, cost, side = totals(groups, solution)
    assert cost == min(within)
    assert loss <= max_loss and side <= max_side


def feasible(groups, limit, max_loss, max_side):
    """Every choice, as candidates, that keeps all three limits."""
    return [
        choice
        for choice in itertools.product(*groups)
        if sum(c.cost for c in choice) <= limit
        and math.fsum(c.loss for c in choice) <= max_loss
        and math.fsum(c.side_loss for c in choice) <= max_side
    ]


def limits_between(groups, shares):
    """(cost, loss, side loss): each so far between the least and the most that there is."""
    everything = list(every_choice(groups))
    columns = [[e[1] for e in everything], [e[0] for e in everything], [e[2] for e in everything]]
    limits = [min(values) + share * (max(values) - min(values)) for values, share in zip(columns, shares, strict=True)]
    return int(limits[0]), *limits[1:]


@given(instances, st.tuples(shares, shares, shares))
@few
def test_the_least_time_within_cost_and_losses_equals_trying_every_choice(groups, parts):
    limits = limits_between(groups, parts)
    within = feasible(groups, *limits)
    if not within:
        with pytest.raises(InfeasibleBudget):
            solve_min_time(groups, *limits)
        return
    solution = solve_min_time(groups, *limits)
    chosen = tuple(group[index] for group, index in zip(groups, solution.choice, strict=True))
    least = min(sum(c.time for c in choice) for choice in within)
    assert chosen in within
    assert (solution.time, solution.gap) == (least, 0.0)
    ties = [choice for choice in within if sum(c.time for c in choice) == least]
    assert solution.loss == pytest.approx(min(math.fsum(c.loss for c in tie) for tie in ties), rel=1e-9, abs=1e-15)


@given(instances, st.tuples(shares, shares, shares), st.tuples(shares, shares, shares))
@few
def test_looser_limits_never_take_more_time(groups, one, other):
    tight = limits_between(groups, tuple(map(min, one, other)))
    loose = limits_between(groups, tuple(map(max, one, other)))
    if feasible(groups, *tight):
        assert solve_min_time(groups, *loose).time <= solve_min_time(groups, *tight).time


@given(instances)
@few
def test_a_sweep_finds_every_choice_that_is_best_at_some_price(groups):
    sweep = list(supported_solutions(groups))
    everything = [(cost, loss) for loss, cost, _ in every_choice(groups)]
    assert [s.cost for s in sweep] == sorted({s.cost for s in sweep})
    assert sweep[0].cost == min(cost for cost, _ in everything)
    assert sweep[-1].loss == pytest.approx(min(loss for _, loss in everything), rel=1e-9, abs=1e-15)
    for before, after in itertools.pairwise(sweep):
        # No choice lies below the line between neighbours, so each has the least loss at its cost.
        rate = (before.loss - after.loss) / (after.cost - before.cost)
        least = min(loss + rate * cost for cost, loss in everything)
        for one in (before, after):
            assert one.loss + rate * one.cost == pytest.approx(least, rel=1e-9, abs=1e-12)


@given(instances)
@few
def test_each_choice_of_a_sweep_is_what_its_cost_as_a_limit_gives(groups):
    for found in supported_solutions(groups):
        solved = solve_min_loss(groups, found.cost)
        assert solved.loss == pytest.approx(found.loss, rel=1e-9, abs=1e-15)
        assert totals(groups, found)[:2] == (found.loss, found.cost)


def test_without_time_to_search_the_limits_still_hold_and_the_gap_covers_the_optimum():
    chance = random.Random(7)
    groups = [
        [Candidate("", chance.random() * 4.0**-size, chance.randint(900, 1100) * (size + 1)) for size in range(4)]
        for _ in range(60)
    ]
    limit = limit_between(groups, 0.3)
    quick, exact = solve_min_loss(groups, limit, time_limit=0), solve_min_loss(groups, limit)
    assert quick.cost <= limit and exact.gap == 0.0 < quick.gap < 0.05
    assert quick.loss * (1 - quick.gap) <= exact.loss * (1 + 1e-9) <= quick.loss * (1 + 2e-9)


def least_loss_by_cost(groups):
    """The least loss for each exact total cost, by dynamic programming over all groups."""
    best = {0: 0.0}
    for group in groups:
        longer = {}
        for (cost, loss), candidate in itertools.product(best.items(), group):
            total = cost + candidate.cost
            longer[total] = min(longer.get(total, math.inf), loss + candidate.loss)
        best = longer
    return best


@pytest.mark.parametrize("seed", range(12))
def test_problems_too_large_to_try_out_agree_with_dynamic_programming(seed):
    chance = random.Random(seed)
    # Groups of one cost pattern and like losses leave many near-optimal choices, the hard case of a knapsack.
    groups = [
        [
            Candidate("", chance.random() * 2.0**-size, size * chance.randint(3, 9) + chance.randint(0, 5))
            for size in range(5)
        ]
        for _ in range(25)
    ]
    table = least_loss_by_cost(groups)
    for share in (0.05, 0.2, 0.5):
        limit = limit_between(groups, share)
        solution = solve_min_loss(groups, limit)
        assert solution.loss == pytest.approx(min(loss for cost, loss in table.items() if cost <= limit), rel=1e-9)
        allowed = solution.loss * 1.05
        reverse = solve_min_cost(groups, allowed)
        assert reverse.cost == min(cost for cost, loss in table.items() if loss <= allowed)
        assert solution.gap == reverse.gap == 0.0


@given(instances, shares, shares)
@few
def test_a_tighter_budget_never_adds_bytes_and_a_looser_one_never_adds_loss(groups, one, other):
    tight, loose = sorted([limit_between(groups, one), limit_between(groups, other)])
    within_tight, within_loose = solve_min_loss(groups, tight), solve_min_loss(groups, loose)
    assert within_tight.cost <= within_loose.cost
    assert within_loose.loss <= within_tight.loss * (1 + 1e-9)


@given(instances)
@few
def test_below_the_smallest_choice_the_refusal_says_how_small_it_gets(groups):
    smallest = sum(min(c.cost for c in group) for group in groups)
    assert solve_min_loss(groups, smallest).cost == smallest
    with pytest.raises(InfeasibleBudget) as refusal:
        solve_min_loss(groups, smallest - 1)
    assert refusal.value.smallest_bytes == smallest
    assert refusal.value.limit_bytes == smallest - 1
    assert f"{smallest:,}" in str(refusal.value)


def test_a_loss_below_the_least_possible_is_refused():
    with pytest.raises(InfeasibleBudget, match=r"least possible loss is 0\.5"):
        solve_min_cost([[Candidate("a", 0.5, 1)], [Candidate("b", 0.0, 1)]], max_loss=0.4)


def test_tiny_and_large_losses_are_weighed_in_one_problem():
    # Next to a loss of 10 that no budget can avoid, the choice among losses of 1e-7 must still be the best one.
    unavoidable = [Candidate("only", 10.0, 5_000_000_000)]
    small = [[Candidate("high", 0.0, 3_000_001), Candidate("low", 1e-7 * (k + 1), 2_000_001)] for k in range(20)]
    groups = [unavoidable, *small]
    limit = 5_000_000_000 + 20 * 2_000_001 + 3 * 1_000_000
    solution = solve_min_loss(groups, limit)
    assert [small[k][i].key for k, i in enumerate(solution.choice[1:])] == ["low"] * 17 + ["high"] * 3


def test_a_group_without_candidates_is_an_error_of_the_caller():
    with pytest.raises(ValueError, match="at least one candidate"):
        solve_min_loss([[]], 10)


def test_what_the_solver_prints_can_be_kept_off_stdout():
    # The command line's JSON goes there, and HiGHS prints from C on some instances, of which this is one.
    program = """
import random
from advisor.quiet import silenced_stdout
from advisor.planner.measures import Candidate
from advisor.planner.solver import solve_min_loss
draw = random.Random(1)
bits = [16, 8.25, 6.5, 4.5, 4.25, 4.125, 3.3, 2.28]
groups = []
for _ in range(560):
    weights, scale = draw.choice([331776, 110592, 884736]), 2.718 ** draw.gauss(-6, 2)
    losses = [0.0] + [scale * 4.0 ** (4 - b) * 2.718 ** draw.gauss(0, 0.2) for b in bits[1:]]
    groups.append([Candidate("", loss, int(weights * b / 8)) for loss, b in zip(losses, bits)])
least = sum(min(c.cost for c in g) for g in groups)
most = sum(max(c.cost for c in g) for g in groups)
with silenced_stdout():
    solve_min_loss(groups, least + int(0.15 * (most - least)))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout == ""
