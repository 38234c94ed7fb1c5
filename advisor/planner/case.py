"""One planning problem, with what every layer would lose and take in every format: what the solver chooses from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from advisor.formats.table import packed_bytes
from advisor.knowledge import find_format
from advisor.latency import Roofline, times
from advisor.memory import estimate_memory, stored_bytes
from advisor.planner.layer_losses import LayerLoss, adds_up, layer_losses
from advisor.planner.rule_context import RuleContext
from advisor.planner.rules import RULES, allowed, judge
from advisor.sharding import shard
from advisor.types import (
    Catalogue,
    Format,
    Layer,
    LayerGroup,
    Measurement,
    MemoryEstimate,
    PlanRequest,
    Role,
    SensitivityProfile,
    Verdict,
)

MEASUREMENT = "measurement"
_NO_LOSS = LayerLoss(0.0, 0.0)
_HARD = frozenset(rule.name for rule in RULES if rule.hard)


@dataclass(frozen=True)
class Option:
    """A format that a whole group may have: summed loss in nats per token, and bytes in the budget's own measure.

    `price` is what rules add to the loss where the least loss is sought; limits of loss do not count it. `seconds` are
    those of a decoding step at the budget's load; 0 where they cannot be told.
    """

    format: Format
    loss: float
    delta_nll: float
    cost: int
    price: float = 0.0
    seconds: float = 0.0

    @property
    def priced_loss(self) -> float:
        return self.loss + self.price


@dataclass(frozen=True)
class Known:
    """What is worked out once for every layer and format, or kind of layer, and the same whatever the limits."""

    said: dict[tuple[str, str], tuple[Verdict, ...]] = field(default_factory=dict)
    said_of_kind: dict[tuple[int, str], tuple[Verdict, ...]] = field(default_factory=dict)
    said_in_group: dict[tuple[str, str], tuple[Verdict, ...]] = field(default_factory=dict)
    costs: dict[tuple[str, str], int] = field(default_factory=dict)
    bytes_of_kind: dict[tuple[int, str], int] = field(default_factory=dict)
    seconds_of_kind: dict[tuple[int | str, str], float] = field(default_factory=dict)

    def without_verdicts(self) -> Known:
        return replace(self, said={}, said_of_kind={}, said_in_group={})


@dataclass(frozen=True)
class Case:
    """One planning problem: the decided groups and their options, aligned; everything else keeps its dtype."""

    profile: SensitivityProfile
    context: RuleContext
    scores: dict[tuple[str, str], Measurement]
    formats: tuple[Format, ...]
    groups: tuple[LayerGroup, ...]
    options: tuple[tuple[Option, ...], ...]
    _known: Known = field(default_factory=Known, repr=False, compare=False)

    @property
    def in_place(self) -> bool:
        """Whether losses are changes of a whole plan, not of layers alone."""
        return False

    @cached_property
    def has_estimates(self) -> bool:
        """Whether losses are damped ones, of Fisher projections."""
        return any(score.projections for score in self.scores.values())

    @property
    def adds_up(self) -> bool:
        """Whether plans are compared by sums of losses, though these are estimates."""
        return adds_up(self.profile)

    def assignments(self, chosen: tuple[Option, ...]) -> dict[str, str]:
        """Layer -> format where each group takes its option of `chosen`, in the catalogue's order."""
        by_layer = {
            layer.name: option.format.name
            for group, option in zip(self.groups, chosen, strict=True)
            for layer in group.layers
        }
        return {layer.name: by_layer[layer.name] for layer in self.catalogue.layers if layer.name in by_layer}

    @property
    def catalogue(self) -> Catalogue:
        return self.profile.catalogue

    @property
    def request(self) -> PlanRequest:
        return self.context.request

    @cached_property
    def original(self) -> Format:
        return find_format(self.catalogue.dtype)

    @cached_property
    def offered(self) -> tuple[Format, ...]:
        """Every format worth an answer: the model's own dtype, what was measured, and what the engine quantizes to."""
        own = (find_format(name) for name in self.context.engine.formats)
        others = (*self.formats, *(fmt for fmt in own if fmt.quantized))
        return tuple({fmt.name: fmt for fmt in (self.original, *others)}.values())

    @cached_property
    def decided(self) -> tuple[Layer, ...]:
        return tuple(layer for group in self.groups for layer in group.layers)

    @cached_property
    def unquantized(self) -> MemoryEstimate:
        """The deployment with every layer in the model's dtype."""
        context = self.context
        return estimate_memory(self.catalogue, {}, context.engine, context.hardware, self.request.budget)

    @cached_property
    def roofline(self) -> Roofline:
        context = self.context
        return Roofline(self.catalogue, context.engine, context.hardware, self.request.budget)

    @cached_property
    def fixed_seconds(self) -> float:
        """What the plan cannot change of a decoding step, attention included; 0 where it cannot be told."""
        if not self.roofline.tells("decode"):
            return 0.0
        decided = {layer.name for layer in self.decided}
        parts = times(self.roofline, {}, "decode")
        return math.fsum(time.seconds for name, time in parts.items() if name not in decided)

    @cached_property
    def fixed_bytes(self) -> int:
        """What the plan cannot change of the budget's measure: undecided weights and, for VRAM, all that is no weight.

        0 when the budget is average bits, which counts decided layers only.
        """
        budget, full = self.request.budget, self.unquantized
        if budget.weight_bits is not None:
            return 0
        decided = sum(packed_bytes(self.original, self._held(layer)) for layer in self.decided)
        weights = full.weights_bytes if budget.weight_bytes is None else full.model_weights_bytes
        counted = full.total_bytes if budget.vram_bytes is not None else weights
        return counted - decided

    @cached_property
    def limit_bytes(self) -> int | None:
        """The budget in bytes, fixed part included; None when the budget is a tolerance of perplexity alone."""
        budget = self.request.budget
        if budget.vram_bytes is not None:
            return self.unquantized.limit_bytes
        if budget.weight_bits is not None:
            return int(budget.weight_bits * sum(layer.parameters for layer in self.decided) / 8 + 1e-6)
        return budget.weight_bytes

    @cached_property
    def fastest(self) -> bool:
        """Whether the most speed is asked for."""
        return self.request.budget.fastest

    @property
    def smallest_bytes(self) -> int:
        """The least bytes that the options reach, in the budget's measure, fixed part included."""
        return self.fixed_bytes + sum(min(option.cost for option in options) for options in self.options)

    def loss(self, layer: Layer, fmt: Format) -> float:
        """The loss that formats are chosen by (`layer_losses`), nats per token, prices left out."""
        return self._losses(layer, fmt).loss

    def delta_nll(self, layer: Layer, fmt: Format) -> float:
        """The change of likelihood to expect; of an estimated first-order term, what stands out of its error."""
        return self._losses(layer, fmt).delta_nll

    def _losses(self, layer: Layer, fmt: Format) -> LayerLoss:
        return _NO_LOSS if fmt.name == self.original.name else layer_losses(self.profile)[layer.name, fmt.name]

    def cost(self, layer: Layer, fmt: Format) -> int:
        """Bytes of a layer in the budget's measure: the format's own layout for average bits, else the engine's."""
        key = layer.name, fmt.name
        if key not in self._known.costs:
            self._known.costs[key] = self._bytes(layer, fmt)
        return self._known.costs[key]

    def _bytes(self, layer: Layer, fmt: Format) -> int:
        kind = self.context.kinds[layer.name], fmt.name
        if kind not in self._known.bytes_of_kind:
            self._known.bytes_of_kind[kind] = self._counted(self._held(layer), fmt)
        return self._known.bytes_of_kind[kind]

    def _counted(self, held: Layer, fmt: Format) -> int:
        if self.request.budget.weight_bits is not None or fmt.name not in self.context.engine.formats:
            return packed_bytes(fmt, held)
        return stored_bytes(self.context.engine, fmt, held)

    def _held(self, layer: Layer) -> Layer:
        """What the budget counts of a layer: limits on the weights count it whole, memory what one GPU holds."""
        budget = self.request.budget
        whole = budget.weight_bits is not None or budget.weight_bytes is not None
        return shard(layer, self.catalogue, 1 if whole else budget.gpus)

    def difference_stderr(self, group: LayerGroup, one: Option, other: Option) -> float:
        """Standard error of the difference of two options' losses, which saw the same text."""
        scored = (
            tuple(
                (layer.name, option.format.name) for layer in group.layers if option.format.name != self.original.name
            )
            for option in (one, other)
        )
        return layer_losses(self.profile).difference_stderr(*scored)

    def seconds(self, layer: Layer, fmt: Format) -> float:
        """Of a decoding step at the budget's load; 0 where they cannot be told."""
        # Of a kind are layers of one role, shape and ties; blocks may differ in how many experts share the tokens.
        kind = layer.name if layer.role is Role.EXPERT else self.context.kinds[layer.name], fmt.name
        if kind not in self._known.seconds_of_kind:
            known = self.roofline.tells("decode")
            self._known.seconds_of_kind[kind] = self.roofline.layer(layer, fmt, "decode").seconds if known else 0.0
        return self._known.seconds_of_kind[kind]

    def has(self, layer: Layer, fmt: Format) -> bool:
        """Whether the loss of this layer in this format is known."""
        return fmt.name == self.original.name or (layer.name, fmt.name) in self.scores

    def verdicts(self, layer: Layer, fmt: Format, group: LayerGroup) -> tuple[Verdict, ...]:
        """All that was said of the layer in this format, a ban by a fused partner included."""
        key = layer.name, fmt.name
        if key not in self._known.said_in_group:
            self._known.said_in_group[key] = self._judged_together(layer, fmt, group)
        return self._known.said_in_group[key]

    def _judged_together(self, layer: Layer, fmt: Format, group: LayerGroup) -> tuple[Verdict, ...]:
        own = self._judged(layer, fmt)
        if not allowed(own):
            return own
        for partner in group.layers:
            said = self._judged(partner, fmt)
            if partner.name != layer.name and not allowed(said):
                ban = next(verdict for verdict in said if not verdict.allowed)
                reason = f"{self.context.engine.label} fuses it with {partner.name}: {ban.reason}"
                return (*own, ban.model_copy(update={"reason": reason}))
        return own

    def _judged(self, layer: Layer, fmt: Format) -> tuple[Verdict, ...]:
        """Rules, and whether the measurement is usable at all."""
        key = layer.name, fmt.name
        if key not in self._known.said:
            self._known.said[key] = self._judge(layer, fmt)
        return self._known.said[key]

    def _judge(self, layer: Layer, fmt: Format) -> tuple[Verdict, ...]:
        kind = self.context.kinds[layer.name], fmt.name
        if kind not in self._known.said_of_kind:
            self._known.said_of_kind[kind] = judge(layer, fmt, self.context)
        said = self._known.said_of_kind[kind]
        if not self.has(layer, fmt):
            return (*said, _unknown(f"{layer.name} was not measured in {fmt.label}"))
        if not (math.isfinite(self.loss(layer, fmt)) and math.isfinite(self.delta_nll(layer, fmt))):
            return (*said, _unknown(f"the loss of {layer.name} in {fmt.label} was not a finite number"))
        return said

    def can_be_decided(self, group: LayerGroup) -> bool:
        """Whether device, engine and measurements leave the group a quantized format; what people want is no matter."""
        return any(fmt.quantized and all(self._possible(layer, fmt) for layer in group.layers) for fmt in self.formats)

    def ban(self, layer: Layer, fmt: Format) -> str:
        """Why device, engine or the layer's own shape rule a format out; empty where they do not."""
        return next((v.reason for v in self._judged(layer, fmt) if v.rule in _HARD and not v.allowed), "")

    def _possible(self, layer: Layer, fmt: Format) -> bool:
        return all(v.allowed for v in self._judged(layer, fmt) if v.rule in _HARD or v.rule == MEASUREMENT)

    def group_options(self, group: LayerGroup) -> tuple[Option, ...]:
        """The formats that every layer of the group may have: the model's own dtype first, then as measured."""
        others = (fmt for fmt in self.formats if fmt.name != self.original.name)
        return tuple(
            self._option(group, fmt)
            for fmt in (self.original, *others)
            if all(allowed(self._judged(layer, fmt)) for layer in group.layers)
        )

    def _option(self, group: LayerGroup, fmt: Format) -> Option:
        return Option(
            format=fmt,
            loss=math.fsum(self.loss(layer, fmt) for layer in group.layers),
            delta_nll=math.fsum(self.delta_nll(layer, fmt) for layer in group.layers),
            cost=sum(self.cost(layer, fmt) for layer in group.layers),
            price=math.fsum(v.price for layer in group.layers for v in self._judged(layer, fmt)),
            seconds=math.fsum(self.seconds(layer, fmt) for layer in group.layers),
        )


@lru_cache(4096)
def _unknown(reason: str) -> Verdict:
    return Verdict(rule=MEASUREMENT, allowed=False, reason=reason, source="the sensitivity profile")
