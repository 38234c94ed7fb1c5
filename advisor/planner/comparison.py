"""Two plans of one model: where their formats differ, and what that does to size, loss and speed. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from advisor.errors import PlanError
from advisor.formats.table import packed_bytes
from advisor.knowledge import find_engine, find_format, find_hardware
from advisor.latency import estimate_latency
from advisor.memory import estimate_memory, stored_bytes
from advisor.planner.paired import paired_errors
from advisor.planner.planning import check_plan_fits
from advisor.planner.prediction import predict
from advisor.types import Catalogue, Layer, Plan, Reason, SensitivityProfile

_Z95 = 1.96


@dataclass(frozen=True)
class LayerDifference:
    """A layer that two plans store in different formats: the format and the bytes in the one and in the other."""

    layer: str
    one: str
    other: str
    one_bytes: int
    other_bytes: int


@dataclass(frozen=True)
class LossDifference:
    """By how much the other plan loses more, nats per token, and the standard error of that.

    `paired` where the losses were subtracted sequence by sequence; else both errors are added as if they were
    independent, which where both plans were judged by the same text is rather too much.
    """

    value: float
    stderr: float
    paired: bool = False

    @property
    def within_error(self) -> bool:
        """Whether the two cannot be told apart at 95 %."""
        return abs(self.value) <= _Z95 * self.stderr


@dataclass(frozen=True)
class Comparison:
    """What two plans of one model have apart.

    Attributes:
        layers: in the model's order, those alone that differ.
        kl, delta_nll: of the other plan against the one.
    """

    one: Plan
    other: Plan
    layers: tuple[LayerDifference, ...]
    kl: LossDifference
    delta_nll: LossDifference

    @property
    def same_formats(self) -> bool:
        return not self.layers

    @property
    def same_basis(self) -> bool:
        """Whether both losses come from scores of layers, or both from running the whole plan."""
        return self.one.predicted.measured == self.other.predicted.measured

    @property
    def same_text(self) -> bool:
        """Whether the unquantized model is as perplexed by the text of the one as by that of the other."""
        return math.isclose(self.one.predicted.base_perplexity, self.other.predicted.base_perplexity, rel_tol=1e-6)

    @property
    def same_deployment(self) -> bool:
        """Whether device, engine and load are the same, so that memory and speed compare."""
        return _deployment(self.one) == _deployment(self.other)


def compare(one: Plan, other: Plan, profile: SensitivityProfile) -> Comparison:
    """What `other` has apart from `one`; layers that a plan does not decide keep the catalogue's dtype.

    Raises:
        PlanError: the plans are for different models.
        KnowledgeError: a format or engine is unknown, or an engine does not store a format.
    """
    if one.model.fingerprint != other.model.fingerprint:
        raise PlanError(
            f"These plans are for different models, {one.model.name} and {other.model.name} "
            f"({one.model.fingerprint[:12]} and {other.model.fingerprint[:12]}): compare plans of the same weights."
        )
    before, after, paired = one.predicted, other.predicted, paired_errors(profile, one, other)
    errors = paired or (
        math.hypot(before.kl_stderr, after.kl_stderr),
        math.hypot(before.delta_nll_stderr, after.delta_nll_stderr),
    )
    return Comparison(
        one=one,
        other=other,
        layers=_layers(one, other, profile.catalogue),
        kl=LossDifference(after.kl - before.kl, errors[0], paired is not None),
        delta_nll=LossDifference(after.delta_nll - before.delta_nll, errors[1], paired is not None),
    )


def compare_all(one: Plan, others: Mapping[str, Plan], profile: SensitivityProfile) -> dict[str, Comparison]:
    """What each of `others` (name -> plan) has apart from `one`; raises what `compare` does."""
    return {name: compare(one, other, profile) for name, other in others.items()}


def restated(plan: Plan, profile: SensitivityProfile) -> Plan:
    """A plan from elsewhere with memory, speed, loss and reasons of its assignments, whatever its document says.

    A file that was edited by hand may still state what it was before. A loss that was measured cannot be had again from
    scores: it stays where the assignments have the bytes that the document states.

    Raises:
        PlanError: it does not fit the profile's model, or a layer was not measured in its format.
    """
    check_plan_fits(plan, profile.catalogue)
    deployment = (
        profile.catalogue,
        plan.assignments,
        find_engine(plan.request.engine),
        find_hardware(plan.request.hardware),
        plan.request.budget,
    )
    memory = estimate_memory(*deployment)
    unchanged = memory.model_weights_bytes == plan.memory.model_weights_bytes
    return plan.model_copy(
        update={
            "memory": memory,
            "reasons": {name: _reason(plan, name, reason) for name, reason in plan.reasons.items()},
            "latency": estimate_latency(*deployment),
            "predicted": plan.predicted
            if plan.predicted.measured and unchanged
            else predict(profile, plan.assignments),
        }
    )


def edited(plan: Plan) -> bool:
    """Whether a layer has another format than its reason speaks of, or none: the document was changed afterwards."""
    return any(
        not _is_of(plan, name, reason) or (reason.alternatives and name not in plan.assignments)
        for name, reason in plan.reasons.items()
    )


def _reason(plan: Plan, name: str, reason: Reason) -> Reason:
    if _is_of(plan, name, reason):
        return reason
    return Reason(text=f"{find_format(plan.assignments[name]).label}: given by hand after the plan was made.")


def _is_of(plan: Plan, name: str, reason: Reason) -> bool:
    """Whether a reason is of the format that the layer has: it names all others as alternatives."""
    return plan.assignments.get(name) not in {other.format for other in reason.alternatives}


def _layers(one: Plan, other: Plan, catalogue: Catalogue) -> tuple[LayerDifference, ...]:
    found = []
    for layer in catalogue.quantizable:
        formats = [plan.assignments.get(layer.name, catalogue.dtype) for plan in (one, other)]
        if formats[0] != formats[1]:
            found.append(
                LayerDifference(layer.name, *formats, *(_bytes(plan, layer, catalogue) for plan in (one, other)))
            )
    return tuple(found)


def _bytes(plan: Plan, layer: Layer, catalogue: Catalogue) -> int:
    """As `memory.weights_bytes` counts it: a layer that the plan does not decide is stored as it came."""
    if layer.name not in plan.assignments:
        return packed_bytes(find_format(catalogue.dtype), layer)
    return stored_bytes(find_engine(plan.request.engine), find_format(plan.assignments[layer.name]), layer)


def _deployment(plan: Plan) -> tuple[object, ...]:
    request, budget = plan.request, plan.request.budget
    return request.hardware, request.engine, budget.context, budget.sequences, budget.kv_bits, budget.gpus
