"""The command that writes a plan's report: one HTML file with its charts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from advisor import documents, pipeline
from advisor.cli.options import Json, read, show
from advisor.errors import PlanError
from advisor.folders import PLAN_FILE
from advisor.planner import comparison
from advisor.types import Evaluation
from advisor.units import size

app = typer.Typer()


@app.command()
def report(
    plan: Annotated[Path, typer.Argument(help="A plan that `plan` wrote.")],
    out: Annotated[Path, typer.Option(help="Where to write the report, an HTML file.")] = Path("report.html"),
    profile: Annotated[
        Path | None,
        typer.Option(
            help="The profile that the plan was made from; without it, maps, scores and the front are left out."
        ),
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="What `evaluate --json` printed of the applied plan, or of a uniform plan; may be repeated."),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="The folder that `apply` wrote: how its files were checked, and with what made.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a report of a plan with its charts, reasons and sources: one HTML file that fetches nothing."""
    document = documents.check_plan_document(read(plan))
    measured = documents.check_profile_document(read(profile)) if profile else None
    if measured and comparison.edited(document):
        document = comparison.restated(document, measured)
    evaluations = [one for path in evaluation or [] for one in _with_original(path)]
    record = pipeline.record_in(export) if export else None
    if export and record is None:
        raise PlanError(f"{export} holds no export that can be read: give a folder that `apply` wrote.")
    if export and not pipeline.holds_plan(export, document):
        raise PlanError(
            f"{export} was written from another plan: give that one, {export / PLAN_FILE}, or leave it out."
        )
    documents.check_writable(out, plan, *(path for path in (profile, *(evaluation or [])) if path))
    from advisor.ui import report as page  # charts take a second to import

    text = page.html(document, measured, evaluations, record)
    documents.write_document(out, text)
    left_out = [] if measured else [page.NEEDS_PROFILE]
    found = {"report": str(out), "bytes": len(text.encode()), "left_out": left_out}
    said = "".join(f"\nleft out: {what}; give --profile" for what in left_out)
    show(found if as_json else f"wrote {out}, {size(found['bytes'])}{said}", as_json)


def _with_original(path: Path) -> list[Evaluation]:
    """The original that was measured beside it, then what was measured: the plan's own unless it is uniform."""
    found = documents.check_evaluation_document(read(path))
    own = found.variant == "original" or found.variant.startswith("uniform ")
    alone = found.model_copy(update={"original": None} | ({} if own else {"variant": "plan"}))
    return [*([found.original] if found.original else []), alone]
