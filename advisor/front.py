"""What is possible before a limit is chosen: the range of sizes, and the Pareto front of size against loss. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from advisor.candidates import Case, Option, prepare
from advisor.formats.table import packed_bytes
from advisor.memory import stored_bytes
from advisor.planning import assignments_of, chosen_options, solver_candidates
from advisor.prediction import Predictor
from advisor.simple_plans import simple_choices
from advisor.solver import Solution, solve_min_loss, supported_solutions
from advisor.types import FeasibleRange, Format, Front, FrontPoint, LayerGroup, PlanRequest, SensitivityProfile

POINTS = 16
TIME_LIMIT_S = 6.0


def feasible_range(profile: SensitivityProfile, request: PlanRequest) -> FeasibleRange:
    """The smallest and the most precise plan that rules, locks and measurements leave, whatever the request's limit.

    Raises PlanError and KnowledgeError like `make_plan`.
    """
    case = prepare(profile, request)
    measure = _Measure(case)
    supported = list(supported_solutions(solver_candidates(case)))
    smallest, largest = (measure.point(solution) for solution in (supported[0], supported[-1]))
    return FeasibleRange(smallest=smallest, largest=largest, limit_bytes=case.limit_bytes)


def pareto_front(
    profile: SensitivityProfile,
    request: PlanRequest,
    points: int = POINTS,
    most: int | None = None,
    time_limit: float = TIME_LIMIT_S,
) -> Front:
    """The least loss at every size, from the smallest plan to the most precise one; the request's limit only marks it.

    All plans that are best at some price per byte come from one sweep. Between them, plans for `points` evenly spaced
    sizes are solved for, exactly or with the gap to what could still be better; they share `time_limit` seconds. Where
    there are more than `most`, those nearest to evenly spaced sizes are kept: predicting takes most of the time.

    Raises PlanError and KnowledgeError like `make_plan`.
    """
    case = prepare(profile, request)
    groups = solver_candidates(case)
    supported = list(supported_solutions(groups))
    first, last = supported[0].cost, supported[-1].cost
    sizes = {first + (last - first) * number // (points + 1) for number in range(1, points + 1)}
    solved = [solve_min_loss(groups, size, time_limit / len(sizes)) for size in sorted(sizes)]
    measure = _Measure(case)
    return Front(
        model=case.catalogue.model,
        request=request,
        points=tuple(measure.point(solution) for solution in _spaced(_undominated([*supported, *solved]), most)),
        simple={name: measure.point_of(chosen) for name, chosen in simple_choices(profile, request).items()},
        limit_bytes=case.limit_bytes,
    )


def _undominated(solutions: Iterable[Solution]) -> list[Solution]:
    """Smallest first, without those that another one of no greater size equals or beats."""
    kept: list[Solution] = []
    for solution in sorted(solutions, key=lambda s: (s.cost, s.loss)):
        if not kept or solution.loss < kept[-1].loss:
            kept.append(solution)
    return kept


def _spaced(solutions: list[Solution], most: int | None) -> list[Solution]:
    """Both ends, and of those between them the nearest to evenly spaced costs: at most `most`, 2 or more."""
    if most is None or len(solutions) <= most:
        return solutions
    first, last = solutions[0].cost, solutions[-1].cost
    wanted = [first + (last - first) * number / (most - 1) for number in range(most)]
    near = [min(range(len(solutions)), key=lambda index: abs(solutions[index].cost - cost)) for cost in wanted]
    return [solutions[index] for index in sorted(set(near))]


class _Measure:
    """Size, prediction and speed of any choice of options; what they have in common is worked out once."""

    def __init__(self, case: Case):
        self._case = case
        self._predict = Predictor(case.profile)
        decided = {layer.name for layer in case.decided}
        self._rest = sum(packed_bytes(case.original, one) for one in case.catalogue.layers if one.name not in decided)
        self._parameters = sum(layer.parameters for layer in case.decided)
        self._sizes: dict[tuple[str, str], tuple[int, int]] = {}

    def point(self, solution: Solution) -> FrontPoint:
        return self.point_of(chosen_options(self._case, solution), solution.gap)

    def point_of(self, chosen: tuple[Option, ...], gap: float = 0.0) -> FrontPoint:
        case = self._case
        sizes = [self._size(group, option.format) for group, option in zip(case.groups, chosen, strict=True)]
        seconds = case.fixed_seconds + math.fsum([option.seconds for option in chosen])
        return FrontPoint(
            bytes=case.fixed_bytes + sum([option.cost for option in chosen]),
            weights_bytes=self._rest + sum([stored for stored, _ in sizes]),
            decided_bits=8 * sum([own for _, own in sizes]) / self._parameters,
            loss=math.fsum([option.loss for option in chosen]),
            predicted=self._predict(assignments_of(case, chosen)),
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
