"""The plans that one gets without an advisor: what every plan of ours is held against.

They ignore the budget, the locks and the choice of formats, but not what device and engine can do: a group that cannot
have its format takes the next larger one.
"""

from __future__ import annotations

from collections.abc import Iterable

from advisor.knowledge import find_format, perplexity_marks
from advisor.planner.candidates import prepare
from advisor.planner.case import Case, Option
from advisor.planner.planning import assemble
from advisor.planner.prediction import predict
from advisor.planner.reasons import explain_simple
from advisor.types import Format, LayerGroup, Plan, PlanRequest, Role, SensitivityProfile

ROLE_RULE, STRATEGY = "role rule", "guide's strategy"

_MLP = (Role.MLP_GATE_UP, Role.MLP_DOWN, Role.EXPERT)
_RAISED = (Role.EMBEDDING, Role.LM_HEAD, Role.ATTENTION_OUTPUT)

Wanted = tuple[Format, ...]  # one a group
Choice = tuple[Option, ...]


def simple_plans(
    profile: SensitivityProfile, request: PlanRequest, formats: Iterable[str] | None = None
) -> dict[str, Plan]:
    """The simple plans that can be had, by name.

    `uniform <format>`: every decided layer in it, for each of `formats`, or for each that was measured.
    `role rule`: the guide's rule of thumb, MLPs and experts at 4 bits, all else at 8.
    `guide's strategy`: 4 bits everywhere; where that is predicted to cost more than is accepted (10 % of perplexity),
    embeddings, LM head and attention outputs at 8.

    Of several measured formats with these bits the rules take the one that stores the fewest bytes. Engines that hold
    one quantized format have uniform plans only.

    Raises:
        PlanError, KnowledgeError: as `candidates.prepare`.
    """
    case = prepare(profile, _without_wishes(request))
    plans = {}
    for name, wanted in _wanted(case, formats).items():
        chosen = _nearest_choice(case, wanted)
        if chosen is not None:
            plans[name] = assemble(case, chosen, explain_simple(case, chosen, wanted, _why(name)), 0.0, name)
    return plans


def simple_choices(profile: SensitivityProfile, request: PlanRequest, wished: Case | None = None) -> dict[str, Choice]:
    """The options of the same plans, one a group, without predictions and reasons.

    Args:
        wished: the case of the request, which is theirs too where there are no wishes.
    """
    free = _without_wishes(request)
    case = wished if wished is not None and wished.request == free else prepare(profile, free)
    found = {name: _nearest_choice(case, wanted) for name, wanted in _wanted(case, None).items()}
    return {name: chosen for name, chosen in found.items() if chosen is not None}


def _without_wishes(request: PlanRequest) -> PlanRequest:
    floors = "off" if request.role_floors == "off" else "advise"
    return request.model_copy(update={"locks": {}, "excluded": (), "formats": (), "role_floors": floors})


def _wanted(case: Case, formats: Iterable[str] | None) -> dict[str, Wanted]:
    uniform = [fmt.name for fmt in case.formats] if formats is None else formats
    found = {f"uniform {name}": (find_format(name),) * len(case.groups) for name in uniform}
    four, eight = _smallest_of_bits(case, 4), _smallest_of_bits(case, 8)
    if four is not None and eight is not None and not case.context.engine.one_quantized_format:
        found[ROLE_RULE] = tuple(four if group.role in _MLP else eight for group in case.groups)
        found[STRATEGY] = _strategy(case, four, eight)
    return found


def _strategy(case: Case, four: Format, eight: Format) -> Wanted:
    low = (four,) * len(case.groups)
    rise = predict(case.profile, case.assignments(_nearest_choice(case, low))).delta_ppl_pct
    if rise <= perplexity_marks().limit.value:
        return low
    return tuple(eight if group.role in _RAISED else four for group in case.groups)


def _why(name: str) -> str:
    return {ROLE_RULE: "the guide's rule for its role", STRATEGY: "the guide's strategy"}.get(
        name, "every layer has it in this comparison"
    )


def _smallest_of_bits(case: Case, bits: int) -> Format | None:
    """The measured integer format of these bits that takes the fewest bytes over all groups, weight-only if equal."""

    def size(fmt: Format) -> tuple[int, bool]:
        cost = sum(option.cost for option in _nearest_choice(case, (fmt,) * len(case.groups)))
        return cost, fmt.quantizes_activations

    fitting = [f for f in case.formats if f.bits == bits and f.kind == "integer" and _can_be_had(case, f)]
    return min(fitting, key=size, default=None)


def _can_be_had(case: Case, fmt: Format) -> bool:
    return any(option.format.name == fmt.name for options in case.options for option in options)


def _nearest_choice(case: Case, wanted: Wanted) -> Choice | None:
    """What each group can have of what is wanted; None when no group has any of it."""
    chosen = tuple(
        _nearest(case, group, options, wish)
        for group, options, wish in zip(case.groups, case.options, wanted, strict=True)
    )
    return chosen if set(wanted) & {option.format for option in chosen} else None


def _nearest(case: Case, group: LayerGroup, options: tuple[Option, ...], fmt: Format) -> Option:
    """The option in `fmt`, else the cheapest one that is no smaller, else the largest."""
    if case.context.engine.one_quantized_format:
        options = tuple(option for option in options if option.format in (fmt, case.original))
    size = sum(case.cost(layer, fmt) for layer in group.layers)
    exact = [option for option in options if option.format.name == fmt.name]
    larger = sorted((o for o in options if o.cost >= size), key=lambda o: o.cost)
    return next(iter([*exact, *larger]), max(options, key=lambda o: o.cost))
