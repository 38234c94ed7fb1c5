"""Opens pages as a link does and reads what they say, for the tests of pages."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

from advisor.types import Budget, Plan, PlanRequest
from advisor.ui import wording
from advisor.ui.common import PAGES, UNEXPECTED

ROOT = Path(__file__).parents[1]
REQUEST = PlanRequest(hardware="rtx-4090", engine="transformers", budget=Budget(weight_bits=5.0))

# Streamlit looks for components among all installed packages, for every page that a test opens: most of a test's time.
manifest_scanner.scan_component_manifests = cache(manifest_scanner.scan_component_manifests)


def opened(name: str, **query: str) -> AppTest:
    """The page as a link with this query opens it."""
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30)
    if name != "model":  # which stands at the root of the address
        app.switch_page(PAGES[name])
    app.query_params.update(query)
    return app.run()


def said(app: AppTest) -> str:
    """Every sentence on the page."""
    kinds = (app.markdown, app.caption, app.error, app.warning, app.info, app.success, app.title, app.subheader)
    return "\n".join(element.value for elements in kinds for element in elements)


def sound(app: AppTest) -> bool:
    """Whether nothing went wrong that the page did not expect."""
    return not app.exception and UNEXPECTED not in said(app)


def labels(plan: Plan) -> dict[str, str]:
    """Layer -> its format as pages name it."""
    return {name: wording.format_label(fmt) for name, fmt in plan.assignments.items()}


def numbers(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def button(app: AppTest, label: str):
    return next(b for b in app.button if b.label == label)


def table(app: AppTest, column: str) -> pd.DataFrame:
    """The first table with this column."""
    return next(frame.value for frame in app.dataframe if column in frame.value)
