"""Words the refusal of a budget that cannot be met: how small a plan can get, what misses, and what to change."""

from __future__ import annotations

import math
from collections import Counter

from advisor.errors import InfeasibleBudget, PlanError, WaysOut
from advisor.memory import most_bytes
from advisor.planner.case import Case
from advisor.planner.remedies import Shortage
from advisor.units import GIB, MIB, size


def refuse_budget(case: Case) -> InfeasibleBudget:
    """The error for a memory budget below the smallest plan, in one sentence; sizes are in the budget's measure."""
    smallest, limit, shortage = case.smallest_bytes, case.limit_bytes, Shortage(case)
    misses, none = _what_misses(case, smallest, limit), _no_format(case, shortage)
    light = shortage.lighter_load()
    cache = f" (the KV cache takes {size(case.unquantized.kv_cache_bytes)})" if light else ""
    # Surest first: all but the first are known to suffice as they stand.
    ways = {**_more(case, smallest), **light, **shortage.suggestions()}
    message = f"{misses}{cache}; {none}{_or(list(ways))}."
    return _infeasible(message, smallest, limit, ways)


def _infeasible(message: str, smallest: int, limit: int, ways: WaysOut) -> InfeasibleBudget:
    possible = {words: changes for words, changes in ways.items() if changes}
    return InfeasibleBudget(message, smallest_bytes=smallest, limit_bytes=limit, ways_out=possible)


def refuse_tolerance(case: Case, least: float) -> InfeasibleBudget:
    """The error for a tolerance that locked formats alone exceed: without locks the model's own dtype always fits.

    Args:
        least: what the plan that loses least raises perplexity by, in nats per token.
    """
    enough = _enough(least)
    return InfeasibleBudget(
        f"The locked formats alone raise perplexity by about {enough} %, more than the {_tolerance(case)} "
        f"allowed{_spare(case)}; loosen a lock or allow at least {enough} %.",
        ways_out={f"allow at least {enough} %": {"max_ppl_increase": float(enough) / 100}},
    )


def _enough(nats: float) -> str:
    """A rise of perplexity in percent, rounded up so that allowing it suffices."""
    return f"{math.ceil(1000 * math.expm1(nats) * (1 + 1e-9)) / 10:g}"


def refuse_both(case: Case, smallest: int) -> InfeasibleBudget:
    """The error for a tolerance whose smallest plan, of so many bytes, is over the limit of memory."""
    limit = case.limit_bytes
    within = f" that raises perplexity by no more than {_tolerance(case)}{_spare(case)}"
    ways = _more(case, smallest)
    message = f"{_what_misses(case, smallest, limit, within)}; {_or([*ways, 'allow a larger increase'])}."
    return _infeasible(message, smallest, limit, ways)


def refuse_speed(case: Case) -> PlanError:
    """The error for speed that is asked for where nothing can be told of it."""
    missing = case.roofline.indispensable
    verb = "is" if len(missing) == 1 else "are"
    return PlanError(
        f"With limits of memory and of perplexity the fastest plan is asked for, which cannot be told, as "
        f"{' and '.join(missing)} {verb} not stated; give one of the two limits alone (a scenario brings both), or "
        "state it in a table of your own."
    )


def _tolerance(case: Case) -> str:
    return f"{100 * case.request.budget.max_ppl_increase:.3g} %"


def _spare(case: Case) -> str:
    """What a tolerance keeps to spare where scores are estimates."""
    estimated = any(score.projections for score in case.scores.values())
    return " (with one standard error to spare)" if estimated else ""


def _what_misses(case: Case, smallest: int, limit: int, within: str = "") -> str:
    budget, engine = case.request.budget, case.context.engine.label
    model = case.catalogue.model.name + within
    over = f"{size(smallest - limit)} more than"
    if budget.weight_bits is not None:
        parameters = sum(layer.parameters for layer in case.decided)
        return (
            f"The smallest plan for {model} averages {_up(smallest * 8 / parameters):g} bits ({size(smallest)} for the "
            f"layers it decides), {over} {budget.weight_bits:g} bits allow"
        )
    if budget.weight_bytes is not None:
        return f"The smallest plan for {model} has {size(smallest)} of weights, {over} the {size(limit)} allowed"
    usable = f"the {size(limit)} that {engine} may use of {size(budget.vram_bytes)}"
    return f"The smallest plan for {model} needs {size(smallest)}, {over} {usable}"


def _no_format(case: Case, shortage: Shortage) -> str:
    """That no format will do, and what one would have to be; empty where one would."""
    if not shortage.beyond_all_formats:
        return ""
    engine, room = case.context.engine.label, case.limit_bytes - case.fixed_bytes
    if room <= 0:
        return f"no format would be small enough, as all that the plan does not decide takes {size(case.fixed_bytes)}; "
    none = f"no format that {engine} stores is small enough{_struck(case)}"
    if case.request.budget.weight_bits is not None:
        return f"{none}; "
    bits = math.floor(800 * room / sum(layer.parameters for layer in case.decided)) / 100
    return f"{none}: the layers that the plan decides would have to average {bits:g} bits; "


def _struck(case: Case) -> str:
    """Why most layers cannot have the smallest format of the engine, where they cannot."""
    engine = case.context.engine
    quantized = [fmt for fmt in case.offered if fmt.quantized and fmt.name in engine.formats]
    least = min(quantized, key=lambda fmt: fmt.bits, default=None)
    bans = Counter(ban for layer in case.decided if least and (ban := case.ban(layer, least)))
    return f" ({least.label} is not for all layers: {bans.most_common(1)[0][0]})" if bans else ""


def _more(case: Case, smallest: int) -> WaysOut:
    """The budget that the smallest plan needs, rounded up, in the unit in which budgets are given.

    No budget is enough where that is more than the device has.
    """
    budget = case.request.budget
    if budget.weight_bits is not None:
        bits = _up(smallest * 8 / sum(layer.parameters for layer in case.decided))
        return {f"allow at least {bits:g} bits": {"weight_bits": bits}}
    needed = smallest if budget.weight_bytes is not None else math.ceil(smallest * budget.vram_bytes / case.limit_bytes)
    unit, factor = ("GiB", GIB) if needed >= GIB else ("MiB", MIB)
    count = _up(needed / factor)
    enough = math.ceil(count * factor)
    if budget.weight_bytes is not None:
        return {f"allow at least {count:g} {unit}": {"weight_bytes": enough}}
    if enough > most_bytes(case.context.hardware):
        return {f"plan for a device with at least {count:g} {unit}": {}}
    return {f"allow at least {count:g} {unit}": {"vram_bytes": enough}}


def _up(value: float) -> float:
    return math.ceil(value * 100 - 1e-9) / 100


def _or(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, or {parts[-1]}"
