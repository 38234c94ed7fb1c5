"""What rules look at besides a layer and a format: device, engine, wishes, and which layers are of one kind. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from advisor.errors import PlanError, WaysOut
from advisor.formats.table import multiplies_input
from advisor.knowledge import (
    batch_marks,
    find_engine,
    find_hardware,
    formats,
    misfit,
    multiplies_rounded,
    roles,
    targets,
)
from advisor.planner.groups import decision_groups
from advisor.planner.locks import Lock, resolve_locks
from advisor.types import BatchMarks, Catalogue, Engine, Format, Hardware, Layer, PlanRequest, Role, RoleAdvice


@dataclass(frozen=True)
class RuleContext:
    """What rules look at besides the layer and the format; `only` is the one quantized format of the plan, if any."""

    hardware: Hardware
    engine: Engine
    catalogue: Catalogue
    request: PlanRequest
    only: str | None = None

    @cached_property
    def locks(self) -> dict[str, Lock]:
        """Layer name -> lock or exclusion, fused partners included. Raises PlanError like `resolve_locks`."""
        return resolve_locks(self.catalogue, self.engine, self.request.locks, self.request.excluded)

    @cached_property
    def partners(self) -> dict[str, tuple[str, ...]]:
        """Layer name -> the others that the engine computes in one kernel with it."""
        groups = decision_groups(self.catalogue, self.engine, (layer.name for layer in self.catalogue.layers))
        return {
            layer.name: tuple(other.name for other in group.layers if other.name != layer.name)
            for group in groups
            for layer in group.layers
        }

    @cached_property
    def kinds(self) -> dict[str, int]:
        """Layer name -> the number of its kind: of layers of one kind, every rule says the same.

        Rules look at what a layer is and at what it is fused with, not at its block; a locked layer is its own kind.
        """
        numbers: dict[tuple, int] = {}
        return {layer.name: numbers.setdefault(self._looks(layer), len(numbers)) for layer in self.catalogue.layers}

    def _looks(self, layer: Layer) -> tuple:
        partners = tuple(name.rsplit(".", 1)[-1] for name in self.partners.get(layer.name, ()))
        own = layer.name if layer.name in self.locks else None
        looks = layer.role, layer.shape, layer.input_axis, layer.quantizable, layer.tied_names
        return *looks, multiplies_input(layer), partners, own

    @cached_property
    def computed_in_8_bits(self) -> tuple[str, ...]:
        """Labels of the formats that engine and device multiply in 8 bits, activations included."""
        known = (formats()[name] for name in self.engine.formats)
        return tuple(fmt.label for fmt in known if multiplies_rounded(self.engine, fmt, self.hardware))

    @cached_property
    def roles(self) -> dict[Role, RoleAdvice]:
        return roles()

    @cached_property
    def batch_marks(self) -> BatchMarks:
        return batch_marks()

    def is_original(self, fmt: Format) -> bool:
        return fmt.name == self.catalogue.dtype


def context_for(catalogue: Catalogue, request: PlanRequest) -> RuleContext:
    """The context of a request. Raises KnowledgeError for unknown names, PlanError when the engine lacks the device."""
    hardware, engine = find_hardware(request.hardware), find_engine(request.engine)
    if hardware.vendor not in engine.vendors:
        raise PlanError(
            f"{engine.label} does not run on {hardware.label} (it runs on {', '.join(engine.vendors)} devices); "
            "choose another engine or device.",
            _another_engine(hardware, request),
        )
    return RuleContext(hardware, engine, catalogue, request)


def _another_engine(hardware: Hardware, request: PlanRequest) -> WaysOut:
    """The first engine, in the order of the targets that they load, that does all of it on the device."""
    budget = request.budget
    for name in dict.fromkeys(name for target in targets().values() for name in target.engines):
        engine = find_engine(name)
        if not misfit(hardware, engine, budget.gpus, budget.kv_bits, request.formats):
            return {f"plan for {engine.label}": {"engine": name}}
    return {}
