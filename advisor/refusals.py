"""Words the refusal of a budget that cannot be met: how small a plan can get, what misses, and what to change."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from advisor.candidates import Case, prepare
from advisor.errors import InfeasibleBudget, PlanError
from advisor.knowledge import find_format
from advisor.memory import most_bytes
from advisor.rules import allowed, judge
from advisor.types import Format
from advisor.units import GIB, MIB, size

# A KV cache above this share of the limit is worth mentioning.
_LARGE_CACHE = 0.1


def refuse_budget(case: Case) -> InfeasibleBudget:
    """The error for a memory budget below the smallest plan, in one sentence; sizes are in the budget's measure."""
    smallest, limit = case.smallest_bytes, case.limit_bytes
    message = f"{_what_misses(case, smallest, limit)}; {_or(_suggestions(case, smallest, limit))}."
    return InfeasibleBudget(message, smallest_bytes=smallest, limit_bytes=limit)


def refuse_tolerance(case: Case) -> InfeasibleBudget:
    """The error for a tolerance that locked formats alone exceed: without locks the model's own dtype always fits."""
    least = max(
        math.fsum(min(getattr(option, measure) for option in options) for options in case.options)
        for measure in ("loss", "delta_nll")
    )
    return InfeasibleBudget(
        f"The locked formats alone raise perplexity by about {100 * math.expm1(least):.3g} %, more than the "
        f"{_tolerance(case)} allowed; loosen a lock or allow a larger increase."
    )


def refuse_both(case: Case, smallest: int) -> InfeasibleBudget:
    """The error for a tolerance whose smallest plan, of so many bytes, is over the limit of memory."""
    limit = case.limit_bytes
    message = (
        f"{_what_misses(case, smallest, limit, within=f' that raises perplexity by no more than {_tolerance(case)}')}; "
        f"{_more(case, smallest)}, or allow a larger increase."
    )
    return InfeasibleBudget(message, smallest_bytes=smallest, limit_bytes=limit)


def refuse_speed(case: Case) -> PlanError:
    """The error for speed that is asked for where nothing can be told of it."""
    missing = case.roofline.indispensable
    verb = "is" if len(missing) == 1 else "are"
    return PlanError(
        f"The fastest plan cannot be told, as {' and '.join(missing)} {verb} not stated; give a limit of "
        "memory or of perplexity alone, or state it in a table of your own."
    )


def _tolerance(case: Case) -> str:
    return f"{100 * case.request.budget.max_ppl_increase:.3g} %"


def _what_misses(case: Case, smallest: int, limit: int, within: str = "") -> str:
    budget, engine = case.request.budget, case.context.engine.label
    model = case.catalogue.model.name + within
    over = f"{size(smallest - limit)} more than"
    if budget.weight_bits is not None:
        parameters = sum(layer.parameters for layer in case.decided)
        return (
            f"The smallest plan for {model} averages {_up(smallest * 8 / parameters)} bits ({size(smallest)}), "
            f"{over} {budget.weight_bits:g} bits allow"
        )
    if budget.weight_bytes is not None:
        return f"The smallest plan for {model} has {size(smallest)} of weights, {over} the {size(limit)} allowed"
    usable = f"the {size(limit)} that {engine} may use of {size(budget.vram_bytes)}"
    return f"The smallest plan for {model} needs {size(smallest)}, {over} {usable}"


def _suggestions(case: Case, smallest: int, limit: int) -> list[str]:
    """What would help, surest first."""
    found = [_more(case, smallest)]
    found += _shorter_context(case, smallest - limit, limit)
    # Lower formats help only where the decided layers are what is too large.
    if smallest - limit < smallest - case.fixed_bytes:
        found += _lower_formats(case)
    found += _other_wishes(case, smallest)
    return found


def _more(case: Case, smallest: int) -> str:
    """The budget that the smallest plan needs, rounded up, in the unit in which budgets are given."""
    budget = case.request.budget
    if budget.weight_bits is not None:
        return f"allow at least {_up(smallest * 8 / sum(layer.parameters for layer in case.decided))} bits"
    needed = smallest if budget.weight_bytes is not None else math.ceil(smallest * budget.vram_bytes / case.limit_bytes)
    unit, factor = ("GiB", GIB) if needed >= GIB else ("MiB", MIB)
    too_much = budget.vram_bytes is not None and needed > most_bytes(case.context.hardware)
    return f"{'plan for a device with' if too_much else 'allow'} at least {_up(needed / factor)} {unit}"


def _up(value: float) -> str:
    return f"{math.ceil(value * 100 - 1e-9) / 100:g}"


def _shorter_context(case: Case, missing: int, limit: int) -> list[str]:
    budget = case.request.budget
    if budget.vram_bytes is None:
        return []
    cache = case.unquantized.kv_cache_bytes
    if cache < min(missing, _LARGE_CACHE * limit):
        return []
    fewer = " or serve fewer sequences" if budget.sequences > 1 else ""
    smaller = budget.kv_bits == 16 and 8 in case.context.engine.kv_bits
    return [
        f"shorten the context{fewer} (the KV cache takes {size(cache)})",
        *(["store the KV cache in 8 bits"] if smaller else []),
    ]


def _lower_formats(case: Case) -> list[str]:
    """Smaller formats: measured but not chosen from, or of the engine and not measured; and layers not measured."""
    names = {fmt.name for fmt in case.formats}
    excluded = [fmt.name for fmt in case.formats if case.request.formats and fmt.name not in case.request.formats]
    unmeasured = [name for name in case.context.engine.formats if name not in names]
    found = []
    for verb, choices in (("choose from", excluded), ("measure", unmeasured)):
        helping = [name for name in choices if _helps(case, find_format(name))]
        if helping:
            found.append(f"{verb} {', '.join(helping)} too")
    layers = _worth_measuring(case)
    if layers:
        found.append(f"measure the {layers} layers that were left out")
    return found


def _helps(case: Case, fmt: Format) -> bool:
    """Whether some group could have this format and be smaller than any of its options."""
    # Whether it is chosen from is what the advice is about.
    context = replace(case.context, request=case.request.model_copy(update={"formats": ()}), only=None)
    for group, options in zip(case.groups, case.options, strict=True):
        possible = all(allowed(judge(layer, fmt, context)) for layer in group.layers)
        if possible and sum(case.cost(layer, fmt) for layer in group.layers) < min(o.cost for o in options):
            return True
    return False


def _worth_measuring(case: Case) -> int:
    """How many undecided layers the rules would let have a measured format."""
    decided = {layer.name for layer in case.decided}
    quantized = [fmt for fmt in case.formats if fmt.quantized]
    return sum(
        any(allowed(judge(layer, fmt, case.context, hard_only=True)) for fmt in quantized)
        for layer in case.catalogue.quantizable
        if layer.name not in decided
    )


def _other_wishes(case: Case, smallest: int) -> list[str]:
    """What the user asked for that makes the smallest plan larger."""
    request, found = case.request, []
    if request.role_floors == "enforce" and _smallest(case, role_floors="advise") < smallest:
        found.append("set the role floors to advise instead of enforce")
    if request.locks and _smallest(case, locks={}) < smallest:
        found.append("remove a lock")
    if request.excluded and _smallest(case, excluded=()) < smallest:
        found.append("exclude less")
    return found


def _smallest(case: Case, **changes: Any) -> int:
    return prepare(case.profile, case.request.model_copy(update=changes)).smallest_bytes


def _or(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, or {parts[-1]}"
