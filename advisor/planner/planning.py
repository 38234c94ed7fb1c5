"""Turns a sensitivity profile and a request into a plan: candidates, exact solution, prediction, reasons. Pure.

The solver ranks by KL, which cannot be negative and so carries less chance than delta_nll on little text; where scores
carry Fisher projections, also by what can be believed of the first-order change of likelihood.
"""

from __future__ import annotations

import math

from advisor.errors import InfeasibleBudget, PlanError
from advisor.formats.table import divides, fits
from advisor.knowledge import find_format
from advisor.latency import estimate_latency
from advisor.memory import estimate_memory
from advisor.planner.candidates import parts, prepare
from advisor.planner.case import Case, Option
from advisor.planner.choosing import chosen_options, solve
from advisor.planner.prediction import predict
from advisor.planner.reasons import explain
from advisor.planner.regret import rates_of
from advisor.planner.solver import Solution
from advisor.types import (
    Catalogue,
    Plan,
    PlanRequest,
    Prediction,
    Reason,
    SensitivityProfile,
    now,
)
from advisor.units import number

ADVISOR_VERSION = "0.1.0"


def make_plan(profile: SensitivityProfile, request: PlanRequest) -> Plan:
    """The plan of least predicted loss within a limit of memory, of least bytes within a tolerance of perplexity, or of
    least decoding time within both.

    For an engine that holds one quantized format, the best of the plans with each; a refusal is of the one that misses
    by the least.

    A tolerance bounds the change of perplexity by ln(1 + tolerance). Where scores are estimates, the prediction keeps
    it with one standard error to spare, as the layers are chosen by the scores that predict. Where every layer was
    measured by itself, the sums of KL and of delta_nll keep it: when the text is as likely as what the model writes
    itself, the two agree, and on little text the larger one is the safer reading.

    Raises:
        InfeasibleBudget: nothing meets the budget; says the smallest possible size and what to change.
        PlanError: speed is asked for where it cannot be told, a lock or format cannot be had, or nothing is left to
            decide.
        KnowledgeError: the device, the engine or a format is unknown.
    """
    plans, misses = [], []
    for case in parts(prepare(profile, request)):
        try:
            plans.append(_solved(case))
        except InfeasibleBudget as miss:
            misses.append(miss)
    if not plans:
        raise min(misses, key=lambda miss: miss.smallest_bytes or math.inf)
    return min(plans, key=_objective)


def _objective(plan: Plan) -> tuple[float, ...]:
    """What the plan's budget asks for as little as possible of, and what decides between equals."""
    budget, loss = plan.request.budget, plan.predicted.delta_nll
    if budget.max_ppl_increase is None:
        return loss, plan.predicted.kl, plan.memory.weights_bytes
    if budget.fastest and plan.latency is not None:
        return plan.latency.decode_ms_per_step, loss
    return plan.memory.weights_bytes, loss


def _solved(case: Case) -> Plan:
    solution = solve(case)
    chosen = chosen_options(case, solution)
    rates = rates_of(case, chosen)
    reasons = explain(case, chosen, rates)
    return assemble(case, chosen, reasons, solution.gap, _status(case, solution), exchange_rate=rates.exchange)


def _status(case: Case, solution: Solution) -> str:
    if case.has_estimates and not case.adds_up:
        return "the best predicted of the plans that were tried, which need not be the best of all"
    if solution.gap == 0.0:
        return "optimal"
    return f"stopped by the time limit, at most {number(100 * solution.gap, 2)} % from the best"


# ------------------------------------------------------------------------------------------- assemble


def assemble(
    case: Case,
    chosen: tuple[Option, ...],
    reasons: dict[str, Reason],
    gap: float | None,
    status: str,
    predicted: Prediction | None = None,
    exchange_rate: float = 0.0,
) -> Plan:
    """The plan of one option per group; its prediction comes from the scores where none is given."""
    order = [layer.name for layer in case.catalogue.layers]
    assignments = case.assignments(chosen)
    context = case.context
    return Plan(
        model=case.catalogue.model,
        request=case.request,
        assignments=assignments,
        predicted=predicted or predict(case.profile, assignments),
        memory=estimate_memory(case.catalogue, assignments, context.engine, context.hardware, case.request.budget),
        latency=estimate_latency(case.catalogue, assignments, context.engine, context.hardware, case.request.budget),
        reasons={name: reasons[name] for name in order},
        optimality_gap=gap,
        exchange_rate=exchange_rate,
        provenance={
            "profile_id": case.profile.id,
            "calibration": case.profile.calibration.model_dump(include={"text", "samples", "seq_len", "seed"}),
            "created": now().isoformat(),
            "advisor_version": ADVISOR_VERSION,
            "solver": status,
        },
    )


# ---------------------------------------------------------------------------------------------- check


def check_plan_fits(plan: Plan, catalogue: Catalogue) -> None:
    """Refuse a plan that was made for other weights, or that names what is not there.

    Raises:
        PlanError: another model, an unknown layer, an unknown format, or groups that do not divide a layer.
    """
    if plan.model.fingerprint != catalogue.model.fingerprint:
        raise PlanError(
            f"This plan was made for {plan.model.name} ({plan.model.fingerprint[:12] or 'no fingerprint'}), not for "
            f"{catalogue.model.name} ({catalogue.model.fingerprint[:12]}): plan for this model, or name the other one."
        )
    layers = catalogue.by_name()
    for name, fmt in plan.assignments.items():
        if name not in layers or not layers[name].quantizable:
            raise PlanError(
                f"assignments.{name}: {catalogue.model.name} has no such quantizable layer; remove the entry."
            )
        if not divides(find_format(fmt), layers[name]):
            raise PlanError(
                f"assignments.{name}: the layer's {layers[name].matrix_shape[1]} input features do not split "
                f"into groups of {find_format(fmt).group_size}; choose another format than {fmt}."
            )
        if not fits(find_format(fmt), layers[name]):
            raise PlanError(
                f"assignments.{name}: the layer has no input that {fmt} could round; choose another format."
            )
