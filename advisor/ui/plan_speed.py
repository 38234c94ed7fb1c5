"""How fast a plan should be, in words: tokens per second, the time to read a context, what binds, what is unknown."""

from __future__ import annotations

from advisor.types import LatencyEstimate
from advisor.ui import wording

_BASES = {
    "roofline": "an estimate by a roofline; launches of kernels are not counted, so small models take longer",
    "bandwidth": "an estimate from memory bandwidth alone",
    "measured": "corrected by a measurement",
}
_BOUNDS = {
    "memory": "bound by memory bandwidth",
    "compute": "bound by compute",
    "traffic": "bound by traffic between GPUs",
}


def metric(latency: LatencyEstimate | None) -> tuple[str, str, str]:
    """Label, value and help of the headline number."""
    label = "Speed, estimated" if latency is None or latency.basis != "measured" else "Speed"
    value = wording.speed(latency.tokens_per_s if latency else None)
    return label, value, f"Of all sequences together while they decode. {sentence(latency)}"


def sentence(latency: LatencyEstimate | None) -> str:
    """All that is known of the speed, and what is not and why."""
    if latency is None:
        return "The speed of this plan was never estimated."
    parts = []
    if latency.decode_ms_per_step is not None:
        each = f"{wording.number(latency.tokens_per_s_per_sequence, 3)} for each of {latency.sequences} sequences, "
        parts.append(
            f"{wording.speed(latency.tokens_per_s)} ({each if latency.sequences > 1 else ''}"
            f"{wording.seconds(latency.decode_ms_per_step / 1000)} a step, {_BOUNDS[latency.decode_bound]})"
        )
    if latency.prefill_s is not None:
        parts.append(
            f"reading a whole context takes {wording.seconds(latency.prefill_s)} ({_BOUNDS[latency.prefill_bound]})"
        )
    said = f"Speed: {'; '.join(parts)}: {_BASES[latency.basis]}." if parts else "Speed: not known."
    if latency.uncounted:
        said += f" Not counted, as its rate is not stated: {' and '.join(latency.uncounted)}."
    return said + _missing(latency)


def _missing(latency: LatencyEstimate) -> str:
    if not latency.missing:
        return ""
    unknown = "how fast it decodes" if latency.decode_ms_per_step is None else "how long reading a context takes"
    return f" Not stated: {' and '.join(latency.missing)}; so {unknown} cannot be told."
