"""Plans and fronts in words and tables for the command line."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advisor import knowledge
from advisor.cli.output import speed_text, table
from advisor.planner.refine import REFINED
from advisor.types import Catalogue, Front, FrontPoint, MemoryEstimate, Plan, Prediction, Refinement
from advisor.units import duration, number, plural, size


def plan_summary(plan: Plan) -> dict[str, Any]:
    return {
        "model": plan.model.model_dump(),
        "formats": dict(Counter(plan.assignments.values())),
        "predicted": plan.predicted.model_dump(),
        "memory": plan.memory.model_dump()
        | {
            "total_bytes": plan.memory.total_bytes,
            "all_gpus_bytes": plan.memory.all_gpus_bytes,
            "fits": plan.memory.fits,
        },
        "latency": plan.latency and plan.latency.model_dump() | {"tokens_per_s": plan.latency.tokens_per_s},
        "optimality_gap": plan.optimality_gap,
        "refinement": plan.refinement and plan.refinement.model_dump(),
    }


def plan_text(
    plan: Plan, by_scores: Plan, catalogue: Catalogue, out: Path, simple: Mapping[str, Plan], remarks: Sequence[str]
) -> str:
    """What a plan is and what it should do.

    Args:
        by_scores: the plan with what scores predict of it, which stands beside the simple ones.
    """
    memory, predicted = plan.memory, plan.predicted
    roles: dict[str, Counter] = defaultdict(Counter)
    layers = catalogue.by_name()
    for name, fmt in plan.assignments.items():
        roles[layers[name].role.value][fmt] += 1
    formats = sorted(set(plan.assignments.values()), key=lambda name: knowledge.find_format(name).bits)
    rows = [(role, *(str(counts[fmt] or "") for fmt in formats)) for role, counts in roles.items()]
    parts = (
        ("weights", memory.weights_bytes),
        ("KV cache", memory.kv_cache_bytes),
        ("activations", memory.activation_bytes),
        ("overhead", memory.overhead_bytes),
    )
    device = plan.request.hardware if memory.gpus == 1 else f"{memory.gpus} x {plan.request.hardware}"
    held = f"the weights were {size(memory.original_weights_bytes)}"
    if memory.gpus > 1:
        held = f"on each of {memory.gpus} GPUs, weights {size(memory.model_weights_bytes)} in all; {held}"
    return "\n".join(
        [
            f"{plan.model.name} on {device} with {plan.request.engine}: {_sought(plan)}",
            table(("role (layers)", *formats), rows),
            f"average bits    {memory.decided_bits:.3f} over {plural(len(plan.assignments), 'layer')}",
            f"perplexity      {predicted.perplexity:.2f} {_how(predicted)} ({predicted.perplexity_low:.2f} to "
            f"{predicted.perplexity_high:.2f}), {predicted.base_perplexity:.2f} unquantized",
            "memory          " + ", ".join(f"{name} {size(value)}" for name, value in parts),
            f"                {size(memory.total_bytes)} of {size(memory.limit_bytes)} usable{_beyond(memory)}; {held}",
            *([f"speed           {speed_text(plan.latency)}"] if plan.latency else []),
            *([f"optimality      {_gap_text(plan)}"] if plan.optimality_gap is not None else []),
            *([refinement_text(plan.refinement)] if plan.refinement else []),
            *([_simple_text(by_scores, simple, ", by scores" if predicted.measured else "")] if simple else []),
            *(f"note            {remark}" for remark in remarks),
            f"wrote {out}, with the reason of every layer (`report` shows them)",
        ]
    )


def _beyond(memory: MemoryEstimate) -> str:
    """By how much a plan whose limit is on its weights is too large for the device; empty where it fits."""
    if memory.fits:
        return ""
    return f", {size(memory.total_bytes - memory.limit_bytes)} too much for the device (--vram plans for what it has)"


def changes(given: Plan, nearest: Plan) -> dict[str, Any]:
    """What the nearest plan of a given one has otherwise, and what is predicted of it where that is known."""
    changed = {
        name: [given.assignments.get(name), fmt]
        for name, fmt in nearest.assignments.items()
        if given.assignments.get(name) != fmt
    }
    predicted = nearest.own_prediction
    return {"changed": changed, "predicted": predicted and predicted.model_dump()}


def _sought(plan: Plan) -> str:
    """What the plan is the best of, in words: `least loss within 4.5 bits`."""
    budget, limits = plan.request.budget, []
    if budget.weight_bits is not None:
        limits.append(f"{budget.weight_bits:g} bits")
    elif budget.weight_bytes is not None:
        limits.append(f"{size(budget.weight_bytes)} of weights")
    elif budget.vram_bytes is not None:
        limits.append(f"{size(budget.vram_bytes)} of memory")
    if budget.max_ppl_increase is not None:
        limits.append(f"a perplexity no more than {100 * budget.max_ppl_increase:g} % higher")
    goal = "most speed" if budget.fastest else "least loss" if budget.limits_memory else "least memory"
    return f"{goal} within {' and '.join(limits)}"


def _gap_text(plan: Plan) -> str:
    if plan.optimality_gap == 0:
        return "proven: no plan within the limits has a better sum of scores"
    return f"what scores add up to could be up to {number(100 * plan.optimality_gap, 2)} % better within the limits"


def _how(predicted: Prediction) -> str:
    return "to expect after a run on text held back from its making" if predicted.measured else "predicted"


def _simple_text(this: Plan, simple: Mapping[str, Plan], by_scores: str) -> str:
    """The simple plans beside a plan, all by what the same scores predict of them."""
    largest = this.memory.model_weights_bytes
    rows = [_simple_row(name, other, largest) for name, other in [(f"this plan{by_scores}", this), *simple.items()]]
    return table(("beside simple plans", "bits", "weights", "perplexity", ""), rows)


def _simple_row(name: str, plan: Plan, largest: int) -> tuple[str, ...]:
    predicted, weights = plan.predicted, plan.memory.model_weights_bytes
    interval = f"{predicted.perplexity_low:.2f} to {predicted.perplexity_high:.2f}"
    return (
        name,
        f"{plan.memory.decided_bits:.3f}",
        size(weights),
        f"{predicted.perplexity:.2f} ({interval})",
        "larger" if weights > largest else "",
    )


def refinement_text(found: Refinement) -> str:
    """Who won on the held-back text and by how much, and what each round did to both parts of the text."""
    best = min(found.contenders, key=lambda one: one.expected_loss)
    rows = [
        (
            one.name,
            f"{one.decided_bits:.3f}",
            f"{one.kl:.4f} ± {one.kl_stderr:.4f}",
            f"{one.delta_nll:.4f} ± {one.delta_nll_stderr:.4f}",
            "" if one is best else f"+{one.expected_loss - best.expected_loss:.4f}",
        )
        for one in sorted(found.contenders, key=lambda one: one.expected_loss)
    ]
    start = min((one for one in found.contenders if one.name != REFINED), key=lambda one: one.expected_loss)
    last = found.rounds[-1] if found.rounds else None
    fitted = (
        f"KL went from {found.calibration_kl_before:.4f} to {last.calibration_kl:.4f} where gradients were taken, from "
        f"{start.kl:.4f} to {last.kl:.4f} where they were not"
        if last
        else "no round was run"
    )
    took = f"{plural(len(found.rounds), 'round')} in {duration(found.seconds)}"
    return "\n".join(
        [
            f"refined         {took}: {found.winner} wins; {fitted}",
            table((f"on {found.held_back_tokens:,} held-back tokens", "bits", "KL", "nats", "behind by"), rows),
            "                behind by: of the loss to expect, KL and, of the nats beyond it, what exceeds their error",
        ]
    )


def front_text(front: Front, points: int, out: Path | None, remarks: Sequence[str] = ()) -> str:
    """About `points` evenly spaced points of the front, and the simple plans between them, smallest first."""
    rows = [("", point) for point in _spaced(front.points, points)] + list(front.marked_simple.items())
    rows.sort(key=lambda row: row[1].bytes)
    smallest, largest = front.points[0], front.points[-1]
    lines = [
        f"{front.model.name} on {front.request.hardware} with {front.request.engine}",
        f"{plural(len(front.points), 'plan')}, none of which a smaller one equals; some, and simple ones:",
        table(
            ("bits", "weights", "in all", "KL", "perplexity", "tokens/s", ""),
            [_front_row(name, point) for name, point in rows],
        ),
        f"the whole deployment takes from {size(smallest.bytes)} to {size(largest.bytes)}",
    ]
    if front.limit_bytes is not None:
        missing = smallest.bytes - front.limit_bytes
        fits = f"the smallest plan misses it by {size(missing)}" if missing > 0 else "plans up to that fit"
        lines.append(f"{size(front.limit_bytes)} may be used: {fits}")
    gap = max(point.gap for point in front.points)
    if gap:
        lines.append(f"sums of scores are within {number(100 * gap, 2)} % of the least at their size")
    lines += remarks
    if out:
        lines.append(f"wrote {out}")
    return "\n".join(lines)


def _spaced(points: Sequence[FrontPoint], count: int) -> list[FrontPoint]:
    """The ends, and of those between them the nearest to evenly spaced sizes."""
    first, last = points[0].bytes, points[-1].bytes
    wanted = [first + (last - first) * number / (count + 1) for number in range(count + 2)]
    near = [min(points, key=lambda point: abs(point.bytes - size)) for size in wanted]
    return list(dict.fromkeys(near))


def _front_row(name: str, point: FrontPoint) -> tuple[str, ...]:
    predicted = point.predicted
    return (
        f"{point.decided_bits:.3f}",
        size(point.weights_bytes),
        size(point.bytes),
        f"{predicted.kl:.4f}",
        f"{predicted.perplexity:.2f} ({predicted.perplexity_low:.2f} to {predicted.perplexity_high:.2f})",
        f"{point.tokens_per_s:,.0f}" if point.tokens_per_s is not None else "",
        name,
    )
