"""How fast a deployment should be, by a roofline over the catalogue's layers: the companion of `advisor.memory`.

A piece of work takes max(operations / reached compute, bytes / reached bandwidth) (Williams, Waterman, Patterson 2009,
"Roofline"). Prefill reads one sequence of the budget's context; decoding grows every sequence by one token, at half of
that context, as sequences are anywhere between their first and their last token. Counted are matrix products and
attention, what they read and write, and what several GPUs send each other, at the stated rate. Not counted are launches
of kernels and elementwise work that is not fused into them: small models on fast devices take longer, until a measured
run corrects the estimate.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from advisor.formats.table import packed_bytes
from advisor.knowledge import efficiency, find_format, multiplies_rounded
from advisor.memory import kv_cache_bytes, stored_bytes, stored_kv_bits
from advisor.types import Bound, Budget, Catalogue, Engine, Format, Hardware, LatencyEstimate, Layer, Role

Phase = Literal["prefill", "decode"]

_BYTES_ONLY = (Role.NORM, Role.OTHER)
_TWINS = {"bf16": "fp16", "fp16": "bf16"}


class Work(NamedTuple):
    """What one piece of the model does in one pass: floating-point operations, and bytes to and from memory."""

    operations: float
    bytes: float


class Time(NamedTuple):
    """Seconds, and whether memory, compute or traffic between GPUs takes them."""

    seconds: float
    bound: Bound


@dataclass(frozen=True)
class Roofline:
    """One model on one device with one load; formats are asked about layer by layer."""

    catalogue: Catalogue
    engine: Engine
    hardware: Hardware
    budget: Budget

    @cached_property
    def bandwidth(self) -> float | None:
        """Bytes a second that kernels reach, on all GPUs together; None where no bandwidth is stated."""
        stated = self.hardware.bandwidth_gb_s
        return None if stated is None else stated.value * 1e9 * efficiency().bandwidth.value * self.budget.gpus

    @cached_property
    def computes_in(self) -> str:
        """The dtype of matrix products with weight-only formats: the model's, or its twin where the device lacks it."""
        own = self.catalogue.dtype
        twin = _TWINS.get(own, own)
        native = self.hardware.support.get(own) == "native" or self.hardware.support.get(twin) != "native"
        return own if native else twin

    def peak(self, family: str) -> float | None:
        """Operations a second that matrix products of a family reach, on all GPUs together; None where not stated."""
        return self._peaks.get(family)

    @cached_property
    def _peaks(self) -> dict[str, float]:
        shares, usual = self.hardware.matrix_efficiency, efficiency().matrix
        return {
            family: stated.value * 1e12 * shares.get(family, usual).value * self.budget.gpus
            for family, stated in self.hardware.peak_tflops.items()
        }

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """What is not stated of device and model, in words."""
        peak = self.peak(self.computes_in)
        own = () if peak else (f"the {self.computes_in.upper()} peak of {self.hardware.label}",)
        return (*self.indispensable, *own)

    @cached_property
    def indispensable(self) -> list[str]:
        """What of that nothing can be told without."""
        found = []
        if self.bandwidth is None:
            found.append(f"the memory bandwidth of {self.hardware.label}")
        experts = any(layer.role is Role.EXPERT for layer in self.catalogue.layers)
        if experts and not self.catalogue.experts_per_token:
            found.append(f"how many experts {self.catalogue.model.name} uses for a token")
        return found

    def tells(self, phase: Phase) -> bool:
        """Whether anything can be told: bandwidth alone bounds decoding, but prefill is bound by compute."""
        return not (self.missing if phase == "prefill" else self.indispensable)

    def layer(self, layer: Layer, fmt: Format, phase: Phase) -> Time:
        """One layer in one format; ask only for a phase that it `tells`."""
        rounded = multiplies_rounded(self.engine, fmt, self.hardware)
        return self._time(self.work(layer, fmt, phase), fmt.family if rounded else self.computes_in)

    def attention(self, phase: Phase) -> Time:
        """Reading KV caches and states, and attention's own products, of all blocks together.

        Raises PlanError when the engine has no KV cache of the budget's bits.
        """
        return self._time(self._attention_work(phase), self.computes_in)

    def traffic(self, phase: Phase) -> Time | None:
        """What GPUs send each other; None where that is not stated.

        Tensor parallelism adds up the hidden states of all tokens twice in every block (Megatron-LM, arXiv 1909.08053,
        section 3). Of these bytes a ring of n sends 2 (n - 1) / n through each GPU (Patarasuk and Yuan 2009); a link
        that is stated for both directions has half of it for each.
        """
        gpus, stated = self.budget.gpus, self.hardware.interconnect_gb_s
        if gpus == 1:
            return Time(0.0, "traffic")
        if stated is None:
            return None
        hidden = self._tokens(phase) * self.catalogue.hidden_size * self._itemsize
        sent = 2 * self.catalogue.attention.blocks * hidden * 2 * (gpus - 1) / gpus
        return Time(sent / (stated.value * 1e9 / 2), "traffic")

    def _time(self, work: Work, family: str) -> Time:
        memory = work.bytes / self.bandwidth
        peak = self.peak(family) or self.peak(self.computes_in)
        compute = work.operations / peak if peak else 0.0
        return Time(compute, "compute") if compute > memory else Time(memory, "memory")

    # ------------------------------------------------------------------------------------------ work

    def work(self, layer: Layer, fmt: Format, phase: Phase) -> Work:
        """2 operations per weight and token; the weight once, as stored, and its inputs and outputs in the dtype.

        An embedding is looked up, unless it is the output layer too; the output layer sees one position of a sequence
        in prefill. Tokens choose their experts independently and evenly: of E experts, 1 - (1 - k/E)^tokens are read.
        """
        stored = self._stored(layer, fmt)
        if layer.role in _BYTES_ONLY or len(layer.shape) < 2:
            return Work(0, stored)
        tokens = self._tokens(phase)
        rows, features = layer.matrix_shape
        if layer.role is Role.EMBEDDING and not layer.tied_names:
            return Work(0, tokens * (stored / rows + features * self._itemsize))
        if layer.role in (Role.EMBEDDING, Role.LM_HEAD):
            tokens = self.budget.sequences if phase == "decode" else 1
        used, read, experts = 1.0, 1.0, 1
        if layer.role is Role.EXPERT:
            experts = layer.shape[0] if len(layer.shape) == 3 else 1
            used = min(1.0, self.catalogue.experts_per_token / self._experts[_expert_key(layer)])
            read = 1 - (1 - used) ** tokens
        moved = tokens * used * (experts * features + rows) * self._itemsize
        return Work(2 * layer.parameters * tokens * used, stored * read + moved)

    def _attention_work(self, phase: Phase) -> Work:
        """4 * heads * head_dim operations per token and token that it attends to: query by key, weight by value."""
        geometry, budget = self.catalogue.attention, self.budget
        queries = geometry.attention_heads * geometry.head_dim
        if phase == "decode":
            seen = sum(count * min(self._mean_context, reach) for count, reach in self._reaches) * budget.sequences
            bits = stored_kv_bits(self.engine, budget.kv_bits)
            cache = kv_cache_bytes(self.catalogue, self._mean_context, budget.sequences, bits, budget.gpus)
            return Work(4 * queries * seen, budget.gpus * cache)
        context = budget.context
        seen = 0
        for count, reach in self._reaches:
            near = min(reach, context)
            seen += count * (near * (near + 1) // 2 + (context - near) * near)
        blocks = sum(count for count, _ in self._reaches)
        values = context * (2 * queries + 2 * geometry.kv_heads * geometry.head_dim) * blocks
        return Work(4 * queries * seen, values * self._itemsize)

    @property
    def _reaches(self) -> tuple[tuple[int, int], ...]:
        """(blocks, tokens that their attention reaches back); blocks that keep a state have none."""
        geometry = self.catalogue.attention
        sliding = geometry.sliding_blocks if geometry.sliding_window is not None else 0
        full = geometry.blocks - geometry.state_blocks - sliding
        return (full, self.budget.context), (sliding, geometry.sliding_window or 0)

    @property
    def _mean_context(self) -> int:
        return (self.budget.context + 1) // 2

    def _tokens(self, phase: Phase) -> int:
        return self.budget.sequences if phase == "decode" else self.budget.context

    @cached_property
    def _itemsize(self) -> int:
        return find_format(self.catalogue.dtype).bits // 8

    @cached_property
    def _experts(self) -> Counter[str]:
        """How many experts a block has, by its layers' names without the expert's number."""
        counts: Counter[str] = Counter()
        for layer in self.catalogue.layers:
            if layer.role is Role.EXPERT:
                counts[_expert_key(layer)] += layer.shape[0] if len(layer.shape) == 3 else 1
        return counts

    def _stored(self, layer: Layer, fmt: Format) -> int:
        # An engine keeps the model's own dtype whether its table lists it or not.
        return stored_bytes(self.engine, fmt, layer) if fmt.name in self.engine.formats else packed_bytes(fmt, layer)


def _expert_key(layer: Layer) -> str:
    return re.sub(r"\.experts\.\d+\.", ".experts.", layer.name)


def times(roofline: Roofline, assignments: dict[str, str], phase: Phase) -> dict[str, Time]:
    """Layer name -> time, and `attention` and `traffic` of all blocks; other layers than assigned keep the dtype.

    Ask only for a phase that the roofline `tells`. Raises KnowledgeError for an unknown format.
    """
    own = roofline.catalogue.dtype
    found = {
        layer.name: roofline.layer(layer, find_format(assignments.get(layer.name, own)), phase)
        for layer in roofline.catalogue.layers
    }
    found["attention"], traffic = roofline.attention(phase), roofline.traffic(phase)
    return found if traffic is None else found | {"traffic": traffic}


def estimate_latency(
    catalogue: Catalogue, assignments: dict[str, str], engine: Engine, hardware: Hardware, budget: Budget
) -> LatencyEstimate:
    """How fast the assignments (layer name -> format name) should be with the budget's load.

    What device or catalogue do not state is named, and what cannot be told without it is left None.
    """
    roofline = Roofline(catalogue, engine, hardware, budget)
    prefill, decode = (
        _sum(times(roofline, assignments, phase).values()) if roofline.tells(phase) else None
        for phase in ("prefill", "decode")
    )
    return LatencyEstimate(
        prefill_s=prefill and prefill.seconds,
        decode_ms_per_step=decode and 1000 * decode.seconds,
        sequences=budget.sequences,
        prefill_bound=prefill and prefill.bound,
        decode_bound=decode and decode.bound,
        basis="roofline" if roofline.tells("prefill") else "bandwidth",
        missing=roofline.missing,
        uncounted=() if roofline.traffic("decode") else (f"traffic between GPUs of the kind {hardware.label}",),
    )


def _sum(parts: Iterable[Time]) -> Time:
    """All parts one after another; the bound is of what takes most of it."""
    seconds: dict[Bound, list[float]] = {"memory": [], "compute": [], "traffic": []}
    for part in parts:
        seconds[part.bound].append(part.seconds)
    totals = {bound: math.fsum(own) for bound, own in seconds.items()}
    return Time(math.fsum(totals.values()), max(totals, key=totals.__getitem__))
