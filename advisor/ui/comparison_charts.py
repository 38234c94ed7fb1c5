"""Charts of plans beside each other: where two differ, what contenders lose, and what rounds of refinement won."""

from __future__ import annotations

import altair as alt
import pandas as pd

from advisor.knowledge import find_format
from advisor.planner.comparison import Comparison
from advisor.types import Catalogue, Refinement
from advisor.ui import chart_parts as parts
from advisor.ui import frames, palette, wording

SMALLER, SAME_SIZE, LARGER = "smaller in the other", "another format, same size", "larger in the other"
KL_BAR, RANKED_BY = "bar: KL", "diamond: what plans are ranked by"
GRADIENTS, HELD_BACK = "text of the gradients", "held-back text"


def difference_map(catalogue: Catalogue, found: Comparison, dark: bool = False) -> alt.LayerChart:
    """Blocks across, modules down; a layer that differs says its bits in the one plan and in the other."""
    frame = difference_frame(catalogue, found)
    grid_of_all = parts.grid_of(catalogue, catalogue.quantizable)
    axes = parts.grid_axes(grid_of_all)
    same = (
        alt.Chart(frames.grid_frame(catalogue, catalogue.quantizable).assign(state="the same format in both"))
        .mark_rect(fill="transparent", stroke=palette.faint(dark), strokeWidth=1)
        .encode(**axes, tooltip=[alt.Tooltip("layer:N", title="layer"), alt.Tooltip("state:N", title="state")])
    )
    colours = {SMALLER: palette.FAMILIES["int3"], SAME_SIZE: palette.FAMILIES["nf4"], LARGER: palette.FAMILIES["fp8"]}
    used = [kind for kind in colours if kind in set(frame["kind"])]
    cells = (
        alt.Chart(frame)
        .mark_rect(cornerRadius=2)
        .encode(
            **axes,
            color=alt.Color(
                "kind:N",
                scale=alt.Scale(domain=used, range=[colours[kind] for kind in used]),
                legend=alt.Legend(title=None, orient="top", symbolType="square", labelLimit=240),
            ),
            tooltip=[
                alt.Tooltip("layer:N", title="layer"),
                alt.Tooltip("role:N", title="role"),
                alt.Tooltip("one:N", title="in the one"),
                alt.Tooltip("other:N", title="in the other"),
                alt.Tooltip("bytes:N", title="change of size"),
            ],
        )
    )
    narrow = f"bandwidth('x') < {parts.NAME_WIDTH}"
    bits = (
        alt.Chart(frame.assign(ink=[palette.ink_on(colours[kind]) for kind in frame["kind"]]))
        .mark_text(
            text=alt.expr(f"{narrow} ? datum.arrow : datum.bits"),
            fontSize=alt.expr("clamp(bandwidth('x') * 0.36, 7, 10)"),
            baseline="middle",
        )
        .encode(**axes, color=alt.Color("ink:N", scale=None))
    )
    return alt.layer(same, cells, bits, height=parts.grid_height(grid_of_all))


def difference_frame(catalogue: Catalogue, found: Comparison) -> pd.DataFrame:
    """One row per layer that differs: its place in the grid, both formats, and the text of its cell."""
    grid = frames.grid_frame(catalogue, catalogue.quantizable).set_index("layer", drop=False)
    rows = []
    for difference in found.layers:
        change = difference.other_bytes - difference.one_bytes
        bits = [find_format(name).bits for name in (difference.one, difference.other)]
        rows.append(
            {
                **grid.loc[difference.layer, ["layer", "column", "module", "role"]],
                "one": wording.format_label(difference.one),
                "other": wording.format_label(difference.other),
                "kind": SMALLER if change < 0 else LARGER if change > 0 else SAME_SIZE,
                "arrow": "↓" if change < 0 else "↑" if change > 0 else "≠",
                "bits": f"{bits[0]}→{bits[1]}",
                "bytes": wording.size_change(change),
            }
        )
    return pd.DataFrame(rows)


def contender_bars(refinement: Refinement, dark: bool = False) -> alt.LayerChart:
    """KL of every contender on held-back text with one standard error to each side, the best first.

    A diamond marks the loss that they are ranked by, where it differs from KL; the winner is filled, the rest hollow.
    """
    ranked = sorted(refinement.contenders, key=lambda one: one.expected_loss)
    frame = pd.DataFrame(
        [
            {
                "name": wording.labelled(one.name) + " (this plan)" * (one.name == refinement.winner),
                "kl": one.kl,
                "low": one.kl - one.kl_stderr,
                "high": one.kl + one.kl_stderr,
                "stderr": one.kl_stderr,
                "expected": one.expected_loss,
                "mark": RANKED_BY,
                "bits": one.decided_bits,
                "filled": 1.0 if one.name == refinement.winner else 0.15,
            }
            for one in ranked
        ]
    )
    y = alt.Y("name:N", sort=list(frame["name"]), title=None, axis=parts.names_axis())
    legend = alt.Legend(title=None, orient="top", labelLimit=320)
    shapes = alt.Scale(domain=[KL_BAR, RANKED_BY], range=["square", "diamond"])
    colours = alt.Scale(domain=[KL_BAR, RANKED_BY], range=[palette.BAR, palette.PREDICTED])
    tooltip = [
        alt.Tooltip("name:N", title="plan"),
        alt.Tooltip("kl:Q", title="KL (nats/token)", format=".4f"),
        alt.Tooltip("stderr:Q", title="± standard error", format=".2g"),
        alt.Tooltip("expected:Q", title="ranked by (nats/token)", format=".4f"),
        alt.Tooltip("bits:Q", title="average bits", format=".2f"),
    ]
    bars = (
        alt.Chart(frame)
        .mark_bar(color=palette.BAR, stroke=palette.BAR, height=alt.RelativeBandSize(0.62), cornerRadiusEnd=2)
        .encode(
            y=y,
            x=alt.X(
                "kl:Q",
                title="loss on held-back text (nats per token)",
                axis=alt.Axis(format=parts.DECIMAL, tickCount=8),
            ),
            fillOpacity=alt.FillOpacity("filled:Q", scale=None),
            tooltip=tooltip,
        )
    )
    ranks = (
        alt.Chart(frame)
        .mark_point(size=70, filled=True, opacity=1)
        .encode(
            y=y,
            x=alt.X("expected:Q"),
            shape=alt.Shape("mark:N", scale=shapes, legend=legend),
            color=alt.Color("mark:N", scale=colours, legend=legend),
            tooltip=tooltip,
        )
    )
    errors = parts.error_bars(frame, y, "low", "high", palette.ink(dark))
    return alt.layer(bars, *errors, ranks, height=34 * len(frame) + 50)


def round_lines(refinement: Refinement, before_kl: float, dark: bool = False) -> alt.LayerChart:
    """KL after every round on the text that gradients are taken on and on the text held back from them.

    Args:
        before_kl: of the plan that refinement started from, on held-back text.
    """
    frame = round_frame(refinement, before_kl)
    names, rounds = [GRADIENTS, HELD_BACK], sorted(frame["round"].unique())
    colours = alt.Scale(domain=names, range=[palette.PREDICTED, palette.MEASURED])
    legend = alt.Legend(title=None, orient="top", symbolStrokeWidth=2, labelLimit=240)
    base = alt.Chart(frame).encode(
        x=alt.X("round:O", title="round", sort=rounds, axis=alt.Axis(labelAngle=0, labelExpr=_START)),
        y=alt.Y(
            "kl:Q",
            title="KL (nats per token)",
            scale=alt.Scale(zero=False),
            axis=alt.Axis(format=parts.DECIMAL, tickCount=5),
        ),
        color=alt.Color("text:N", scale=colours, legend=legend),
        tooltip=[
            alt.Tooltip("text:N", title="text"),
            alt.Tooltip("round:O", title="round"),
            alt.Tooltip("kl:Q", title="KL (nats/token)", format=".4f"),
        ],
    )
    lines = base.mark_line(strokeWidth=2).encode(
        strokeDash=alt.StrokeDash("text:N", scale=alt.Scale(domain=names, range=[[5, 4], [1, 0]]), legend=legend)
    )
    points = base.mark_point(size=70, filled=True, opacity=1).encode(
        shape=alt.Shape("text:N", scale=alt.Scale(domain=names, range=["diamond", "circle"]), legend=legend)
    )
    return alt.layer(lines, points, height=240)


_START = "datum.value == 0 ? 'start' : datum.label"


def round_frame(refinement: Refinement, before_kl: float) -> pd.DataFrame:
    """Two rows per round, the start included: KL on either text."""
    kl = {
        GRADIENTS: [refinement.calibration_kl_before, *(one.calibration_kl for one in refinement.rounds)],
        HELD_BACK: [before_kl, *(one.kl for one in refinement.rounds)],
    }
    rows = [{"text": text, "round": number, "kl": value} for text in kl for number, value in enumerate(kl[text])]
    return pd.DataFrame(rows)
