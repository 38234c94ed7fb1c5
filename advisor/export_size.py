"""What an export's files take beside what was planned, and why: its target may store formats otherwise. No torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from advisor.knowledge import find_engine, find_format
from advisor.memory import stored_bytes
from advisor.stored import Stored
from advisor.types import Catalogue, Layer, Plan, Target
from advisor.units import size

_BYTE = 8


def size_fields(plan: Plan, catalogue: Catalogue, target: Target, stored: Mapping[str, Stored]) -> dict[str, object]:
    """The fields of an ExportRecord that say what files with these layers (name -> what they hold) take.

    Raises KnowledgeError where the plan's engine does not store a format of the plan.
    """
    held, planned = sum(one.bytes for one in stored.values()), plan.memory.model_weights_bytes
    bits = _bits((layer, stored[layer.name].bytes) for layer in _decided(plan, catalogue))
    as_planned = size(held) == size(planned)
    note = "" if as_planned else f"{_difference(held, planned)}: {_why(plan, catalogue, target, stored, held)}"
    # A limit of bits is one of the formats' own layout, which the plan's engine need not have either.
    counted = bits if held > planned and not as_planned else plan.memory.decided_bits
    over = _over_limit(plan, target, held, counted) if target.packed else ""
    return {"bytes": held, "decided_bits": bits, "size_note": note, "over_limit": over}


def _difference(held: int, planned: int) -> str:
    return f"{size(held)}, {size(abs(held - planned))} {'more' if held > planned else 'less'} than planned"


def _why(plan: Plan, catalogue: Catalogue, target: Target, stored: Mapping[str, Stored], held: int) -> str:
    """What makes most of the difference, from the tables of the plan's engine and of the target's."""
    if not target.packed:
        return "the files hold values that are no longer packed"
    engine, sign = find_engine(plan.request.engine), 1 if held > plan.memory.model_weights_bytes else -1
    apart, layers = Counter(), defaultdict(list)
    for layer in _decided(plan, catalogue):
        name = plan.assignments[layer.name]
        planned, found = stored_bytes(engine, find_format(name), layer), stored[layer.name].bytes
        apart[name] += sign * (found - planned)
        layers[name].append((layer, planned, found))
    [(name, most)] = apart.most_common(1)
    if most <= 0:
        return f"{target.label} keeps layers that the plan leaves alone otherwise than {engine.label} does"
    fmt, own = find_format(name), find_engine(target.stored_by).formats.get(name)
    if sign > 0 and own is not None and (own.bits or 0) > fmt.bits:
        return f"{target.label} keeps codes of {fmt.bits} bits in {_bits_said(own.bits)} each"
    here, there = (_bits((layer, row[at]) for layer, *row in layers[name]) for at in (1, 0))
    return f"{target.label} takes {here:.2f} bits a weight for {name}, and {engine.label} {there:.2f}"


def _over_limit(plan: Plan, target: Target, held: int, bits: float) -> str:
    """Which limit of memory the files do not keep, with what to do; empty where there is none."""
    budget, memory = plan.request.budget, plan.memory
    needed = memory.total_bytes + held - memory.model_weights_bytes
    if budget.weight_bits is not None and bits > budget.weight_bits:
        said = f"the files take {bits:.2f} bits on average, and the plan was limited to {budget.weight_bits:g}"
    elif budget.weight_bytes is not None and held > budget.weight_bytes:
        said = f"the files take {size(held)}, and the plan was limited to {size(budget.weight_bytes)}"
    elif budget.vram_bytes is not None and budget.gpus == 1 and needed > memory.limit_bytes:
        said = f"with cache and activations the files need {size(needed)} of {size(memory.limit_bytes)}"
    else:
        return ""
    again = target.stored_by == plan.request.engine
    return f"{said}: plan {'again' if again else f'for {find_engine(target.stored_by).label}'} to keep the limit"


def _decided(plan: Plan, catalogue: Catalogue) -> list[Layer]:
    return [layer for layer in catalogue.layers if layer.name in plan.assignments]


def _bits(layers: Iterable[tuple[Layer, int]]) -> float:
    """Average bits per weight of layers that take so many bytes each."""
    found = list(layers)
    return _BYTE * sum(count for _, count in found) / sum(layer.parameters for layer, _ in found)


def _bits_said(bits: int) -> str:
    return "a byte" if bits == _BYTE else f"{bits} bits"
