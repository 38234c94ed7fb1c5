"""Says in plain words why each layer of a plan has its format: from the solved case to the plan's reasons."""

from __future__ import annotations

import math
from dataclasses import dataclass

from advisor.candidates import Case, Option
from advisor.rules import decision_groups, lock_reason
from advisor.types import Alternative, Format, Layer, LayerGroup, Reason
from advisor.units import size


@dataclass(frozen=True)
class _Rates:
    """What one byte is worth elsewhere in the plan, in nats per byte.

    win: the most that another byte would win in any group; charge: the least that taking one away would cost.
    """

    win: float
    charge: float


def explain(case: Case, chosen: tuple[Option, ...]) -> dict[str, Reason]:
    """A reason for every layer of the catalogue, decided or not; `chosen` holds one option per group."""
    rates = _rates(case, chosen)
    reasons: dict[str, Reason] = {}
    for group, options, option in zip(case.groups, case.options, chosen, strict=True):
        for layer in group.layers:
            text = _decided_text(case, group, layer, options, option, rates)
            reasons[layer.name] = _reason(case, group, layer, option, text)
    return reasons | _undecided(case)


def explain_simple(case: Case, chosen: tuple[Option, ...], wanted: tuple[Format, ...], rule: str) -> dict[str, Reason]:
    """Reasons of a comparison plan, which wanted one format per group by a simple `rule` and took what is allowed."""
    reasons: dict[str, Reason] = {}
    for group, option, wish in zip(case.groups, chosen, wanted, strict=True):
        for layer in group.layers:
            text = f"{option.format.label}: {rule}."
            if option.format.name != wish.name:
                text = f"{option.format.label} instead of {wish.label}: {_ban(case, group, wish)}."
            reasons[layer.name] = _reason(case, group, layer, option, text)
    return reasons | _undecided(case)


def _rates(case: Case, chosen: tuple[Option, ...]) -> _Rates:
    wins, charges = [0.0], [math.inf]
    for options, now in zip(case.options, chosen, strict=True):
        for other in options:
            if other.cost > now.cost:
                wins.append(_rate(other, now))
            elif other.cost < now.cost:
                charges.append(_rate(now, other))
    return _Rates(max(wins), min(charges))


def _rate(larger: Option, smaller: Option) -> float:
    return (smaller.loss - larger.loss) / (larger.cost - smaller.cost)


def _reason(case: Case, group: LayerGroup, layer: Layer, option: Option, text: str) -> Reason:
    loss, cost = case.loss(layer, option.format), case.cost(layer, option.format)
    alternatives = tuple(
        Alternative(
            format=fmt.name,
            delta_loss=case.loss(layer, fmt) - loss,
            delta_bytes=case.cost(layer, fmt) - cost,
            verdicts=case.verdicts(layer, fmt, group),
        )
        for fmt in _known_formats(case)
        if fmt.name != option.format.name and case.has(layer, fmt)
    )
    return Reason(text=text, verdicts=case.verdicts(layer, option.format, group), alternatives=alternatives)


def _known_formats(case: Case) -> tuple[Format, ...]:
    return (case.original, *(fmt for fmt in case.formats if fmt.name != case.original.name))


# ----------------------------------------------------------------------------------- decided layers


def _decided_text(
    case: Case, group: LayerGroup, layer: Layer, options: tuple[Option, ...], now: Option, rates: _Rates
) -> str:
    held = case.context.locks.get(layer.name)
    if held is not None:
        return f"{lock_reason(layer, held, case.context.engine)}."
    start = f"Kept at {now.format.label}" if now.format.name == case.original.name else now.format.label
    together = _together(layer, group)
    if len(options) == 1:
        return f"{start}{together}: the rules leave nothing else; {_first_ban(case, group, now.format)}."
    smaller = [other for other in options if other.cost < now.cost]
    larger = [other for other in options if other.cost > now.cost and other.loss < now.loss]
    if smaller:
        return f"{start}{together}: {_against_smaller(case, min(smaller, key=lambda o: _rate(now, o)), now, rates)}."
    if larger:
        return f"{start}{together}: {_against_larger(case, max(larger, key=lambda o: _rate(o, now)), now, rates)}."
    return f"{start}{together}: the smallest of its formats, and no larger one measured better."


def _against_smaller(case: Case, other: Option, now: Option, rates: _Rates) -> str:
    saved, added = size(now.cost - other.cost), other.loss - now.loss
    sentence = f"going to {other.format.label} would save {saved} and add {_nats(added)}"
    if case.request.budget.fastest and other.seconds >= now.seconds:
        return f"{sentence} without being faster"
    if _rate(now, other) > rates.win > 0:
        return f"{sentence}, more than other layers charge for the same bytes"
    if case.request.budget.max_ppl_increase is not None:
        return f"{sentence}, more than the tolerance has left"
    if rates.win <= 0:
        return f"{sentence}, and the budget has room without that"
    return f"{sentence}, and the bytes are too few to win more elsewhere"


def _against_larger(case: Case, other: Option, now: Option, rates: _Rates) -> str:
    sentence = (
        f"{other.format.label} would cost {size(other.cost - now.cost)} and win only {_nats(now.loss - other.loss)}"
    )
    if _rate(other, now) < rates.charge < math.inf:
        return f"{sentence}, less than other layers win with the same bytes"
    if case.request.budget.max_ppl_increase is not None:
        return f"{sentence}, which the tolerance does not ask for"
    return f"{sentence.replace(' win only ', ' win ')}, and the budget has no such bytes left"


def _nats(value: float) -> str:
    return f"{value:.4f} nats" if abs(value) >= 0.001 or value == 0 else f"{value:.2g} nats"


def _together(layer: Layer, group: LayerGroup) -> str:
    """Fused partners share the decision, so the numbers of the sentence are the group's."""
    others = [partner.name.rsplit(".", 1)[-1] for partner in group.layers if partner.name != layer.name]
    return f" (with {', '.join(others)})" if others else ""


def _first_ban(case: Case, group: LayerGroup, now: Format) -> str:
    """Why the most obvious other format, the one of least bits that was measured, is out."""
    struck = [fmt for fmt in _known_formats(case) if fmt.name != now.name]
    return _ban(case, group, min(struck, key=lambda fmt: fmt.bits)) if struck else "nothing else was measured"


def _ban(case: Case, group: LayerGroup, fmt: Format) -> str:
    for layer in group.layers:
        for verdict in case.verdicts(layer, fmt, group):
            if not verdict.allowed:
                return verdict.reason
    return f"{fmt.label} is not among the formats to choose from"


# --------------------------------------------------------------------------------- undecided layers


def _undecided(case: Case) -> dict[str, Reason]:
    decided = {layer.name for layer in case.decided}
    rest = [layer.name for layer in case.catalogue.layers if layer.name not in decided]
    groups = decision_groups(case.catalogue, case.context.engine, rest)
    return {layer.name: _undecided_reason(case, layer, group) for group in groups for layer in group.layers}


def _undecided_reason(case: Case, layer: Layer, group: LayerGroup) -> Reason:
    bans = [
        [verdict for verdict in case.verdicts(layer, fmt, group) if not verdict.allowed]
        for fmt in case.formats
        if fmt.quantized
    ]
    distinct = tuple({verdict.reason: verdict for said in bans for verdict in said}.values())
    # A format that only lacks its measurement is worth telling; else what can never be says more.
    missing = [said[0] for said in bans if all(verdict.rule == "measurement" for verdict in said)]
    if missing:
        why = f"{missing[0].reason}; profile it to let a plan decide"
    else:
        first = min(distinct, key=lambda verdict: verdict.rule == "measurement", default=None)
        why = first.reason if first else "no quantized format was measured"
    return Reason(text=f"Kept at {case.original.label}: {why}.", verdicts=distinct)
