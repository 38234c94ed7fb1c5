"""Typed results -> tables for drawing: which column, row and unit each number belongs to. Pure, no altair."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from advisor import estimates, knowledge
from advisor.formats.table import packed_bytes
from advisor.types import Catalogue, Format, FrontPoint, Layer, SensitivityProfile, relative_change
from advisor.ui import palette, wording


@dataclass(frozen=True)
class Measure:
    """A way to read a measurement: its field, and how it is said.

    Attributes:
        signed: both signs mean something, so colours diverge from zero.
        won: the loss that giving a layer back takes away, not the loss that quantizing it adds.
    """

    key: str
    label: str
    title: str
    signed: bool
    won: bool = False


MEASURES = {
    "kl": Measure("kl", "KL divergence", "KL divergence (nats per token)", signed=False),
    "kl_per_mib": Measure("kl_per_mib", "KL per MiB saved", "KL per MiB saved (nats per token)", signed=False),
    "delta_nll": Measure("delta_nll", "Δ NLL", "change of NLL (nats per token)", signed=True),
    "delta_ppl_pct": Measure("delta_ppl_pct", "Δ perplexity", "change of perplexity (%)", signed=True),
}
# Around a plan. A sum of several layers' changes has no percentage of its own, so there is none here.
MEASURES_WON = {
    "kl": Measure("kl", "KL won", "KL won by giving the layer back (nats per token)", signed=False, won=True),
    "kl_per_mib": Measure(
        "kl_per_mib", "KL won per MiB", "KL won per MiB that giving back takes (nats per token)", signed=False, won=True
    ),
    "delta_nll": Measure("delta_nll", "Δ NLL won", "NLL won by giving the layer back (nats per token)", True, won=True),
}
EXACT, ESTIMATED = "measured exactly", "estimated"


@dataclass(frozen=True)
class ChangeRow:
    """One point of the comparison of predicted and measured: change of perplexity in percent, with its interval."""

    variant: str
    kind: str
    change_pct: float
    low_pct: float
    high_pct: float


def profile_frame(profile: SensitivityProfile) -> pd.DataFrame:
    """One row per measurement: layer, block, module, role, format, sizes in bytes, and every measure with its error."""
    layers = profile.catalogue.by_name()
    known = knowledge.formats()
    labels = wording.layer_labels(profile.catalogue)
    modules = wording.module_labels(profile.catalogue.quantizable)
    columns = grid_columns(profile.catalogue)
    rows = [
        {
            "layer": m.layer,
            "label": labels.get(m.layer, m.layer),
            "block": layers[m.layer].block,
            "column": columns.get(m.layer, ""),
            "module": modules.get(m.layer, m.layer),
            "role": wording.role(layers[m.layer].role),
            "parameters": layers[m.layer].parameters,
            "format": m.format,
            "format_label": wording.format_label(m.format),
            "bytes": packed_bytes(known[m.format], layers[m.layer]) if m.format in known else None,
            "original_bytes": packed_bytes(known[profile.catalogue.dtype], layers[m.layer]),
            "kl": m.kl,
            "kl_stderr": m.kl_stderr,
            "delta_nll": m.delta_nll,
            "delta_nll_stderr": m.delta_nll_stderr,
            "delta_ppl_pct": m.delta_ppl_pct,
            # First order: the error of exp(x) is exp(x) times the error of x.
            "delta_ppl_pct_stderr": 100 * (1 + relative_change(m.delta_nll)) * m.delta_nll_stderr,
            "tokens": m.tokens,
            "how": EXACT if m.method == "exact" else ESTIMATED,
        }
        for m in profile.measurements
        if m.layer in layers
    ]
    return _with_price(pd.DataFrame(rows)) if rows else pd.DataFrame(columns=["layer", "label", "format", "kl"])


def _with_price(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows with the bytes that each format saves, and KL per MiB of them; empty where it saves none."""
    saved = (frame["original_bytes"] - frame["bytes"]).astype(float)
    mib = (saved / wording.MIB).where(saved > 0)
    return frame.assign(
        saved=saved,
        size=frame["bytes"].map(wording.size, na_action="ignore"),
        kl_per_mib=frame["kl"] / mib,
        kl_per_mib_stderr=frame["kl_stderr"] / mib,
    )


def gains(profile: SensitivityProfile, assignments: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    """Layer -> KL won by giving it back while the others keep the plan's formats, and its standard error; estimated.

    Empty where the profile holds no estimates of the whole plan from the same sequences (yet).
    """
    scores = {(m.layer, m.format): m for m in profile.measurements}
    chosen = [scores.get(pair) for pair in assignments.items() if pair[1] != profile.catalogue.dtype]
    if not chosen or any(m is None for m in chosen):
        return {}
    lengths = {len(m.projections) for m in chosen}
    return estimates.give_back(chosen, profile.calibration.draws) if len(lengths) == 1 and lengths != {0} else {}


def gain_frame(
    profile: SensitivityProfile, assignments: Mapping[str, str], won: Mapping[str, tuple[float, float]]
) -> pd.DataFrame:
    """`profile_frame` of the plan's own formats, with the KL won in place of each layer's KL alone."""
    frame = profile_frame(profile)
    frame = frame[[row.layer in won and assignments[row.layer] == row.format for row in frame.itertuples()]]
    kl, stderr = (frame["layer"].map({layer: pair[i] for layer, pair in won.items()}) for i in (0, 1))
    alone = [name for name in frame if name.startswith("delta_")]
    return _with_price(frame.drop(columns=alone).assign(kl=kl, kl_stderr=stderr, how=ESTIMATED))


def grid_columns(catalogue: Catalogue) -> dict[str, str]:
    """Layer name -> its column: the block's number, or `in`/`out` for what stands before or after the blocks."""
    columns, met_block = {}, False
    for layer in catalogue.layers:
        met_block = met_block or layer.block is not None
        columns[layer.name] = str(layer.block) if layer.block is not None else "out" if met_block else "in"
    return columns


def grid_frame(catalogue: Catalogue, layers: Iterable[Layer]) -> pd.DataFrame:
    """One row per layer: its column and module in the grid, its role and parameters."""
    layers = list(layers)
    columns, modules = grid_columns(catalogue), wording.module_labels(layers)
    return pd.DataFrame(
        [
            {
                "layer": layer.name,
                "column": columns[layer.name],
                "module": modules[layer.name],
                "role": wording.role(layer.role),
                "parameters": layer.parameters,
                "state": "not measured",
            }
            for layer in layers
        ]
    )


def plan_frame(
    catalogue: Catalogue, assignments: Mapping[str, str], formats: Mapping[str, Format], locked: Collection[str]
) -> pd.DataFrame:
    """One row per quantizable layer: what `grid_frame` says, its format, who chose it, and the text of its cell."""
    frame = grid_frame(catalogue, catalogue.quantizable)
    frame["decided"] = [name in assignments for name in frame["layer"]]
    chosen = [assignments.get(name, catalogue.dtype) for name in frame["layer"]]
    frame["format"] = [formats[name].label for name in chosen]
    frame["locked"] = [name in locked for name in frame["layer"]]
    frame["how"] = [
        "locked by you" if lock else "chosen by the solver" if decided else "kept: this plan does not decide it"
        for lock, decided in zip(frame["locked"], frame["decided"], strict=True)
    ]
    frame["tag"] = ["\n".join(wording.format_tag(formats[name])) for name in chosen]
    frame["bits"] = [str(formats[name].bits) for name in chosen]
    frame["lines"] = [1 + tag.count("\n") for tag in frame["tag"]]
    colours = palette.format_colours(formats)
    frame["ink"] = [palette.ink_on(colours[name]) for name in chosen]
    return frame


@dataclass(frozen=True)
class SizeMeasure:
    """How the size of a plan is counted on an axis: from a point of the front to a number, and its title with unit.

    Attributes:
        in_memory: what is counted is memory in use, as a point's `bytes` then are.
    """

    title: str
    of: Callable[[FrontPoint], float]
    in_memory: bool = False


def front_frame(points: Iterable[FrontPoint], measure: SizeMeasure) -> pd.DataFrame:
    """One row per point: its size, its predicted rise of perplexity in percent with its 95 % interval, and words."""
    rows = []
    for point in points:
        predicted = point.predicted
        base = predicted.base_perplexity
        low, high = (100 * (value / base - 1) for value in (predicted.perplexity_low, predicted.perplexity_high))
        rows.append(
            {
                "size": measure.of(point),
                "rise": predicted.delta_ppl_pct,
                "low": low,
                "high": high,
                "change": wording.percent(predicted.delta_ppl_pct),
                "perplexity": wording.number(predicted.perplexity, 4),
                "interval": f"{wording.number(predicted.perplexity_low, 4)} to "
                f"{wording.number(predicted.perplexity_high, 4)}",
                "bits": point.decided_bits,
                "weights": wording.size(point.weights_bytes),
                "used": wording.size(point.bytes),
                "speed": wording.speed(point.tokens_per_s),
            }
        )
    return pd.DataFrame(rows, columns=list(rows[0]) if rows else ["size", "rise", "low", "high"])


def stack_frame(parts: Mapping[str, int], factor: float) -> list[dict[str, object]]:
    """The parts (name -> bytes) one behind the other: start, end (bytes over `factor`), size in words, share."""
    total, position, rows = sum(parts.values()) or 1, 0, []
    for part, count in parts.items():
        rows.append(
            {
                "part": part,
                "start": position / factor,
                "end": (position + count) / factor,
                "size": wording.size(count),
                "share": f"{100 * count / total:.0f} %",
            }
        )
        position += count
    return rows
