"""Says which layer may have which format and why, between the catalogue and the solver: pure checks over tables.

A rule speaks by returning a Verdict, or stays silent. A layer may have a format when no verdict forbids it; verdicts
with `advice` are shown and change nothing. To add a rule, write a check and append it to RULES.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from advisor.errors import PlanError
from advisor.formats.table import divides
from advisor.knowledge import find_engine, find_format, find_hardware, roles, stored_format
from advisor.types import Catalogue, Engine, Format, Hardware, Layer, LayerGroup, PlanRequest, Role, Verdict


@dataclass(frozen=True)
class Lock:
    """A format that the user fixed for a layer: the `pattern` they wrote and the layer that it matched."""

    format: str
    pattern: str
    layer: str


@dataclass(frozen=True)
class RuleContext:
    """What rules look at besides the layer and the format."""

    hardware: Hardware
    engine: Engine
    catalogue: Catalogue
    request: PlanRequest

    @cached_property
    def locks(self) -> dict[str, Lock]:
        """Layer name -> lock, fused partners included. Raises PlanError for locks that match nothing or disagree."""
        return resolve_locks(self.catalogue, self.engine, self.request.locks)

    def is_original(self, fmt: Format) -> bool:
        return fmt.name == self.catalogue.dtype


@dataclass(frozen=True)
class Rule:
    """A named check; `hard` rules describe what device, engine and format can do, the others what people want."""

    name: str
    check: Callable[[Layer, Format, RuleContext], Verdict | None]
    hard: bool = True


def context_for(catalogue: Catalogue, request: PlanRequest) -> RuleContext:
    """The context of a request. Raises KnowledgeError for unknown names, PlanError when the engine lacks the device."""
    hardware, engine = find_hardware(request.hardware), find_engine(request.engine)
    if hardware.vendor not in engine.vendors:
        raise PlanError(
            f"{engine.label} does not run on {hardware.label} (it runs on {', '.join(engine.vendors)} devices); "
            "choose another engine or device."
        )
    return RuleContext(hardware, engine, catalogue, request)


def judge(layer: Layer, fmt: Format, context: RuleContext, hard_only: bool = False) -> tuple[Verdict, ...]:
    """The verdicts of all rules that speak of this layer in this format; it is allowed when none forbids."""
    spoken = (rule.check(layer, fmt, context) for rule in RULES if rule.hard or not hard_only)
    return tuple(verdict for verdict in spoken if verdict is not None)


def allowed(verdicts: Iterable[Verdict]) -> bool:
    return all(verdict.allowed for verdict in verdicts)


def decision_groups(catalogue: Catalogue, engine: Engine, layer_names: Iterable[str]) -> tuple[LayerGroup, ...]:
    """The named layers in catalogue order, those that `engine` fuses into one kernel together in one group."""
    wanted = set(layer_names)
    members: dict[str, list[Layer]] = {}
    for layer in catalogue.layers:
        if layer.name in wanted:
            members.setdefault(_group_key(layer, engine), []).append(layer)
    return tuple(LayerGroup(name=name, layers=tuple(layers)) for name, layers in members.items())


def _group_key(layer: Layer, engine: Engine) -> str:
    return layer.fused_with if layer.fused_with and layer.fusion in engine.fuses else layer.name


# --------------------------------------------------------------------------------------------- rules


def hardware_support(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Forbids what the device cannot compute with; tells when it only stores or emulates a format."""
    device = context.hardware
    support = device.support[fmt.family]
    if support == "native":
        return None
    reason = {
        "none": f"{device.label} does not compute with {fmt.label}",
        "weight_only": f"{device.label} stores {fmt.label} and computes in 16 bits: it saves memory, not arithmetic",
        "emulated": f"{device.label} emulates {fmt.label} in software: it saves memory and may run slower",
    }[support]
    said = context.hardware.guide.get(fmt.family)
    if said and said != support:
        reason += f" (the guide says: {said})"
    # A plain dtype that the device lacks is loaded in another one of the same size, so it never forbids.
    forbids = support == "none" and fmt.quantized
    return Verdict(
        rule="hardware_support", allowed=not forbids, reason=reason, advice=not forbids, source=device.support_source
    )


def engine_support(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Forbids formats that the engine cannot store; a layer may always keep the model's own dtype."""
    engine = context.engine
    if fmt.name in engine.formats or context.is_original(fmt):
        return None
    reason = f"{engine.label} does not store {fmt.label}"
    return Verdict(rule="engine_support", allowed=False, reason=reason, source=engine.source)


def role_not_quantized(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Forbids quantizing what the engine leaves alone (embedding, LM head, experts) and what nobody quantizes."""
    if not fmt.quantized:
        return None
    engine = context.engine
    if not layer.quantizable:
        return _not_quantized(f"{_things(layer)} are never quantized", roles()[layer.role].source)
    quantizes = {
        Role.EMBEDDING: engine.quantizes_embedding,
        Role.LM_HEAD: engine.quantizes_lm_head,
        Role.EXPERT: engine.quantizes_experts,
    }
    if not quantizes.get(layer.role, True):
        return _not_quantized(f"{engine.label} does not quantize {_things(layer)}", engine.source)
    if layer.input_axis == 0 and not engine.quantizes_conv1d:
        return _not_quantized(f"{engine.label} packs linear modules only, and this is a Conv1D", engine.source)
    if layer.role is Role.EMBEDDING and layer.tied_names and not engine.quantizes_lm_head:
        reason = f"it is also {layer.tied_names[0]}, and {engine.label} does not quantize output layers"
        return _not_quantized(reason, engine.source)
    return None


def group_size(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Forbids group-wise formats whose groups do not divide the layer's input features, also as the engine stores."""
    stored = stored_format(context.engine, fmt) if fmt.name in context.engine.formats else fmt
    for version, who in ((fmt, fmt.label), (stored, f"{fmt.label} in {context.engine.label}")):
        if not divides(version, layer):
            features = layer.matrix_shape[1]
            reason = f"{features} is not divisible by {version.group_size}, so {who} does not fit its input features"
            return Verdict(rule="group_size", allowed=False, reason=reason, source=fmt.source)
    return None


def role_floor(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """The guide's least bits for the layer's role: silent, advice or a ban, as the request says."""
    advice = roles()[layer.role]
    if context.request.role_floors == "off" or not fmt.quantized or fmt.bits >= advice.minimum_bits:
        return None
    enforced = context.request.role_floors == "enforce"
    reason = f"{advice.label}: the guide recommends at least {advice.minimum_bits} bits, {fmt.label} has {fmt.bits}"
    return Verdict(rule="role_floor", allowed=not enforced, reason=reason, advice=not enforced, source=advice.source)


def lock(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Forbids everything but the format that the user locked."""
    held = context.locks.get(layer.name)
    if held is None or held.format == fmt.name:
        return None
    reason = lock_reason(layer, held, context.engine)
    return Verdict(rule="lock", allowed=False, reason=reason, source="your lock")


RULES: tuple[Rule, ...] = (
    Rule("hardware_support", hardware_support),
    Rule("engine_support", engine_support),
    Rule("role_not_quantized", role_not_quantized),
    Rule("group_size", group_size),
    Rule("role_floor", role_floor, hard=False),
    Rule("lock", lock, hard=False),
)


def _not_quantized(reason: str, source: str) -> Verdict:
    return Verdict(rule="role_not_quantized", allowed=False, reason=reason, source=source)


def _things(layer: Layer) -> str:
    plurals = {
        Role.EMBEDDING: "embeddings",
        Role.LM_HEAD: "LM heads",
        Role.EXPERT: "experts",
        Role.ROUTER: "routers",
        Role.NORM: "norms",
    }
    return plurals.get(layer.role, "biases and other parameters that are not matrices")


# --------------------------------------------------------------------------------------------- locks


def resolve_locks(catalogue: Catalogue, engine: Engine, locks: dict[str, str]) -> dict[str, Lock]:
    """Layer name -> lock. A lock is a layer's exact name, or a regular expression that matches whole names.

    An exact name wins over expressions. A lock on one layer of a fused group holds for the whole group. Raises
    PlanError when a lock is no valid expression, matches no layer, or contradicts another one; KnowledgeError when its
    format is unknown.
    """
    held: dict[str, Lock] = {}
    by_name = catalogue.by_name()
    # Exact names last: they replace what an expression said.
    for pattern, name in sorted(locks.items(), key=lambda item: item[0] in by_name):
        find_format(name)
        exact = pattern in by_name
        for layer in [pattern] if exact else _matches(pattern, catalogue):
            before = held.get(layer)
            if before is not None and before.format != name and not exact:
                raise PlanError(
                    f"The locks '{before.pattern}' and '{pattern}' give '{layer}' two formats, {before.format} and "
                    f"{name}; remove one of them or make it match less."
                )
            held[layer] = Lock(name, pattern, layer)
    return _spread_over_groups(held, catalogue, engine)


def _matches(pattern: str, catalogue: Catalogue) -> list[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise PlanError(
            f"The lock '{pattern}' is neither a layer's name nor a valid regular expression ({error}); correct it."
        ) from error
    found = [layer.name for layer in catalogue.quantizable if expression.fullmatch(layer.name)]
    if not found:
        raise PlanError(
            f"The lock '{pattern}' matches no layer of {catalogue.model.name} that can be quantized; write a layer's "
            "whole name, or a regular expression that matches whole names."
        )
    return found


def _spread_over_groups(held: dict[str, Lock], catalogue: Catalogue, engine: Engine) -> dict[str, Lock]:
    spread = dict(held)
    for group in decision_groups(catalogue, engine, (layer.name for layer in catalogue.layers)):
        locked = [held[layer.name] for layer in group.layers if layer.name in held]
        if len({one.format for one in locked}) > 1:
            first, second = locked[0], next(one for one in locked if one.format != locked[0].format)
            raise PlanError(
                f"{engine.label} fuses '{first.layer}' and '{second.layer}', but they are locked to {first.format} and "
                f"{second.format}; lock both to the same format."
            )
        for layer in group.layers if locked else ():
            spread.setdefault(layer.name, locked[0])
    return spread


def lock_reason(layer: Layer, held: Lock, engine: Engine) -> str:
    """Says in words where a lock comes from."""
    label = find_format(held.format).label
    if held.layer != layer.name:
        return f"Locked to {label} with '{held.layer}', which you locked and which {engine.label} fuses with this layer"
    by = "" if held.pattern == layer.name else f" by '{held.pattern}'"
    return f"Locked by you to {label}{by}"


def refuse_impossible_locks(context: RuleContext) -> None:
    """Raises PlanError for the first lock to a format that another rule forbids, naming the rule and the layer."""
    for layer in context.catalogue.layers:
        held = context.locks.get(layer.name)
        if held is None:
            continue
        for verdict in judge(layer, find_format(held.format), context):
            if not verdict.allowed:
                raise PlanError(
                    f"The lock '{held.pattern}' asks for {held.format} on '{layer.name}', which the rule "
                    f"{verdict.rule} forbids: {verdict.reason}; {_remedy(verdict.rule)}."
                )


def _remedy(rule: str) -> str:
    if rule == "role_floor":
        return "change the lock, or set the role floors to advise"
    return "change the lock"
