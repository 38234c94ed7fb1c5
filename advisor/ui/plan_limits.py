"""What to look for within which limits: least loss, least memory or most speed, and first of all what is possible."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import streamlit as st

from advisor import knowledge
from advisor.marks import usual_range
from advisor.memory import weights_bytes
from advisor.types import (
    Budget,
    Engine,
    FeasibleRange,
    FrontPoint,
    Hardware,
    PlanRequest,
    SensitivityProfile,
)
from advisor.ui import browser, common, drawing, fields, front_chart, wording

GOALS = {"loss": "Least loss", "memory": "Least memory", "speed": "Most speed"}
_WITHOUT_SPEED = "limit_without_speed"  # what was the limit before the reader looked for speed
LIMITS = {"bits": "Average bits", "memory": "Device memory", "weights": "Size of the weights"}
# Average bits by how much each step adds: a step of 0.05 decides much at 4 bits and nothing at 12.
_FINE_TO = 6
_STEPS = ((0.05, _FINE_TO), (0.1, 8), (0.5, 64))


def ask() -> tuple[str, str]:
    """Draw what to look for and within what; returns the keys of goal and limit, the latter `ppl` for a rise alone."""
    # Links of earlier versions had a fourth limit.
    rise_alone = st.query_params.get("limit") == "ppl"
    if rise_alone:
        del st.query_params["limit"]
    left, right = st.columns(2)
    goal = common.choose(
        "goal",
        "Look for",
        GOALS,
        "Least loss within a limit of memory, least memory within a rise of perplexity, or most speed within both.",
        "memory" if rise_alone else "loss",
        widget=left.segmented_control,
        required=True,
    )
    before, st.session_state["goal_drawn"] = st.session_state.get("goal_drawn", goal), goal
    if goal == "memory":
        return goal, "ppl"
    if goal == "speed" != before:  # who turns to speed has said nothing of size yet
        st.session_state[_WITHOUT_SPEED] = st.query_params.get("limit")
        common.set_choice("limit", "memory")
    elif goal == "loss":
        held = st.session_state.pop(_WITHOUT_SPEED, None)
        if held and st.query_params.get("limit") == "memory":  # else the reader has said another since
            common.set_choice("limit", held)
    kind = common.choose(
        "limit",
        "Limit of memory",
        LIMITS,
        "What the plan must not exceed, and how it is counted.",
        "memory" if goal == "speed" else "bits",
        widget=right.segmented_control,
        required=True,
    )
    return goal, kind


def measured_in(kind: str, device: Hardware, load: dict[str, Any]) -> Budget:
    """A budget in the measure of a limit, before its number is known: what the feasible range is asked with."""
    limits = {
        "bits": {"weight_bits": 16.0},
        "memory": {"vram_bytes": device.memory_bytes},
        "weights": {"weight_bytes": 2**60},
        "ppl": {"weight_bits": 16.0},
    }
    return Budget(**load, **limits[kind])


def draw(
    goal: str,
    kind: str,
    profile: SensitivityProfile,
    device: Hardware,
    engine: Engine,
    possible: FeasibleRange | None,
) -> dict[str, float]:
    """Draw the fields of the limits, with what is possible beneath; returns fields of a Budget.

    Args:
        possible: the feasible range in the measure of this limit; None where nothing is possible at all.
    """
    found: dict[str, float] = {}
    if kind == "bits":
        found |= _bits(profile, possible)
    elif kind == "memory":
        found |= _memory(device)
    elif kind == "weights":
        found |= _weights(profile, engine, possible)
    if possible is not None and goal != "memory":
        st.caption(f"Possible: {said_range(possible)}.")
    if goal != "loss":
        found |= _rise(possible if goal == "memory" else None)
    return found


def said_range(possible: FeasibleRange) -> str:
    """The range in words: `4.25 to 16.00 bits, 68.1 to 256.6 MiB of weights`."""
    low, high = possible.smallest, possible.largest
    said = (
        f"{low.decided_bits:.2f} to {high.decided_bits:.2f} bits on average, "
        f"{wording.size(low.weights_bytes)} to {wording.size(high.weights_bytes)} of weights"
    )
    if low.bytes > low.weights_bytes:
        said += f", {wording.size(low.bytes)} to {wording.size(high.bytes)} of memory in use"
    return said


def fill(wanted: PlanRequest) -> None:
    """Take the limits of a request into the fields."""
    budget = wanted.budget
    common.set_choice("goal", "speed" if budget.fastest else "loss" if budget.limits_memory else "memory")
    if budget.weight_bits is not None:
        _set("bits", "bits", budget.weight_bits)
    elif budget.vram_bytes is not None:
        whole = budget.vram_bytes == knowledge.find_hardware(wanted.hardware).memory_bytes
        _set("memory", "memory", None if whole else budget.vram_bytes / wording.GIB)
    elif budget.weight_bytes is not None:
        _set("weights", "weight_mib", budget.weight_bytes / wording.MIB)
    if budget.max_ppl_increase is not None:
        st.session_state["rise"] = round(100 * budget.max_ppl_increase, 9)


def take(kind: str, point: FrontPoint, device_bytes: int, limit_bytes: int | None, fastest: bool = False) -> None:
    """Make a point of the front the limit.

    Args:
        limit_bytes: what may be used of `device_bytes`; None where the limit is no memory of a device.
        fastest: a rise of perplexity is a limit too, which then allows what the point needs.
    """
    needed = max(0.1, _up(100 * point.least_tolerance, 1))
    if fastest:
        st.session_state["rise"] = max(needed, st.session_state.get("rise", 0.0))
    if kind == "ppl":
        st.session_state["rise"] = needed
        return
    share = device_bytes / limit_bytes if limit_bytes else 1.0
    key, value = {
        "bits": ("bits", _up(point.decided_bits, 2)),
        "memory": ("memory", _up(point.bytes * share / wording.GIB, 4)),
        "weights": ("weight_mib", _up(point.bytes / wording.MIB, 2)),
    }[kind]
    _set(kind, key, value)


def in_measure_of(budget: Budget, limit_bytes: int) -> Callable[[int], str]:
    """Says bytes as the budget's limit is given: in average bits where it is one of those, else in bytes."""
    if budget.weight_bits is None:
        return wording.size
    bits = budget.weight_bits / limit_bytes
    return lambda count: f"{_up(bits * count, 2):g} bits"


def _set(kind: str, key: str, value: float | None) -> None:
    st.session_state.pop(_WITHOUT_SPEED, None)
    common.set_choice("limit", kind)
    if kind == "memory":
        st.session_state[key] = value
    else:
        fields.link_number(key, value)


def _up(value: float, decimals: int) -> float:
    factor = 10**decimals
    return math.ceil(value * factor - 1e-6) / factor


# ----------------------------------------------------------------------------------------- the fields


def _bits(profile: SensitivityProfile, possible: FeasibleRange | None) -> dict[str, float]:
    measured = [knowledge.find_format(name).bits for name in profile.formats]
    least = possible.smallest.decided_bits if possible is not None else float(min(measured))
    steps = bit_steps(least, float(knowledge.find_format(profile.catalogue.dtype).bits))
    held = fields.linked_number("bits")
    if held is not None and possible is not None:
        held = _within_reach(held, steps[0])
    if held is not None:  # what a link or a stored plan asks for is kept to its last digit
        steps = sorted({*steps, held})
    bits = fields.always_linked(
        "bits",
        st.select_slider,
        "Average bits per weight",
        steps,
        value=held if held is not None else next((step for step in steps if step >= least + 0.75), steps[-1]),
        known=possible is not None or held is not None,
        format_func=_bits_said,
        help="Over the layers that the plan decides, scales and zero points included. Steps are finest up to "
        f"{_FINE_TO} bits, where most is decided; a link with `bits=4.625` asks for exactly that.",
    )
    return {"weight_bits": bits}


def _within_reach(held: float, least: float) -> float:
    """The bits that the reader chose, raised while a lock, a floor or another choice of theirs leaves no smaller plan.

    What a link asks for is not touched: that it is impossible is the answer.
    """
    asked, raised = st.session_state.pop("bits_raised", (held, None))
    if held != raised:  # moved since
        asked = held
    before, st.session_state["bits_least"] = st.session_state.get("bits_least", math.inf), least
    if asked < least and (before <= asked or held == raised):
        st.session_state["bits_raised"] = asked, least
        st.caption(
            f":material/arrow_upward: Raised from {_bits_said(asked)} to {_bits_said(least)} bits, the least that is "
            "possible with what else is chosen; it goes back when that leaves room."
        )
        return least
    return asked


def _bits_said(bits: float) -> str:
    return f"{bits:.10g}"


def bit_steps(least: float, most: float) -> list[float]:
    """The sizes to choose from: from the `least` average bits, rounded up, to `most`, the finer the smaller."""
    steps = [_up(least, 2)]
    for step, end in _STEPS:
        first, last = math.floor(steps[-1] / step + 1e-9) + 1, math.floor(min(end, most) / step + 1e-9)
        steps += [number * step for number in range(first, last + 1)]
    return [round(step, 2) for step in steps]


def _memory(device: Hardware) -> dict[str, int]:
    gib = fields.number(
        "memory",
        st.number_input,
        "Memory of one device (GiB)",
        *fields.reach("memory", 0.05, float(2**20)),
        None,
        step=0.5,
        format="%.3f",
        placeholder=f"{device.memory_bytes / wording.GIB:.1f} (the whole device)",
        help="1 GiB is 2^30 bytes. Empty means all of the device. The engine's usable share of it "
        "holds weights, KV cache, activations and overhead.",
    )
    return {"vram_bytes": round(gib * wording.GIB) if gib else device.memory_bytes}


def _weights(profile: SensitivityProfile, engine: Engine, possible: FeasibleRange | None) -> dict[str, int]:
    original = weights_bytes(profile.catalogue, {}, engine) / wording.MIB
    least = possible.smallest.weights_bytes / wording.MIB if possible is not None else 0.01
    held = fields.linked_number("weight_mib")
    mib = fields.always_linked(
        "weight_mib",
        st.number_input,
        "Weights (MiB)",
        fields.reach("weight_mib", 0.01, 0.01)[0],
        value=held if held is not None else max(0.01, _up(least, 2), round(0.6 * original, 2)),
        known=possible is not None or held is not None,
        step=max(0.01, round(original / 50, 2)),
        format="%.2f",
        help=f"1 MiB is 2^20 bytes. All weights of the model as the engine stores them, those that the plan does not "
        f"decide included; in {profile.catalogue.dtype.upper()} they are {original:,.2f} MiB.",
    )
    return {"weight_bytes": round(mib * wording.MIB)}


def _rise(possible: FeasibleRange | None) -> dict[str, float]:
    marks = knowledge.perplexity_marks()
    low, high = fields.reach("rise", 0.0, 30.0)
    rise = fields.number(
        "rise",
        st.slider,
        "Largest rise of perplexity (%)",
        low,
        high,
        5.0,
        0.5,
        format="%g %%",
        help="The predicted perplexity rises no more than this, of estimates with a standard error to spare. By the "
        f"guide, {usual_range()} is acceptable and more than {marks.poor.value:g} % poor. "
        f"Source: {marks.poor.source}.",
    )
    drawing.chart(
        front_chart.rise_scale(low, high, browser.dark()),
        alt=f"The guide's marks on the scale: {usual_range()} acceptable, above {marks.poor.value:g} % poor.",
    )
    if possible is not None:
        low_pct, high_pct = (point.predicted.delta_ppl_pct for point in (possible.largest, possible.smallest))
        st.caption(f"Possible: {wording.percent(low_pct)} to {wording.percent(high_pct)}, {said_range(possible)}.")
    return {"max_ppl_increase": rise / 100}
