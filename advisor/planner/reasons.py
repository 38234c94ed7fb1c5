"""Says in plain words why each layer of a plan has its format: from the solved case to the plan's reasons."""

from __future__ import annotations

import math

from advisor.estimates import LEAST_SHARE
from advisor.planner.case import Case, Option
from advisor.planner.groups import decision_groups
from advisor.planner.locks import lock_reason
from advisor.planner.regret import CONFIDENCE, Rates, RunnerUp, opposite_of, others_of, rate, runner_up, taken
from advisor.types import Alternative, Format, Layer, LayerGroup, Reason
from advisor.units import MIB, number, seconds, size

# Of the formats that are worth less than those that are explained, so many are named.
_NAMED = 2


def explain(case: Case, chosen: tuple[Option, ...], rates: Rates) -> dict[str, Reason]:
    """A reason for every layer of the catalogue, decided or not; `chosen` holds one option per group."""
    reasons: dict[str, Reason] = {}
    for group, options, option in zip(case.groups, case.options, chosen, strict=True):
        others = others_of(case, options, option, rates)
        next_best = runner_up(case, group, others, option, rates)
        why = _why(case, group, others, option, next_best, rates)
        for layer in group.layers:
            text = _decided_text(case, group, layer, option, why)
            reasons[layer.name] = _reason(case, group, layer, option, text, next_best)
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


def _reason(
    case: Case, group: LayerGroup, layer: Layer, option: Option, text: str, next_best: RunnerUp | None = None
) -> Reason:
    said = case.verdicts(layer, option.format, group)
    words = {(verdict.rule, verdict.reason) for verdict in said}
    return Reason(
        text=text,
        verdicts=said,
        alternatives=tuple(
            _alternative(case, group, layer, fmt, option.format, words)
            for fmt in case.offered
            if fmt.name != option.format.name
        ),
        runner_up=next_best.alternative if next_best else None,
        within_noise=next_best is not None and next_best.within_noise,
    )


def _alternative(
    case: Case, group: LayerGroup, layer: Layer, fmt: Format, now: Format, said: set[tuple[str, str]]
) -> Alternative:
    verdicts = case.verdicts(layer, fmt, group)
    # Of what cannot be had, the bans are the answer; of what can, all that was not said of the chosen format already.
    bans = tuple(v for v in verdicts if not v.allowed)
    delta = case.loss(layer, fmt) - case.loss(layer, now) if case.has(layer, fmt) else math.nan
    return Alternative(
        format=fmt.name,
        delta_loss=delta if math.isfinite(delta) else None,
        delta_bytes=case.cost(layer, fmt) - case.cost(layer, now),
        verdicts=bans or tuple(v for v in verdicts if (v.rule, v.reason) not in said),
    )


# ----------------------------------------------------------------------------------- decided layers


def _decided_text(case: Case, group: LayerGroup, layer: Layer, now: Option, why: str) -> str:
    held = case.context.locks.get(layer.name)
    if held is not None:
        return f"{lock_reason(layer, held, case.context.engine)}."
    start = f"Kept at {now.format.label}" if now.format.name == case.original.name else now.format.label
    return f"{start}{_together(layer, group)}: {why}."


def _why(
    case: Case, group: LayerGroup, others: list[Option], now: Option, next_best: RunnerUp | None, rates: Rates
) -> str:
    """Why not the runner-up, why not the best on its other side, and what became of the rest."""
    if next_best is None:
        return f"the rules leave nothing else; {_first_ban(case, group, now.format)}"
    opposite = opposite_of(case, others, now)
    # A layer's own score may say otherwise: it is of the layer alone.
    place = "with the rest of the plan in place, " if case.in_place else ""
    against = _against(case, group, next_best.option, now, rates)
    # A gain first: what follows would be absurd without it.
    noise = " (a close call, within the error of the scores)" if next_best.within_noise else ""
    said = [_gain(case, group, now), f"{place}{against}{noise}"]
    said += [_against(case, group, opposite, now, rates)] if opposite else []
    rest = [other for other in others[1:] if other is not opposite]
    said += [_worth(case, rates), _no_better(case, rest, now), _nothing_smaller(case, group, others, now)]
    return ". ".join(one[0].upper() + one[1:] if number else one for number, one in enumerate(filter(None, said)))


def _gain(case: Case, group: LayerGroup, now: Option) -> str:
    """That the text makes the chosen format look better than the original, and what it is ranked by all the same."""
    if now.delta_nll >= 0:
        return ""
    if case.in_place:
        return f"on this text it looks like a gain of {_nats(-now.delta_nll)}"
    scores = [case.scores[layer.name, now.format.name] for layer in group.layers]
    least = LEAST_SHARE * math.fsum(score.kl for score in scores)
    share = ", a twentieth of its KL" if math.isclose(now.loss, least) else ""
    seen = math.fsum(score.delta_nll for score in scores)
    return (
        f"on this text it looks like a gain (Δ NLL {'−' if seen < 0 else '+'}{number(abs(seen), 2)}), which other text "
        f"need not bear out: it counts as a loss of {_nats(now.loss)}{share}"
    )


def _no_better(case: Case, rest: list[Option], now: Option) -> str:
    """The options that are worth less than those that were explained, the better ones first."""
    if not rest:
        return ""
    named = [f"{other.format.label} ({_changes(case, other, now)})" for other in rest[:_NAMED]]
    *most, last = named + [f"{len(rest) - _NAMED} more"] * (len(rest) > _NAMED)
    listed = f"{', '.join(most)} and {last}" if most else last
    return f"also possible, and passed over by the same measure: {listed}"


def _changes(case: Case, other: Option, now: Option) -> str:
    more, loss = taken(case, other) - taken(case, now), other.loss - now.loss
    return f"{'−' if more < 0 else '+'}{_said(case, abs(more))}, {'−' if loss < 0 else '+'}{_nats(abs(loss))}"


def _nothing_smaller(case: Case, group: LayerGroup, others: list[Option], now: Option) -> str:
    """Why the smallest format that may be had is the smallest; empty where another option is smaller."""
    if any(other.cost < now.cost for other in others):
        return ""
    possible = {other.format.name for other in others}
    struck = [fmt for fmt in case.formats if fmt.bits < now.format.bits and fmt.name not in possible]
    if struck:
        return f"nothing smaller, since {_ban(case, group, max(struck, key=lambda fmt: fmt.bits))}"
    return "nothing smaller was measured" if any(fmt.bits < now.format.bits for fmt in case.offered) else ""


def _against(case: Case, group: LayerGroup, other: Option, now: Option, rates: Rates) -> str:
    """Why not the runner-up."""
    more = taken(case, other) - taken(case, now)
    if more < 0:
        return _against_smaller(case, group, other, now, rates)
    if more > 0:
        return _against_larger(case, group, other, now, rates)
    same = f"takes the same {_measure(case)}"
    if other.loss > now.loss:
        return f"{other.format.label} {same} and would add {_nats(other.loss - now.loss)}"
    return f"{other.format.label} {same} and loses no less{_priced(case, group, other, now)}"


def _against_smaller(case: Case, group: LayerGroup, other: Option, now: Option, rates: Rates) -> str:
    saved, added = _said(case, taken(case, now) - taken(case, other)), other.loss - now.loss
    if added < 0 and other.price <= now.price:
        return (
            f"going to {other.format.label} would save {saved} and {_better_alone(case, group, other, -added, rates)}"
        )
    effect = f"add {_nats(added)}" if added >= 0 else f"lose {_nats(-added)} less"
    sentence = f"going to {other.format.label} would save {saved} and {effect}"
    if other.price > now.price and added <= other.price - now.price:
        return f"{sentence}{_priced(case, group, other, now)}"
    if rates.exchange <= 0 and case.request.budget.max_ppl_increase is None:
        return f"{sentence}, and the budget has room without that"
    sentence += _price(case, rate(case, now, other), rates)
    if rate(case, now, other) > rates.exchange > 0:
        return f"{sentence}: too much"
    if case.request.budget.max_ppl_increase is not None:
        return f"{sentence}, more than the tolerance has left"
    return f"{sentence}, but the bytes are too few to win more elsewhere"


def _better_alone(case: Case, group: LayerGroup, other: Option, won: float, rates: Rates) -> str:
    """Why what a layer would win by itself was not taken."""
    if case.in_place:
        return (
            f"by its gradient lose {_nats(won)} less; refining tries such changes together, and takes those that "
            "held-back text bears out"
        )
    said = f"by its own score lose {_nats(won)} less"
    found = rates.together.get((group.layers[0].name, other.format.name))
    if found is None:
        return f"{said}; plans are chosen by what all layers together should lose"
    change, error = found
    if change == 0:
        return f"{said}, but all layers together are predicted to lose nothing as it is"
    if abs(change) < CONFIDENCE * error:
        return f"{said}; whether all layers together would lose less, the scores cannot tell"
    if change > 0:
        return (
            f"{said}, but all layers together {_nats(change)} more: errors of layers cancel in part, and its own "
            "cancels those of others"
        )
    return (
        f"{said}, and all layers together {_nats(-change)} less: not every single change is tried; lock it to take "
        "this one, or refine the plan"
    )


def _against_larger(case: Case, group: LayerGroup, other: Option, now: Option, rates: Rates) -> str:
    cost, won = _said(case, taken(case, other) - taken(case, now)), now.loss - other.loss
    if won <= 0:
        return f"{other.format.label} would cost {cost} and {f'add {_nats(-won)}' if won else 'win nothing'}"
    if other.cost - now.cost <= rates.room and other.price <= now.price:
        alone = _better_alone(case, group, other, won, rates)
        return f"{other.format.label} would cost {cost}, which the limit has left, and {alone}"
    sentence, price = f"{other.format.label} would cost {cost} and win", _price(case, rate(case, other, now), rates)
    if rate(case, other, now) < rates.exchange:
        return f"{sentence} only {_nats(won)}{price}: too little"
    if case.request.budget.max_ppl_increase is not None:
        return f"{sentence} {_nats(won)}{price}, which the tolerance does not ask for"
    return f"{sentence} {_nats(won)}{price}, but the budget has no such bytes left"


def _measure(case: Case) -> str:
    return "time" if case.fastest else "bytes"


def _said(case: Case, amount: float) -> str:
    return f"{seconds(amount)} a step" if case.fastest else size(amount)


def _worth(case: Case, rates: Rates) -> str:
    """What decides between too much and too little; empty where bytes do not."""
    what = "one millisecond of a step" if case.fastest else "one MiB"
    return f"in this plan {what} is worth about {_nats(rates.exchange * _unit(case)[1])}" if rates.exchange > 0 else ""


def _price(case: Case, rate: float, rates: Rates) -> str:
    """To be held against `_worth`; empty as that is."""
    unit, factor = _unit(case)
    return f", {number(rate * factor, 2)} per {unit}" if rates.exchange > 0 else ""


def _unit(case: Case) -> tuple[str, float]:
    """In which prices read best, and how many bytes or seconds it is."""
    return ("ms", 1e-3) if case.fastest else ("MiB", MIB)


def _priced(case: Case, group: LayerGroup, other: Option, now: Option) -> str:
    """What a rule charges for the other option, where that decides."""
    verdicts = [v for layer in group.layers for v in case.verdicts(layer, other.format, group) if v.price > 0]
    if other.price <= now.price or not verdicts:
        return ""
    return f", which a rule advises against ({verdicts[0].reason})"


def _nats(value: float) -> str:
    return f"{number(value, 2)} nats"


def _together(layer: Layer, group: LayerGroup) -> str:
    """Fused partners share the decision, so the numbers of the sentence are the group's."""
    others = [partner.name.rsplit(".", 1)[-1] for partner in group.layers if partner.name != layer.name]
    return f" (with {', '.join(others)})" if others else ""


def _first_ban(case: Case, group: LayerGroup, now: Format) -> str:
    """Why the most obvious other format, the one of least bits that was measured, is out."""
    struck = [fmt for fmt in (case.original, *case.formats) if fmt.name != now.name]
    return _ban(case, group, min(struck, key=lambda fmt: fmt.bits)) if struck else "nothing else was measured"


def _ban(case: Case, group: LayerGroup, fmt: Format) -> str:
    said = (verdict for layer in group.layers for verdict in case.verdicts(layer, fmt, group))
    return next(verdict.reason for verdict in said if not verdict.allowed)


# --------------------------------------------------------------------------------- undecided layers


def _undecided(case: Case) -> dict[str, Reason]:
    decided = {layer.name for layer in case.decided}
    rest = [layer.name for layer in case.catalogue.layers if layer.name not in decided]
    groups = decision_groups(case.catalogue, case.context.engine, rest)
    return {layer.name: _undecided_reason(case, layer, group) for group in groups for layer in group.layers}


def _undecided_reason(case: Case, layer: Layer, group: LayerGroup) -> Reason:
    bans = [
        [verdict for verdict in case.verdicts(layer, fmt, group) if not verdict.allowed]
        for fmt in case.offered
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
