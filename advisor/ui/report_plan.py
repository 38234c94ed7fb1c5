"""The parts of the report about the plan: its formats, memory and speed, what else was possible, how it was refined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from advisor import knowledge, pipeline
from advisor.knowledge import find_engine, find_hardware
from advisor.marks import mark_of
from advisor.planner.comparison import compare_all
from advisor.planner.locks import resolve_locks
from advisor.types import Plan, SensitivityProfile
from advisor.ui import charts, comparison_charts, frames, front_chart, plan_speed, verdict, wording
from advisor.ui.report_parts import Commands, Figure, Table, Words, figure

Blocks = list[Words | Table | Figure | Commands]
_POINTS = 48


def verdicts(plan: Plan, profile: SensitivityProfile | None, simple: Mapping[str, Plan]) -> list[Words]:
    """What the plan is worth, by the guide's marks and beside the plans that need no advisor."""
    mark = mark_of(plan.predicted.delta_ppl_pct)
    how = "was measured to change" if plan.predicted.measured else "is predicted to change"
    said = [
        Words(f"This plan {how} perplexity by {wording.percent(plan.predicted.delta_ppl_pct)}: {mark.text}.", mark.tone)
    ]
    if plan.refinement is not None:
        against = verdict.of_refinement(plan.refinement)
    else:
        against = verdict.against_simple(compare_all(plan, simple, profile)) if profile is not None else None
    return said + ([Words(against.text, against.tone)] if against is not None else [])


def formats(plan: Plan, profile: SensitivityProfile | None) -> Blocks:
    """What was asked, the map of blocks and modules, and how many layers of each role have which format."""
    counts = Counter(plan.assignments.values())
    said = wording.layers_by_format({name: counts[name] for name in _ordered(counts)})
    blocks: Blocks = [Words(f"{_asked(plan)} {said[0].upper()}{said[1:]}. All other weights stay as they are.")]
    if profile is None:
        return blocks
    request, catalogue = plan.request, profile.catalogue
    locked = set(resolve_locks(catalogue, find_engine(request.engine), request.locks, request.excluded))
    known = knowledge.formats()
    drawn = figure(
        lambda dark: charts.plan_map(catalogue, plan.assignments, known, locked, dark),
        f"The plan by block and module: {said}.",
        "Blocks across, modules down. Each cell says its format, or its bits where it is narrow; a rim marks a lock.",
    )
    return [*blocks, drawn, _by_role(plan, profile)]


def _asked(plan: Plan) -> str:
    request, budget = plan.request, plan.request.budget
    goal = "the most speed" if budget.fastest else "the least loss" if budget.limits_memory else "the least memory"
    wishes = [f"{layers} held at {wording.format_label(fmt)}" for layers, fmt in request.locks.items()]
    wishes += [f"{layers} excluded" for layers in request.excluded]
    also = f" Wishes: {', '.join(wishes)}." if wishes else ""
    return f"Asked for: {goal} within {wording.limits(budget)}.{also}"


def _by_role(plan: Plan, profile: SensitivityProfile) -> Table:
    layers, counts = profile.catalogue.by_name(), Counter()
    for name, fmt in plan.assignments.items():
        counts[wording.role(layers[name].role), fmt] += 1
    used = _ordered({fmt for _, fmt in counts})
    rows = [
        (role, *(str(counts[role, fmt] or "–") for fmt in used)) for role in dict.fromkeys(role for role, _ in counts)
    ]
    return Table(("Role (layers)", *map(wording.format_label, used)), rows, numbers=range(1, 1 + len(used)))


def _ordered(names: object) -> list[str]:
    """The fewest bits first."""
    return sorted(names, key=lambda name: (knowledge.find_format(name).bits, name))


def memory(plan: Plan) -> Blocks:
    """Every part of memory against the device, and how fast the plan should be."""
    found, budget = plan.memory, plan.request.budget
    parts = {
        "Weights": found.weights_bytes,
        "KV cache": found.kv_cache_bytes,
        "Activations": found.activation_bytes,
        "Overhead": found.overhead_bytes,
        "In all": found.total_bytes,
    }
    limit = found.limit_bytes or 1
    rows = [(name, wording.size(count), f"{100 * count / limit:.1f} %") for name, count in parts.items()]
    limits = [("device", found.limit_bytes)]
    if budget.weight_bytes:
        limits.append(("weights", budget.weight_bytes))
    sequences = wording.plural(budget.sequences, "sequence")
    load = f"{sequences} of {budget.context:,} tokens, KV cache of {budget.kv_bits} bits"
    device = find_hardware(plan.request.hardware).label
    each = f" Each of {found.gpus} GPUs holds this much." if found.gpus > 1 else ""
    return [
        figure(
            lambda dark: charts.memory_bar(found, limits, dark),
            f"Memory in use {wording.size(found.total_bytes)} of {wording.size(found.limit_bytes)}, by part.",
        ),
        Table(("Part", "Size", "Of what is usable"), rows, numbers=(1, 2)),
        Words(f"Planned for {load} on {device}.{each} {plan_speed.sentence(plan.latency)}"),
    ]


def possible(plan: Plan, profile: SensitivityProfile | None, simple: Mapping[str, Plan]) -> Blocks:
    """The Pareto front with the simple plans, and what these are predicted to lose."""
    if profile is None:
        return []
    front = pipeline.pareto_front(profile, plan.request, points=0, most=_POINTS)
    # A loss that was measured with the whole plan in place has no place among predicted ones.
    here = None if plan.predicted.measured else front_chart.point_of(plan)
    measure = frames.SizeMeasure("bits on average", lambda point: point.decided_bits)
    said = front_chart.sentence(front.points)
    caption = "The least predicted loss at every size, with its 95 % interval, beside what one gets without an advisor."
    if here is None:
        caption += " This plan is not drawn: its loss was measured with the whole plan in place, on other text."
    rows = [_simple_row(name, other) for name, other in {"this plan": plan, **simple}.items()]
    heads = ("Plan", "Average bits", "Weights", "Perplexity", "95 % interval", "Change", "KL, nats per token")
    note = (
        "Uniform: every decided layer in one format. Role rule: the guide's 4 bits for MLPs and experts, 8 for all "
        "else. Guide's strategy: 4 bits everywhere and, where that costs too much, 8 for embeddings, LM head and "
        "attention outputs. They ignore the budget and the locks."
    )
    if plan.predicted.measured:
        note += " The loss of this plan was measured, those of the others are predicted: compare them below instead."
    return [
        figure(
            lambda dark: front_chart.pareto_front(front.points, front.simple, here, measure, None, dark), said, caption
        ),
        Table(heads, rows, note, numbers=range(1, len(heads))),
    ]


def _simple_row(name: str, plan: Plan) -> tuple[str, ...]:
    predicted = plan.predicted
    return (
        wording.labelled(name),
        f"{plan.memory.decided_bits:.3f}",
        wording.size(plan.memory.model_weights_bytes),
        wording.number(predicted.perplexity, 4),
        f"{wording.number(predicted.perplexity_low, 4)} to {wording.number(predicted.perplexity_high, 4)}",
        wording.percent(predicted.delta_ppl_pct),
        wording.with_error(predicted.kl, predicted.kl_stderr),
    )


def refinement(plan: Plan) -> Blocks:
    """The plans that competed on held-back text, and what each round won."""
    found = plan.refinement
    if found is None:
        return []
    ranked = sorted(found.contenders, key=lambda one: one.expected_loss)
    rows = [
        (
            wording.labelled(one.name),
            f"{one.decided_bits:.3f}",
            wording.with_error(one.kl, one.kl_stderr),
            wording.with_error(one.delta_nll, one.delta_nll_stderr),
            wording.number(one.expected_loss),
        )
        for one in ranked
    ]
    heads = ("Plan", "Average bits", "KL, nats per token", "Change of NLL", "Ranked by")
    return [
        figure(
            lambda dark: comparison_charts.contender_bars(found, dark),
            "; ".join(
                f"{wording.labelled(one.name)}: KL {wording.with_error(one.kl, one.kl_stderr)} nats per token"
                for one in ranked
            ),
            f"Measured with each whole plan in place on {found.held_back_tokens:,} tokens of {found.text} that no "
            "gradient saw. The diamond is what plans are ranked by.",
        ),
        Table(heads, rows, numbers=range(1, len(heads))),
        Words(verdict.of_rounds(found)),
    ]
