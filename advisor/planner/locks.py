"""Which layers the user fixed or took out: read from a request, before the rules.

An exclusion is a lock to the model's own dtype; both are matched, spread over fused groups and refused alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from advisor import layer_names
from advisor.errors import PlanError
from advisor.knowledge import find_format
from advisor.planner.groups import decision_groups
from advisor.types import Catalogue, Engine, Layer


@dataclass(frozen=True)
class Lock:
    """A format that the user fixed for a layer: the `pattern` they wrote and the `layer` that it matched."""

    format: str
    pattern: str
    layer: str
    excluded: bool = False

    @property
    def exact(self) -> bool:
        return self.pattern == self.layer

    @property
    def what(self) -> str:
        """The thing that was written, for sentences."""
        return f"{'exclusion' if self.excluded else 'lock'} '{self.pattern}'"


def resolve_locks(
    catalogue: Catalogue, engine: Engine, locks: Mapping[str, str], excluded: Iterable[str] = ()
) -> dict[str, Lock]:
    """Layer name -> lock, those of exclusions included.

    Layers are named as `layer_names` reads them. An exact name wins over blocks and expressions. What holds for one
    layer of a fused group holds for all of it.

    Raises:
        PlanError: no valid expression, no layer matched, or two of them contradict each other.
        KnowledgeError: a format is unknown.
    """
    wanted = [(pattern, find_format(fmt).name, False) for pattern, fmt in locks.items()]
    wanted += [(pattern, catalogue.dtype, True) for pattern in excluded]
    held: dict[str, Lock] = {}
    for pattern, fmt, is_excluded in wanted:
        for layer in layer_names.named(pattern, catalogue, "exclusion" if is_excluded else "lock"):
            lock = Lock(fmt, pattern, layer, is_excluded)
            before = held.get(layer)
            if before is not None and before.exact == lock.exact and before.format != fmt:
                raise PlanError(
                    f"The {before.what} and the {lock.what} give '{layer}' two formats, {before.format} and {fmt}; "
                    "remove one of them or make it match less."
                )
            if before is None or lock.exact:
                held[layer] = lock
    return _spread_over_groups(held, catalogue, engine)


def lock_reason(layer: Layer, held: Lock, engine: Engine) -> str:
    """Says in words where a lock comes from."""
    label = find_format(held.format).label
    if held.layer != layer.name:
        done, verb = (f"Kept at {label}", "excluded") if held.excluded else (f"Locked to {label}", "locked")
        return f"{done} with '{held.layer}', which you {verb} and which {engine.label} fuses with this layer"
    pattern = "" if held.exact else f" by '{held.pattern}'"
    return f"Excluded{pattern}: kept at {label}" if held.excluded else f"Locked by you to {label}{pattern}"


def _spread_over_groups(held: dict[str, Lock], catalogue: Catalogue, engine: Engine) -> dict[str, Lock]:
    spread = dict(held)
    for group in decision_groups(catalogue, engine, (layer.name for layer in catalogue.layers)) if held else ():
        locked = [held[layer.name] for layer in group.layers if layer.name in held]
        other = next((one for one in locked if one.format != locked[0].format), None)
        if other is not None:
            raise PlanError(
                f"{engine.label} fuses '{locked[0].layer}' and '{other.layer}', but the {locked[0].what} keeps the one "
                f"at {locked[0].format} and the {other.what} the other at {other.format}; lock both to the same format "
                "or exclude both."
            )
        for layer in group.layers if locked else ():
            spread.setdefault(layer.name, locked[0])
    return spread
