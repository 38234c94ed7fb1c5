"""Where a model's parameters are, as a chart: one bar for each role of layers."""

from __future__ import annotations

import altair as alt
import pandas as pd

from advisor.types import Catalogue, Layer, Role
from advisor.ui import chart_parts as parts
from advisor.ui import palette, wording


def layers_by_role(catalogue: Catalogue) -> dict[Role, list[Layer]]:
    """The layers of each role, in the order in which the forward pass first meets one."""
    found: dict[Role, list[Layer]] = {}
    for layer in catalogue.layers:
        found.setdefault(layer.role, []).append(layer)
    return found


def parameters_frame(catalogue: Catalogue) -> pd.DataFrame:
    """One row per role: its parameters, their share of the model in percent, how many layers, and words for the bar."""
    rows = []
    for role, layers in layers_by_role(catalogue).items():
        count = sum(layer.parameters for layer in layers)
        share = 100 * count / catalogue.parameters
        said = f"{wording.parameters(count)} · {share:.0f} %" if share >= 1 else wording.parameters(count)
        rows.append(
            {
                "role": wording.role(role),
                "parameters": count,
                "share": share,
                "layers": len(layers),
                "blocks": len({layer.block for layer in layers if layer.block is not None}),
                "said": said,
            }
        )
    return pd.DataFrame(rows)


def parameters_by_role(frame: pd.DataFrame, dark: bool = False) -> alt.LayerChart:
    """A bar for each row of `parameters_frame`, with its number at its end."""
    base = alt.Chart(frame).encode(
        y=alt.Y("role:N", sort=list(frame["role"]), title=None, axis=parts.names_axis()),
        x=alt.X(
            "share:Q",
            title="share of the parameters (%)",
            # Room for the number behind the longest bar, on a phone too.
            scale=alt.Scale(domain=[0, 1.6 * frame["share"].max()], nice=False),
            axis=alt.Axis(tickCount=6, labelExpr="datum.value > 100 ? '' : format(datum.value, 'd')"),
        ),
        tooltip=[
            alt.Tooltip("role:N", title="role"),
            alt.Tooltip("parameters:Q", title="parameters", format=",d"),
            alt.Tooltip("share:Q", title="share (%)", format=".2f"),
            alt.Tooltip("layers:Q", title="layers"),
            alt.Tooltip("blocks:Q", title="in blocks"),
        ],
    )
    bars = base.mark_bar(color=palette.BAR, height=alt.RelativeBandSize(0.62), cornerRadiusEnd=2)
    said = base.mark_text(align="left", dx=6, color=palette.ink(dark)).encode(text="said:N")
    return alt.layer(bars, said, height=24 * len(frame) + 48)
