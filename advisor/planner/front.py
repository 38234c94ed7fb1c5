"""What is possible before a limit is chosen: the range of sizes, and the Pareto front of size against loss. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from advisor.formats.table import packed_bytes
from advisor.memory import stored_bytes
from advisor.planner.candidates import parts, prepare
from advisor.planner.case import Case, Option
from advisor.planner.choosing import bounded_loss, chosen_options
from advisor.planner.pool import pool_of, solver_candidates
from advisor.planner.prediction import Loss, predictor_of
from advisor.planner.simple_plans import simple_choices
from advisor.planner.solver import Solution, solve_min_loss, supported_solutions
from advisor.types import (
    FeasibleRange,
    Format,
    Front,
    FrontPoint,
    LayerGroup,
    PlanRequest,
    SensitivityProfile,
    relative_change,
)

POINTS = 16
TIME_LIMIT_S = 6.0


def feasible_range(profile: SensitivityProfile, request: PlanRequest) -> FeasibleRange:
    """The smallest and the most precise plan that rules, locks and measurements leave, whatever the request's limit.

    Raises PlanError and KnowledgeError like `make_plan`.
    """
    case = prepare(profile, request)
    measure = _Measure(case)
    supported = [one for part in parts(case) for one in _supported(part)]
    smallest = min(supported, key=lambda one: (one.cost, one.rank))
    largest = min(supported, key=lambda one: (one.rank, one.cost))
    return FeasibleRange(smallest=measure.point(smallest), largest=measure.point(largest), limit_bytes=case.limit_bytes)


def pareto_front(
    profile: SensitivityProfile,
    request: PlanRequest,
    points: int = POINTS,
    most: int | None = None,
    time_limit: float = TIME_LIMIT_S,
) -> Front:
    """The least loss at every size, from the smallest plan to the most precise one; the request's limit only marks it.

    All plans that are best at some price per byte come from one sweep. Of estimates, those are drawn that no smaller
    one is predicted to equal: what `make_plan` finds at each size. Where every layer was measured by itself, plans for
    `points` evenly spaced sizes between them are solved for, exactly or with the gap to what could still be better;
    they share `time_limit` seconds. Where there are more than `most`, those nearest to evenly spaced sizes are kept.

    Raises PlanError and KnowledgeError like `make_plan`.
    """
    case = prepare(profile, request)
    possible, found = parts(case), []
    for part in possible:
        found += _estimated(part) if part.has_estimates else _exact(part, points, time_limit / len(possible))
    measure, simple = _Measure(case), simple_choices(profile, request, case)
    return Front(
        model=case.catalogue.model,
        request=request,
        points=tuple(measure.point(one) for one in _spaced(_undominated(found), most)),
        simple={name: measure.point_of(chosen) for name, chosen in simple.items()},
        against_wishes=tuple(name for name, chosen in simple.items() if not _keeps_wishes(case, chosen)),
        limit_bytes=case.limit_bytes,
    )


def _keeps_wishes(case: Case, chosen: Iterable[Option]) -> bool:
    """Whether each group of the case may have the format that a plan made without its wishes gives it."""
    return all(
        option.format.name in {allowed.format.name for allowed in options}
        for option, options in zip(chosen, case.options, strict=True)
    )


class _Sized(NamedTuple):
    """A solution's bytes, what it is compared by, its case, and its predicted loss where that is known already.

    Its options are only picked where it is drawn.
    """

    cost: int
    rank: tuple[float, ...]
    solution: Solution
    case: Case
    loss: Loss | None = None


def _estimated(case: Case) -> list[_Sized]:
    """Of all that least loss within a limit is chosen from, what no smaller one equals or beats."""
    pool, found, best = pool_of(case), [], (math.inf,)
    for number in sorted(range(len(pool.ranks)), key=lambda number: (pool.costs[number], pool.ranks[number])):
        *rank, cost = pool.ranks[number]
        if tuple(rank) < best:
            best = tuple(rank)
            found.append(_Sized(cost, best, pool.solution(number), case, pool.losses[number]))
    return found


def _exact(case: Case, points: int, time_limit: float) -> list[_Sized]:
    """All that are best at some price per byte, and those of evenly spaced sizes between them."""
    groups = solver_candidates(case)
    supported = _supported(case)
    first, last = supported[0].cost, supported[-1].cost
    sizes = sorted({first + (last - first) * number // (points + 1) for number in range(1, points + 1)})
    return [*supported, *(_sized(case, solve_min_loss(groups, size, time_limit / len(sizes))) for size in sizes)]


def _supported(case: Case) -> list[_Sized]:
    """All that are best at some price per byte, smallest first."""
    return [_sized(case, solution) for solution in supported_solutions(solver_candidates(case))]


def _sized(case: Case, solution: Solution) -> _Sized:
    return _Sized(solution.cost, (solution.loss,), solution, case)


def _undominated(found: Iterable[_Sized]) -> list[_Sized]:
    """Smallest first, without those that another one of no greater size equals or beats."""
    kept: list[_Sized] = []
    for one in sorted(found, key=lambda one: (one.cost, one.rank)):
        if not kept or one.rank < kept[-1].rank:
            kept.append(one)
    return kept


def _spaced(found: list[_Sized], most: int | None) -> list[_Sized]:
    """Both ends, and of those between them the nearest to evenly spaced costs: at most `most`, 2 or more."""
    if most is None or len(found) <= most:
        return found
    first, last = found[0].cost, found[-1].cost
    wanted = [first + (last - first) * number / (most - 1) for number in range(most)]
    near = [min(range(len(found)), key=lambda index: abs(found[index].cost - cost)) for cost in wanted]
    return [found[index] for index in sorted(set(near))]


class _Measure:
    """Size, prediction and speed of any choice of options; what they have in common is worked out once."""

    def __init__(self, case: Case):
        self._case = case
        self._predictor = predictor_of(case.profile)
        decided = sum(packed_bytes(case.original, layer) for layer in case.decided)
        self._rest = case.unquantized.model_weights_bytes - decided
        self._parameters = sum(layer.parameters for layer in case.decided)
        self._sizes: dict[tuple[str, str], tuple[int, int]] = {}

    def point(self, one: _Sized) -> FrontPoint:
        return self.point_of(chosen_options(one.case, one.solution), one.solution.gap, one.loss)

    def point_of(self, chosen: tuple[Option, ...], gap: float = 0.0, loss: Loss | None = None) -> FrontPoint:
        case = self._case
        sizes = [self._size(group, option.format) for group, option in zip(case.groups, chosen, strict=True)]
        seconds = case.fixed_seconds + math.fsum([option.seconds for option in chosen])
        loss = loss or self._predictor.loss(case.assignments(chosen))
        return FrontPoint(
            bytes=case.fixed_bytes + sum([option.cost for option in chosen]),
            weights_bytes=self._rest + sum([stored for stored, _ in sizes]),
            decided_bits=8 * sum([own for _, own in sizes]) / self._parameters,
            loss=math.fsum([option.loss for option in chosen]),
            predicted=self._predictor.of_loss(loss),
            least_tolerance=max(relative_change(bounded_loss(case, loss)), 0.0),
            tokens_per_s=case.request.budget.sequences / seconds if seconds else None,
            gap=gap,
        )

    def _size(self, group: LayerGroup, fmt: Format) -> tuple[int, int]:
        """Bytes as the engine stores them, and in the format's own layout."""
        key = group.name, fmt.name
        if key not in self._sizes:
            engine = self._case.context.engine
            own = sum(packed_bytes(fmt, layer) for layer in group.layers)
            known = fmt.name in engine.formats
            stored = sum(stored_bytes(engine, fmt, layer) for layer in group.layers) if known else own
            self._sizes[key] = stored, own
        return self._sizes[key]
