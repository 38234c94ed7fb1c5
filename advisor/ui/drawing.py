"""Puts charts on a page: the one place that hands altair's specifications to streamlit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st
from altair import LayerChart

from advisor.ui.chart_parts import Picture


@dataclass(frozen=True)
class _Unchecked:
    """A chart as streamlit asks for it, without the check against Vega-Lite's schema that the tests of charts make.

    The check takes longer than all else that a page does for a chart.
    """

    chart: LayerChart

    def to_dict(self) -> dict[str, Any]:
        return self.chart.to_dict(validate=False)


def chart(found: LayerChart | Picture, alt: str, **more: Any) -> None:
    """Draw a chart over the whole width.

    Args:
        alt: what it shows, for those who cannot see it; of a `Picture` the same as long as its specification is, or the
            browser draws it anew.
        more: what else `st.altair_chart` takes.
    """
    if isinstance(found, Picture):
        st.vega_lite_chart(spec=found.specification | {"datasets": found.data}, width="stretch", alt=alt, **more)
    else:
        st.altair_chart(_Unchecked(found), width="stretch", alt=alt, **more)
