"""What would make a memory budget possible: formats, wishes and load, each checked by the smallest plan with it.

Between candidates and refusals on the road. Rules ban independently of each other, so the smallest plan under a change
follows from the bans that the change lifts, without judging anything again.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from advisor.errors import WaysOut
from advisor.memory import estimate_memory
from advisor.planner.case import MEASUREMENT, Case
from advisor.planner.groups import decision_groups
from advisor.planner.locks import Lock, resolve_locks
from advisor.types import Format, LayerGroup
from advisor.units import plural

_LIFTABLE = frozenset({MEASUREMENT, "chosen_formats", "role_floor", "lock", "exclusion"})
_FLOORS = "set the role floors to advise instead of enforce"
_CHOOSE = "choose from {} too"
_SHORTEST = 128  # tokens; nobody serves a shorter context


@dataclass(frozen=True)
class Remedy:
    """One change to profile or request: what it is in words around `{}`, and the bans that it lifts.

    `formats` are those whose bans are lifted, None all of them; `left_out` speaks of layers that the plan does not
    decide, instead of those that it does; `changes` are fields of the request.
    """

    words: str
    rules: frozenset[str]
    formats: frozenset[str] | None = None
    left_out: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)

    def lifts(self, rule: str, fmt: Format, decided: bool) -> bool:
        return rule in self.rules and (self.formats is None or fmt.name in self.formats) and decided != self.left_out


class _Choice(NamedTuple):
    """A format for a group, its bytes in the budget's measure, and the rules that ban it."""

    format: Format
    cost: int
    bans: frozenset[str]


@dataclass(frozen=True)
class Shortage:
    """By how much the smallest plan of a case misses its limit, as it is and with remedies."""

    case: Case

    def missing(self, remedies: Iterable[Remedy] = ()) -> float:
        """Bytes by which the smallest plan with the remedies is too large: infinite where there is none."""
        held, engine = tuple(remedies), self.case.context.engine
        if not engine.one_quantized_format:
            return self._missing(held)
        quantized = [fmt.name for fmt in self.case.offered if fmt.quantized and fmt.name in engine.formats]
        return min(self._missing(held, (name, self.case.original.name)) for name in quantized)

    def suggestions(self) -> WaysOut:
        """What helps: every remedy that suffices by itself, else the fewest that suffice together.

        What has to be measured first changes nothing in the request.
        """
        remedies = self._remedies()
        alone = [remedy for remedy in remedies if self.missing([remedy]) <= 0]
        if alone:
            return {_phrase(alike, " or "): self._changes(alike) for alike in _by_words(alone)}
        if self.missing(remedies) > 0:
            return {}
        together = remedies
        for remedy in reversed(remedies):
            rest = [one for one in together if one is not remedy]
            together = rest if self.missing(rest) <= 0 else together
        return {" and ".join(_phrase(alike, ", ") for alike in _by_words(together)): self._changes(together)}

    @property
    def beyond_all_formats(self) -> bool:
        """Whether no format of the engine is small enough, whatever was measured and wished for."""
        return self.missing(self._remedies()) > 0

    def lighter_load(self) -> WaysOut:
        """Changes of context, sequences and KV cache that suffice by themselves, or the first two together."""
        case, missing = self.case, self.missing()
        budget, full = case.request.budget, case.unquantized
        if budget.vram_bytes is None:
            return {}

        def suffices(**changes: int) -> bool:
            lighter = budget.model_copy(update=changes)
            context = case.context
            needed = estimate_memory(case.catalogue, {}, context.engine, context.hardware, lighter).total_bytes
            return full.total_bytes - needed >= missing

        found: dict[str, dict[str, int]] = {}
        if context := _most(budget.context, lambda tokens: suffices(context=tokens), _SHORTEST):
            found[f"shorten the context to {plural(context, 'token')}"] = {"context": context}
        if sequences := _most(budget.sequences, lambda count: suffices(sequences=count)):
            found[f"serve {plural(sequences, 'sequence')} at once"] = {"sequences": sequences}
        if not found:
            context = _most(budget.context, lambda tokens: suffices(context=tokens, sequences=1), _SHORTEST)
            if context:
                words = f"shorten the context to {plural(context, 'token')} and serve one sequence"
                found[words] = {"context": context, "sequences": 1}
        if budget.kv_bits == 16 and 8 in case.context.engine.kv_bits and suffices(kv_bits=8):
            found["store the KV cache in 8 bits"] = {"kv_bits": 8}
        return found

    # ------------------------------------------------------------------------------------- counting

    def _missing(self, held: tuple[Remedy, ...], only: tuple[str, ...] = ()) -> float:
        budget, case = self.case.request.budget, self.case
        needed, parameters = case.fixed_bytes, sum(layer.parameters for layer in case.decided)
        for choices in self._decided:
            needed += min(self._costs(choices, held, True, only), default=math.inf)
        for group, choices in self._left_out:
            original = next(choice.cost for choice in choices if choice.format == case.original)
            least = min(self._costs(choices, held, False, only), default=original)
            if least == original:
                continue  # nothing is gained, or it stays undecided
            if budget.weight_bits is not None:
                needed, parameters = needed + least, parameters + group.parameters
            else:
                needed += least - original
        limit = case.limit_bytes if budget.weight_bits is None else int(budget.weight_bits * parameters / 8 + 1e-6)
        return needed - limit

    def _costs(
        self, choices: Sequence[_Choice], held: tuple[Remedy, ...], decided: bool, only: tuple[str, ...]
    ) -> list[int]:
        return [
            choice.cost
            for choice in choices
            if (not only or choice.format.name in only)
            and all(any(remedy.lifts(rule, choice.format, decided) for remedy in held) for rule in choice.bans)
        ]

    @cached_property
    def _decided(self) -> tuple[tuple[_Choice, ...], ...]:
        return tuple(self._choices(group) for group in self.case.groups)

    @cached_property
    def _left_out(self) -> tuple[tuple[LayerGroup, tuple[_Choice, ...]], ...]:
        case, decided = self.case, {layer.name for layer in self.case.decided}
        names = (layer.name for layer in case.catalogue.quantizable if layer.name not in decided)
        groups = decision_groups(case.catalogue, case.context.engine, names)
        return tuple((group, self._choices(group)) for group in groups)

    def _choices(self, group: LayerGroup) -> tuple[_Choice, ...]:
        choices = (self._choice(group, fmt) for fmt in self.case.offered)
        return tuple(choice for choice in choices if choice.bans <= _LIFTABLE)

    def _choice(self, group: LayerGroup, fmt: Format) -> _Choice:
        said = (v for layer in group.layers for v in self.case.verdicts(layer, fmt, group))
        bans = {verdict.rule for verdict in said if not verdict.allowed}
        # Which one format the engine holds, `missing` tries out; a lock may hide an exclusion.
        bans -= {"one_format", *self._held}
        bans |= {
            rule
            for rule, held in self._held.items()
            if any(layer.name in held and held[layer.name].format != fmt.name for layer in group.layers)
        }
        return _Choice(fmt, sum(self.case.cost(layer, fmt) for layer in group.layers), frozenset(bans))

    @cached_property
    def _held(self) -> dict[str, dict[str, Lock]]:
        """What locks and what exclusions hold, each as if there were no others."""
        catalogue, engine, request = self.case.catalogue, self.case.context.engine, self.case.request
        return {
            "lock": resolve_locks(catalogue, engine, request.locks),
            "exclusion": resolve_locks(catalogue, engine, {}, request.excluded),
        }

    # ------------------------------------------------------------------------------------- remedies

    def _remedies(self) -> list[Remedy]:
        """Everything that could make the plan smaller, surest first."""
        case, request = self.case, self.case.request
        measured = {fmt.name for fmt in case.formats}
        found = []
        for fmt in case.offered:
            choosing, one = frozenset({"chosen_formats"}), frozenset({fmt.name})
            if fmt.name in measured and request.formats and fmt.name not in request.formats:
                found.append(Remedy(_CHOOSE, choosing, one))
        for fmt in case.offered:
            if fmt.quantized and fmt.name not in measured:
                lifted = frozenset({MEASUREMENT, "chosen_formats"})
                found.append(Remedy("measure {} too", lifted, frozenset({fmt.name})))
        count = self._worth_measuring(measured)
        if count:
            words = f"measure the {plural(count, 'layer')} that {'was' if count == 1 else 'were'} left out"
            found.append(Remedy(words, frozenset({MEASUREMENT}), frozenset(measured), left_out=True))
        if request.role_floors == "enforce":
            found.append(Remedy(_FLOORS, frozenset({"role_floor"}), changes={"role_floors": "advise"}))
        if request.locks:
            words = "remove the lock" if len(request.locks) == 1 else "remove the locks"
            found.append(Remedy(words, frozenset({"lock"}), changes={"locks": {}}))
        if request.excluded:
            found.append(Remedy("exclude nothing", frozenset({"exclusion"}), changes={"excluded": ()}))
        return found

    def _worth_measuring(self, measured: set[str]) -> int:
        """How many undecided layers the rules would let have a measured format."""
        return sum(
            len(group.layers)
            for group, choices in self._left_out
            if any(choice.format.name in measured and choice.bans == {MEASUREMENT} for choice in choices)
        )

    def _changes(self, remedies: Sequence[Remedy]) -> dict[str, Any]:
        """What the remedies change in the request; nothing where one of them takes a measurement."""
        if any(MEASUREMENT in remedy.rules for remedy in remedies):
            return {}
        changes = {name: value for remedy in remedies for name, value in remedy.changes.items()}
        added = [name for remedy in remedies if remedy.words == _CHOOSE for name in sorted(remedy.formats or ())]
        return {**changes, "formats": (*self.case.request.formats, *added)} if added else changes


def _most(asked: int, suffices: Callable[[int], bool], least: int = 1) -> int:
    """The most below `asked` that suffices, rounded down to four binary digits; 0 where that is less than `least`."""
    most = bisect_right(range(1, asked), False, key=lambda count: not suffices(count))
    rounded = most - most % 2 ** max(0, most.bit_length() - 4)
    return rounded if rounded >= least else 0


def _by_words(remedies: Sequence[Remedy]) -> list[list[Remedy]]:
    words = dict.fromkeys(remedy.words for remedy in remedies)
    return [[one for one in remedies if one.words == word] for word in words]


def _phrase(alike: Sequence[Remedy], between: str) -> str:
    names = [name for remedy in alike for name in sorted(remedy.formats or ())]
    return alike[0].words.format(between.join(names))
