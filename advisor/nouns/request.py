"""The nouns of a wish: a budget, and everything else that a person may turn before a plan is solved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from advisor.nouns.base import FiniteNoun, Noun
from advisor.nouns.model import Role


class Budget(FiniteNoun):
    """What a plan must respect, and the load that memory and speed are planned for.

    A limit of memory alone asks for the least loss within it, a tolerance alone for the least memory, and both for the
    most speed within both.

    Attributes:
        vram_bytes: memory of one device (weights + KV cache + activations + overhead must fit its usable part).
        weight_bits: average bits of the layers that the plan decides, scales and zero points included.
        weight_bytes: bytes of all weights of the model as the engine stores them.
        max_ppl_increase: the largest acceptable relative rise of perplexity (0.05 is 5 %).
        context: tokens of one sequence; sequences: how many at once; kv_bits: nominal bits of one KV cache value.
        gpus: devices over which every layer is split (tensor parallelism).
    """

    vram_bytes: int | None = Field(default=None, gt=0)
    weight_bits: float | None = Field(default=None, gt=0)
    weight_bytes: int | None = Field(default=None, gt=0)
    max_ppl_increase: float | None = Field(default=None, ge=0)
    context: int = Field(default=4096, gt=0)
    sequences: int = Field(default=1, gt=0)
    kv_bits: Literal[4, 8, 16] = 16
    gpus: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _at_most_one_limit_of_memory(self) -> Budget:
        if sum(limit is not None for limit in (self.vram_bytes, self.weight_bits, self.weight_bytes)) > 1:
            raise ValueError("give at most one of vram_bytes, weight_bits and weight_bytes")
        if not self.limits_memory and self.max_ppl_increase is None:
            raise ValueError("give one of vram_bytes, weight_bits and weight_bytes, or max_ppl_increase, or both")
        return self

    @property
    def limits_memory(self) -> bool:
        return any(limit is not None for limit in (self.vram_bytes, self.weight_bits, self.weight_bytes))

    @property
    def fastest(self) -> bool:
        """Whether the most speed within two limits is asked for."""
        return self.limits_memory and self.max_ppl_increase is not None


RoleFloors = Literal["off", "advise", "enforce"]


MOST_FLOOR_BITS = 16


class PlanRequest(Noun):
    """Everything a person may turn before a plan is solved.

    Attributes:
        locks: which layers -> format name. Layers are named by their exact name, by blocks (`block 5`, `blocks 0-3`),
            or by a regular expression that matches whole names.
        excluded: which layers keep the model's dtype, named like those of locks.
        formats: the formats to choose from; empty means all that the profile measured.
        role_floors: the least bits per role: ignored, shown as advice, or enforced.
        floor_bits: least bits of single roles, in place of the guide's; 0 lifts the floor of a role.
    """

    hardware: str
    engine: str
    budget: Budget
    locks: dict[str, str] = {}
    excluded: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    role_floors: RoleFloors = "advise"
    floor_bits: dict[Role, Annotated[int, Field(ge=0, le=MOST_FLOOR_BITS)]] = {}

    def changed(self, fields: Mapping[str, Any]) -> PlanRequest:
        """The request with other values of these fields, which are its own or its budget's."""
        of_budget = {name: value for name, value in fields.items() if name in Budget.model_fields}
        own = {name: value for name, value in fields.items() if name not in of_budget}
        return self.model_copy(update={**own, "budget": self.budget.model_copy(update=of_budget)})
