"""A model looked inside: its blocks and roles, where its parameters are, and what they take in each format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
import streamlit as st

from advisor import knowledge
from advisor.formats.table import fits, packed_bytes
from advisor.types import Catalogue, Format, Layer
from advisor.ui import anatomy_charts, browser, common, drawing, wording

_SHOWN = ("int8", "int4_g64", "int3_g64", "int2_g64")
_WHOLE = "Whole model"


def show(catalogue: Catalogue) -> None:
    """The whole section."""
    st.subheader(f"Anatomy of {catalogue.model.name}")
    common.metrics(
        [
            ("Parameters", wording.parameters(catalogue.parameters), "Tied weights are counted once."),
            ("Blocks", str(catalogue.attention.blocks), "Transformer blocks, one after the other."),
            ("Quantizable layers", str(len(catalogue.quantizable)), "Matrices that a plan may give fewer bits."),
            ("Longest context", f"{catalogue.max_context:,} tokens", "What the model was trained for."),
            (
                f"Size in {catalogue.dtype.upper()}",
                wording.size(_size(catalogue.layers, catalogue.dtype)),
                "All weights, as they are.",
            ),
        ]
    )
    _where(catalogue)
    st.markdown("**What they take in each format**")
    st.dataframe(
        role_table(catalogue),
        hide_index=True,
        column_config={
            "Parameters": st.column_config.NumberColumn(format="localized"),
            "Share": st.column_config.ProgressColumn(format="%.1f %%", min_value=0, max_value=100),
        },
    )
    st.caption(
        "Scales and zero points included, before what an engine adds. In the last row, what cannot be quantized is "
        f"kept in {catalogue.dtype.upper()}, as is a layer whose width a format's groups do not divide."
    )
    with st.expander("Names of the layers"):
        st.dataframe(_names(catalogue), hide_index=True)


def role_table(catalogue: Catalogue) -> pd.DataFrame:
    """A row for each role and one for all: layers, parameters, and the size in the model's dtype and in each format."""
    known = knowledge.formats()
    shown = [known[name] for name in dict.fromkeys((catalogue.dtype, *_SHOWN)) if name in known]
    by_role = {wording.role(role): layers for role, layers in anatomy_charts.layers_by_role(catalogue).items()}
    rows = []
    for name, layers in [*by_role.items(), (_WHOLE, catalogue.layers)]:
        count = sum(layer.parameters for layer in layers)
        row = {
            "Role": name,
            "Layers": len(layers),
            "Parameters": count,
            "Share": 100 * count / catalogue.parameters,
        }
        rows.append(row | {fmt.label: _said(fmt, layers, catalogue.dtype, name) for fmt in shown})
    return pd.DataFrame(rows)


def _said(fmt: Format, layers: Sequence[Layer], dtype: str, name: str) -> str:
    if name != _WHOLE and fmt.name != dtype and not any(layer.quantizable and fits(fmt, layer) for layer in layers):
        return "kept"
    return wording.size(_size(layers, dtype, fmt))


def _size(layers: Iterable[Layer], dtype: str, fmt: Format | None = None) -> int:
    """Bytes of these layers with all that can be in `fmt` in it, and the others in the model's dtype."""
    own = knowledge.find_format(dtype)
    return sum(
        packed_bytes(fmt if fmt is not None and layer.quantizable and fits(fmt, layer) else own, layer)
        for layer in layers
    )


def _where(catalogue: Catalogue) -> None:
    frame = anatomy_charts.parameters_frame(catalogue)
    said = "; ".join(f"{row.role} {row.said}" for row in frame.itertuples())
    st.markdown("**Where the parameters are**")
    drawing.chart(
        anatomy_charts.parameters_by_role(frame, browser.dark()), alt=f"Parameters of {catalogue.model.name}: {said}."
    )


def _names(catalogue: Catalogue) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (
                layer.name,
                wording.role(layer.role),
                " × ".join(map(str, layer.shape)),
                layer.parameters,
                layer.quantizable,
            )
            for layer in catalogue.layers
        ],
        columns=["Layer", "Role", "Shape", "Parameters", "Quantizable"],
    )
