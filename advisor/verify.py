"""Holds what an export's files say of themselves against the plan, layer by layer; no torch, no files."""

from __future__ import annotations

from collections.abc import Mapping

from advisor.knowledge import find_engine, find_format, stored_format
from advisor.memory import kept_format, stored_bytes
from advisor.stored import Stored
from advisor.types import Catalogue, Engine, Plan
from advisor.units import plural


def expected(catalogue: Catalogue, plan: Plan, engine: Engine | None = None) -> dict[str, Stored]:
    """Layer name -> what the files must hold, for every layer of the catalogue, as `engine` stores it.

    Layers that the plan leaves out are as the engine keeps them. Without an engine it is that of the plan's request.
    Raises KnowledgeError when the engine does not store a format of the plan.
    """
    engine = engine or find_engine(plan.request.engine)
    formats = {
        layer.name: find_format(plan.assignments[layer.name])
        if layer.name in plan.assignments
        else kept_format(engine, catalogue, layer)
        for layer in catalogue.layers
    }
    return {
        layer.name: Stored(
            format=formats[layer.name].name,
            group_size=stored_format(engine, formats[layer.name]).group_size,
            bytes=stored_bytes(engine, formats[layer.name], layer),
        )
        for layer in catalogue.layers
    }


def differences(
    catalogue: Catalogue, plan: Plan, stored: Mapping[str, Stored], engine: Engine | None = None
) -> list[str]:
    """What the files hold other than the plan says: one sentence a layer, in the catalogue's order.

    Compared are codes, group size and bytes of every layer; a layer that is missing, and one that nobody planned, are
    differences too. Raises what `expected` raises.
    """
    engine = engine or find_engine(plan.request.engine)
    return compare(expected(catalogue, plan, engine), stored, engine)


def compare(wanted: Mapping[str, Stored], stored: Mapping[str, Stored], engine: Engine) -> list[str]:
    """What the files hold other than they must: one sentence a layer, as `engine` tells formats apart."""
    found = [_difference(name, wanted[name], stored.get(name), engine) for name in wanted]
    found += [f"{name}: the files hold it, but the model has no such layer." for name in stored if name not in wanted]
    return [sentence for sentence in found if sentence]


def _difference(name: str, wanted: Stored, found: Stored | None, engine: Engine) -> str:
    if found is None:
        return f"{name}: {_said(wanted)} was planned, but the files do not hold it."
    if _codes(wanted, engine) == _codes(found, engine) and (wanted.group_size, wanted.bytes) == (
        found.group_size,
        found.bytes,
    ):
        return ""
    return f"{name}: {_said(wanted)} was planned, but the files hold {_said(found)}."


def _codes(stored: Stored, engine: Engine) -> tuple[object, ...]:
    """What tells formats apart apart from their groups: the engine's own type, where it has several of ours in one."""
    own, fmt = engine.formats.get(stored.format), find_format(stored.format)
    if own is not None and own.stored_as:
        return (own.stored_as,)
    return fmt.kind, fmt.family, fmt.bits, fmt.symmetric, fmt.activation_bits


def _said(stored: Stored) -> str:
    fmt = find_format(stored.format)
    count = plural(stored.bytes, "byte")
    scales = f"a scale per {stored.group_size} weights" if stored.group_size else "a scale per channel"
    return f"{fmt.name} ({scales}, {count})" if fmt.quantized else f"{fmt.name} ({count})"
