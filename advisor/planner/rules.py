"""Says which layer may have which format and why, between the catalogue and the solver: pure checks over tables.

A rule speaks by returning a Verdict, or stays silent. A layer may have a format when no verdict forbids it; verdicts
with `advice` are shown and forbid nothing, and those with a `price` add it to the loss that the solver sees. To add a
rule, write a check and append it to RULES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from advisor.errors import PlanError
from advisor.formats.table import multiplies_input
from advisor.knowledge import (
    find_format,
    has_kernel,
)
from advisor.planner.locks import lock_reason
from advisor.planner.rule_context import RuleContext
from advisor.sharding import shard
from advisor.types import Format, Layer, Role, Verdict

# What an advised floor costs, in nats per token and layer: it decides between formats that measured the same (two that
# lose nothing, say), and all layers of the largest models together stay below a millionth of a nat.
FLOOR_PRICE = 1e-9


@dataclass(frozen=True)
class Rule:
    """A named check; `hard` rules describe what device, engine and format can do, the others what people want."""

    name: str
    check: Callable[[Layer, Format, RuleContext], Verdict | None]
    hard: bool = True


def judge(layer: Layer, fmt: Format, context: RuleContext, hard_only: bool = False) -> tuple[Verdict, ...]:
    """The verdicts of all rules that speak of this layer in this format; it is allowed when none forbids."""
    spoken = (rule.check(layer, fmt, context) for rule in RULES if rule.hard or not hard_only)
    return tuple(verdict for verdict in spoken if verdict is not None)


def allowed(verdicts: Iterable[Verdict]) -> bool:
    return all(verdict.allowed for verdict in verdicts)


def refuse_impossible_locks(context: RuleContext) -> None:
    """Raises PlanError for the first lock to a format that another rule forbids, naming the rule and the layer."""
    for layer in context.catalogue.layers:
        held = context.locks.get(layer.name)
        if held is None:
            continue
        for verdict in judge(layer, find_format(held.format), context):
            if not verdict.allowed:
                floors = ", or set the role floors to advise" if verdict.rule == "role_floor" else ""
                raise PlanError(
                    f"The {held.what} asks for {held.format} on '{layer.name}', which the rule {verdict.rule} forbids: "
                    f"{verdict.reason}; change the lock{floors}."
                )


# ------------------------------------------------------------------------- what the hardware can do


def hardware_support(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Forbids what the device cannot compute with; tells when it only stores or emulates a format.

    Emulation is told and not priced: it costs time, which no number of nats stands for.
    """
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


def quantized_activations(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Forbids rounding activations where the device has no matrix units for it, or the layer no input of its own."""
    if not fmt.quantizes_activations:
        return None
    device = context.hardware
    if not multiplies_input(layer):
        what = (
            "an embedding looks rows up" if layer.role is Role.EMBEDDING else "a fused weight is no module of its own"
        )
        reason = f"{what}, so there is no input that {fmt.label} could round"
        return _forbidden("quantized_activations", reason, fmt.source)
    if device.support[fmt.family] != "native":
        reason = f"{device.label} has no matrix units for {fmt.label}"
        return _forbidden("quantized_activations", reason, device.support_source)
    return None


# --------------------------------------------------------------------------- what the engine can do


def engine_support(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Forbids formats that the engine cannot store; a layer may always keep the model's own dtype."""
    engine, capability = context.engine, context.hardware.compute_capability
    own = engine.formats.get(fmt.name)
    if own is None and not context.is_original(fmt):
        return _forbidden("engine_support", f"{engine.label} does not store {fmt.label}", engine.source)
    if own is None or has_kernel(engine, fmt, context.hardware):
        return None
    least, below = own.least_capability or 0.0, own.below_capability
    needed = f"{least:g} or more" if capability.value < least else f"less than {below:g}"
    reason = f"{engine.label} has no kernel for {fmt.label} here: it takes compute capability {needed}"
    return _forbidden("engine_support", f"{reason}, and {context.hardware.label} has {capability.value:g}", own.note)


def stays_high(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Forbids quantizing norms, routers, and what is no matrix: tiny, and everything after them depends on them."""
    if not fmt.quantized or layer.quantizable:
        return None
    things = {Role.NORM: "norms", Role.ROUTER: "routers"}.get(layer.role, "parameters that are not matrices")
    return _forbidden("stays_high", f"{things} are never quantized", context.roles[layer.role].source)


def role_not_quantized(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Forbids quantizing what the engine leaves alone: embeddings, LM heads, experts, Conv1D modules."""
    if not fmt.quantized or not layer.quantizable:
        return None
    engine = context.engine
    left_alone = {
        Role.EMBEDDING: (not engine.quantizes_embedding, "embeddings"),
        Role.LM_HEAD: (not engine.quantizes_lm_head, "LM heads"),
        Role.EXPERT: (not engine.quantizes_experts, "experts"),
    }
    applies, things = left_alone.get(layer.role, (False, ""))
    own, reason = engine.formats.get(fmt.name), None
    if applies:
        reason = f"{engine.label} does not quantize {things}"
    elif layer.role is Role.EXPERT and own and not own.experts:
        reason = f"{engine.label} has no kernel for experts in {fmt.label}"
    elif layer.input_axis == 0 and not engine.quantizes_conv1d:
        reason = f"{engine.label} packs linear modules only, and this is a Conv1D"
    elif layer.role is Role.EMBEDDING and layer.tied_names and not engine.quantizes_lm_head:
        reason = f"it is also {layer.tied_names[0]}, and {engine.label} does not quantize output layers"
    return _forbidden("role_not_quantized", reason, engine.source) if reason else None


def group_size(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Forbids group-wise formats whose groups do not divide the layer's input features, also as the engine stores."""
    gpus = context.request.budget.gpus
    features, own = shard(layer, context.catalogue, gpus).matrix_shape[1], context.engine.formats.get(fmt.name)
    each = f"{features} on each of {gpus} GPUs" if features != layer.matrix_shape[1] else f"{features}"
    stored = own.group_size if own else None
    for size, who in ((fmt.group_size, fmt.label), (stored, f"{fmt.label} in {context.engine.label}")):
        if size and features % size:
            reason = f"{each} is not divisible by {size}, so {who} does not fit its input features"
            return _forbidden("group_size", reason, fmt.source)
    return None


def runtime_rounding(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Tells that the engine rounds activations where the format does not: no score of rounded weights counts that."""
    own = context.engine.formats.get(fmt.name)
    if own is None or own.activation_bits is None or fmt.quantizes_activations or not layer.quantizable:
        return None
    reason = (
        f"{context.engine.label} also rounds activations to {own.activation_bits} bits, outliers aside, when it "
        f"computes with {fmt.label}; the scores count rounded weights only, so expect somewhat more loss"
    )
    return Verdict(rule="runtime_rounding", allowed=True, reason=reason, advice=True, source=own.note)


def fused_group(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Tells which layers the engine computes in one kernel: they are decided together (advisor.planner.groups)."""
    partners = context.partners.get(layer.name, ())
    if not partners or not layer.quantizable:
        return None
    names = ", ".join(name.rsplit(".", 1)[-1] for name in partners)
    reason = f"{context.engine.label} computes it in one kernel with {names}, so they share one format"
    return Verdict(rule="fused_group", allowed=True, reason=reason, advice=True, source=context.engine.source)


# ------------------------------------------------------------------------------- what people want


def role_floor(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """The least bits of the layer's role, the guide's or the user's: silent, advice at a price, or a ban."""
    request, advice = context.request, context.roles[layer.role]
    own = request.floor_bits.get(layer.role)
    least = advice.minimum_bits if own is None else own
    if request.role_floors == "off" or not fmt.quantized or fmt.bits >= least:
        return None
    who, source = ("the guide recommends", advice.source) if own is None else ("you ask for", "your floor")
    reason = f"{advice.label}: {who} at least {least} bits, {fmt.label} has {fmt.bits}"
    if request.role_floors == "enforce":
        return _forbidden("role_floor", reason, source)
    said = f"{reason}; advice only"
    return Verdict(rule="role_floor", allowed=True, reason=said, advice=True, source=source, price=FLOOR_PRICE)


def batch_size(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Tells which kind of format suits the number of sequences: few are bound by bandwidth, many by arithmetic too.

    Advice without a price: it is about speed, and how much depends on kernels that nobody measured here.
    """
    marks, sequences = context.batch_marks, context.request.budget.sequences
    if fmt.quantizes_activations and sequences <= marks.small.value:
        few = "one sequence" if sequences == 1 else f"{sequences} sequences at once"
        reason = f"decoding {few} waits for weights, not for arithmetic: rounding activations too saves no time"
        return Verdict(rule="batch_size", allowed=True, reason=reason, advice=True, source=marks.small.source)
    weight_only = fmt.quantized and not fmt.quantizes_activations
    if weight_only and sequences >= marks.large.value and context.computed_in_8_bits:
        faster = " or ".join(context.computed_in_8_bits)
        reason = f"{sequences} sequences at once are bound by arithmetic too: {faster} computes in 8 bits"
        return Verdict(rule="batch_size", allowed=True, reason=reason, advice=True, source=marks.large.source)
    return None


def chosen_formats(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Forbids formats outside the user's list; the model's own dtype and what a lock asks for are always in it."""
    wanted, held = context.request.formats, context.locks.get(layer.name)
    if not wanted or fmt.name in wanted or context.is_original(fmt) or (held and held.format == fmt.name):
        return None
    reason = f"{fmt.label} is not among the formats to choose from"
    return _forbidden("chosen_formats", reason, "your choice of formats")


def one_format(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Forbids a second quantized format where the engine holds one (`candidates.parts`)."""
    if context.only is None or not fmt.quantized or fmt.name == context.only:
        return None
    reason = f"{context.engine.label} holds one quantized format, and this plan has {find_format(context.only).label}"
    return _forbidden("one_format", reason, context.engine.source)


def lock(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Forbids everything but the format that the user locked."""
    held = context.locks.get(layer.name)
    if held is None or held.excluded or held.format == fmt.name:
        return None
    return _forbidden("lock", lock_reason(layer, held, context.engine), "your lock")


def exclusion(layer: Layer, fmt: Format, context: RuleContext) -> Verdict | None:
    """Forbids everything but the model's own dtype for what the user excluded."""
    held = context.locks.get(layer.name)
    if held is None or not held.excluded or held.format == fmt.name:
        return None
    return _forbidden("exclusion", lock_reason(layer, held, context.engine), "your exclusion")


RULES: tuple[Rule, ...] = (
    Rule("hardware_support", hardware_support),
    Rule("engine_support", engine_support),
    Rule("stays_high", stays_high),
    Rule("role_not_quantized", role_not_quantized),
    Rule("quantized_activations", quantized_activations),
    Rule("group_size", group_size),
    Rule("runtime_rounding", runtime_rounding),
    Rule("fused_group", fused_group),
    Rule("role_floor", role_floor, hard=False),
    Rule("batch_size", batch_size, hard=False),
    Rule("chosen_formats", chosen_formats, hard=False),
    # Which format it is, the plan chooses: the same layers are decided whatever it is.
    Rule("one_format", one_format, hard=False),
    Rule("lock", lock, hard=False),
    Rule("exclusion", exclusion, hard=False),
)


def _forbidden(rule: str, reason: str, source: str) -> Verdict:
    return Verdict(rule=rule, allowed=False, reason=reason, source=source)
