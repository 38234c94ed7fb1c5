"""Turns a sensitivity profile and a request into the planning problem that they pose: between rules and solver."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass, replace

from advisor.errors import PlanError
from advisor.knowledge import find_format
from advisor.memory import refuse_impossible_load
from advisor.planner.case import Case, Known, Option
from advisor.planner.groups import decision_groups
from advisor.planner.kept import kept
from advisor.planner.layer_losses import layer_losses
from advisor.planner.rule_context import context_for
from advisor.planner.rules import refuse_impossible_locks
from advisor.types import LayerGroup, PlanRequest, SensitivityProfile
from advisor.units import plural

_KEPT = 16  # problems of one profile


def prepare(profile: SensitivityProfile, request: PlanRequest) -> Case:
    """The planning problem of a request.

    Decided are the groups that device, engine and measurements leave at least one quantized format: the same layers
    whatever the budget, the locks and the role floors, so that plans for one device and engine can be compared.

    Raises:
        KnowledgeError: the device, the engine or a format is unknown.
        PlanError: the load is more than model or device can carry, a wanted format or lock cannot be had, or nothing
            is left to decide.
    """
    context = context_for(profile.catalogue, request)
    refuse_impossible_load(profile.catalogue, context.hardware, request.budget)
    _refuse_unmeasured_formats(profile, request)
    formats = tuple(find_format(name) for name in profile.formats)
    bare = Case(profile, context, layer_losses(profile).scores, formats, (), ())
    problems, key = _problems(profile), _but_its_limits(request)
    problem = problems.get(key) or _posed(bare)
    problems[key] = problem
    problems.move_to_end(key)
    if len(problems) > _KEPT:
        problems.popitem(last=False)
    return replace(bare, groups=problem.groups, options=problem.options, _known=problem.known)


@dataclass(frozen=True)
class _Problem:
    """What a case says whatever its limits, without the profile: kept while the profile is, as sliders move often."""

    groups: tuple[LayerGroup, ...]
    options: tuple[tuple[Option, ...], ...]
    known: Known


@kept
def _problems(profile: SensitivityProfile) -> OrderedDict[tuple[object, ...], _Problem]:
    return OrderedDict()


def _but_its_limits(request: PlanRequest) -> tuple[object, ...]:
    """All of a request but the numbers of its limits: by which of them bytes are counted belongs to it."""
    budget = request.budget
    counted = budget.weight_bits is not None, budget.weight_bytes is not None, budget.vram_bytes is not None
    limits = {"weight_bits", "weight_bytes", "vram_bytes", "max_ppl_increase"}
    return request.model_dump_json(exclude={"budget": limits}), counted


def _posed(bare: Case) -> _Problem:
    profile, context = bare.profile, bare.context
    refuse_impossible_locks(context)
    everything = decision_groups(
        profile.catalogue, context.engine, (layer.name for layer in profile.catalogue.quantizable)
    )
    groups = tuple(group for group in everything if bare.can_be_decided(group))
    if not groups:
        raise PlanError(
            f"None of the formats measured ({', '.join(profile.formats)}) can be used by {context.engine.label} on "
            f"{context.hardware.label} for any measured layer; measure other formats or choose another engine."
        )
    _refuse_unmeasured_locks(bare)
    options = tuple(bare.group_options(group) for group in groups)
    for group, left in zip(groups, options, strict=True):
        if not left:
            raise PlanError(f"No usable format is left for '{group.name}'; change the lock that holds it.")
    return _Problem(groups, options, bare._known)


def parts(case: Case) -> tuple[Case, ...]:
    """The case, or for an engine that holds one quantized format a case for each that it may be, groups aligned.

    Raises PlanError for locks to two quantized formats of such an engine.
    """
    engine, original = case.context.engine, case.original.name
    if not engine.one_quantized_format:
        return (case,)
    locked = {lock.format for lock in case.context.locks.values()} - {original}
    if len(locked) > 1:
        raise PlanError(
            f"{engine.label} holds one quantized format, and the locks ask for {' and '.join(sorted(locked))}; lock to "
            "one of them."
        )
    names = locked or {option.format.name for options in case.options for option in options} - {original}
    return tuple(_part(case, name) for name in sorted(names)) or (case,)


def _part(case: Case, name: str) -> Case:
    # What is said of formats depends on which one it is; what they cost does not.
    bare = replace(case, context=replace(case.context, only=name), _known=case._known.without_verdicts())
    return replace(bare, options=tuple(bare.group_options(group) for group in case.groups))


def _refuse_unmeasured_formats(profile: SensitivityProfile, request: PlanRequest) -> None:
    if profile.around:
        raise PlanError(
            "This sensitivity profile was measured around a plan: it says what giving layers back wins, not what each "
            "costs alone; plan from one that was not."
        )
    if not profile.measurements:
        raise PlanError("This sensitivity profile has no measurements yet; let profiling run first.")
    known = {*profile.formats, profile.catalogue.dtype}
    for name in request.formats:
        find_format(name)
        if name not in known:
            raise PlanError(
                f"No layer was measured in {name}, so a plan cannot use it; profile the model in {name}, or choose "
                f"from {', '.join(profile.formats)}."
            )


def _refuse_unmeasured_locks(case: Case) -> None:
    missing: dict[str, list[str]] = defaultdict(list)
    for layer in case.catalogue.layers:
        held = case.context.locks.get(layer.name)
        if held is not None and not case.has(layer, find_format(held.format)):
            missing[held.pattern].append(layer.name)
    for pattern, names in missing.items():
        wanted = case.context.locks[names[0]].format
        more = f" and {plural(len(names) - 1, 'more layer')}" if len(names) > 1 else ""
        raise PlanError(
            f"The lock '{pattern}' asks for {wanted} on '{names[0]}'{more}, not measured in it; profile what is locked "
            f"in {wanted}, or lock it to {case.original.name}."
        )
