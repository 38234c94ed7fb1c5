"""Corrects the speed of a plan by a run of it on the machine that it was made for: between latency and evaluation."""

from __future__ import annotations

from collections.abc import Collection

from advisor import this_machine
from advisor.knowledge import find_engine, find_hardware
from advisor.latency import estimate_latency
from advisor.types import Catalogue, Evaluation, LatencyEstimate, Plan, Sourced

# What evaluations time: decoding steps of one sequence, after a short prompt and a warm-up.
PROMPT_TOKENS = 32
WARM_UP_STEPS = 2
TIMED_STEPS = 12
_CACHED_TOKENS = PROMPT_TOKENS + WARM_UP_STEPS + TIMED_STEPS // 2

# What runs the packed models that are evaluated.
_ENGINE = "transformers"

_NOMINAL = Sourced(value=1.0, source="nominal: the measured run says how many bytes a second it is", checked_on="")


def is_for_this_machine(plan: Plan) -> bool:
    """Whether an evaluation of the plan runs on the device and with the engine that it was made for."""
    return (plan.request.hardware, plan.request.engine) == (this_machine.NAME, _ENGINE)


def with_speed(found: Evaluation, plan: Plan, catalogue: Catalogue, simulated: Collection[str] = ()) -> Evaluation:
    """The evaluation with the plan's speed at its own load, corrected by the time per token that was measured.

    Unchanged where nothing was timed, the plan is for another device or engine, or nothing can be told of it.

    Args:
        simulated: layers whose weights the run held de-quantized.
    """
    if found.ms_per_token is None or not is_for_this_machine(plan):
        return found
    run = plan.assignments | dict.fromkeys(simulated, catalogue.dtype)
    return found.model_copy(update={"latency": _corrected(plan, catalogue, run, found.ms_per_token, found.device)})


def _corrected(
    plan: Plan, catalogue: Catalogue, run: dict[str, str], measured_ms: float, device: str
) -> LatencyEstimate | None:
    """The plan's estimate with its decoding time scaled by what the run took against its own estimate.

    Prefill is left as estimated: it is bound by compute, of which a decoding step of one sequence shows nothing. Where
    no bandwidth is stated, any will do for decoding, as it is in both estimates and cancels out.
    """
    engine, hardware, load = find_engine(plan.request.engine), find_hardware(plan.request.hardware), plan.request.budget
    # A decoding step is estimated at half of the context.
    alone = load.model_copy(update={"sequences": 1, "context": 2 * _CACHED_TOKENS, "kv_bits": 16, "gpus": 1})
    stated = hardware if hardware.bandwidth_gb_s else hardware.model_copy(update={"bandwidth_gb_s": _NOMINAL})

    of_plan = estimate_latency(catalogue, plan.assignments, engine, stated, load)
    of_run = estimate_latency(catalogue, run, engine, stated, alone)
    if of_plan.decode_ms_per_step is None or of_run.decode_ms_per_step is None:
        return None
    as_stated = estimate_latency(catalogue, plan.assignments, engine, hardware, load)
    changes = {
        "decode_ms_per_step": of_plan.decode_ms_per_step * measured_ms / of_run.decode_ms_per_step,
        "decode_bound": of_plan.decode_bound,
        "missing": of_plan.missing or as_stated.missing,  # the run stands in for a bandwidth
        "basis": "measured",
        "device": device,
    }
    return as_stated.model_copy(update=changes)
