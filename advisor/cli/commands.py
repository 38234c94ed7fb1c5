"""The command line: the same use cases as the page, human output by default and JSON on request."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from advisor import documents, guide, jobs, knowledge, pipeline
from advisor.cli import output, plan_output, requests
from advisor.cli.applied import app as applied_commands
from advisor.cli.errors import STOPPED, one_line_errors, resumable
from advisor.cli.options import MODEL_HELP, Json, SeqLen, Text, read, show
from advisor.cli.report import app as report_command
from advisor.cli.requests import Wishes, with_wishes
from advisor.errors import PlanError
from advisor.planner.front import POINTS
from advisor.quiet import silenced_stdout
from advisor.types import ProfileRequest

app = typer.Typer(
    help="Which layers may go to INT4, which must stay INT8 or BF16, and what will it cost?",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Profile = Annotated[Path, typer.Argument(help="A sensitivity profile that `profile` wrote.")]


class Table(StrEnum):
    HARDWARE = "hardware"
    ENGINES = "engines"
    FORMATS = "formats"
    ROLES = "roles"
    SCENARIOS = "scenarios"
    TARGETS = "targets"
    METHODS = "methods"
    GUIDE = "guide"


class Dtype(StrEnum):
    AUTO = "auto"
    BF16 = "bf16"
    FP32 = "fp32"


class Method(StrEnum):
    FISHER = "fisher"
    EXACT = "exact"
    AUTO = "auto"


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    out: Annotated[Path, typer.Option(help="Where to write the sensitivity profile.")] = Path("profile.json"),
    text: Text = "python-docs",
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Sequences of calibration text; default: 128 on an accelerator, 16 on a CPU (exact: 8)."
        ),
    ] = None,
    seq_len: SeqLen = 256,
    formats: Annotated[str, typer.Option(help="Formats to measure, separated by commas.")] = "int8,int4_g64",
    method: Annotated[
        Method,
        typer.Option(
            help="fisher estimates all layers from a few backward passes; exact runs the model for every layer and "
            "format; auto estimates, then measures exactly where the error bars leave a choice open."
        ),
    ] = Method.FISHER,
    draws: Annotated[int, typer.Option(min=1, max=64, help="Labels that fisher draws per token.")] = 8,
    layers: Annotated[str, typer.Option(help=f"Measure these alone: {requests.LAYERS}.")] = "",
    around: Annotated[
        Path | None,
        typer.Option(
            help="A plan: measure exactly what giving back each of its layers wins, all others staying quantized; "
            "its formats are the plan's."
        ),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype to measure in; auto is fp32 on a CPU.")] = Dtype.AUTO,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Chooses the calibration passages and the drawn labels.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only judge the text and estimate time and memory.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure what quantizing each layer does to the model, everything else left as it is.

    Every score is stored as it arrives: stop with Ctrl-C, run the same command again, and it goes on there.
    """
    chosen = requests.names(formats)
    if not chosen:
        raise PlanError("--formats is empty: name at least one, such as int8,int4_g64 (see `tables formats`).")
    plan = documents.check_plan_document(read(around)) if around else None
    request = ProfileRequest(
        model=model,
        text=text,
        samples=samples,
        seq_len=seq_len,
        formats=chosen,
        method="exact" if plan else method.value,
        draws=draws,
        layers=layers,
        around=plan.assignments if plan else {},
        dtype=dtype.value,
        device=device,
        seed=seed,
    )
    if dry_run:
        with output.progress() as report:
            preview = pipeline.preview_profile(request, report)
        show(preview.model_dump(mode="json") if as_json else output.preview_text(preview), as_json)
        return
    documents.check_writable(out, *([around] if around else []))
    with output.progress() as report, resumable():
        found = pipeline.profile_model(request, pipeline.open_store(), report)
    documents.write_document(out, found.model_dump_json(indent=1))
    show(output.profile_summary(found) if as_json else output.profile_text(found, out), as_json)


@app.command()
@with_wishes
def plan(
    profile: Profile,
    out: Annotated[Path, typer.Option(help="Where to write the plan.")],
    wishes: Wishes,
    vram: requests.Vram = "",
    weights: requests.Weights = "",
    max_ppl_increase: requests.MaxPplIncrease = "",
    refine: Annotated[
        int,
        typer.Option(
            min=0,
            max=20,
            help="Rounds of improving the plan on its model, with gradients around it; takes what wins on text that "
            "no gradient saw, a simple plan included.",
        ),
    ] = 0,
    compare: Annotated[bool, typer.Option("--compare", help="Show the simple plans beside it.")] = False,
    as_json: Json = False,
) -> None:
    """Choose a format for every layer: least loss within memory, least memory within a loss, most speed within both.

    Without a limit it is the device's memory, and with a scenario the rise of perplexity that this accepts too.
    """
    measured = documents.check_profile_document(read(profile))
    request = wishes.request(measured, requests.limits(vram, weights, max_ppl_increase))
    documents.check_writable(out, profile)
    with silenced_stdout(), output.progress() as report, resumable() if refine else nullcontext():
        made = (
            pipeline.refine_plan(measured, request, refine, report) if refine else pipeline.make_plan(measured, request)
        )
        simple = pipeline.simple_plans(measured, request) if compare else {}
    documents.write_document(out, made.model_dump_json(indent=1))
    wishes.remark_floors()
    remarks = pipeline.remarks_on(made, measured)
    if as_json:
        compared = {name: plan_output.plan_summary(other) for name, other in simple.items()}
        found = plan_output.plan_summary(made) | {"remarks": list(remarks)}
        show(found | ({"simple": compared} if compare else {}), as_json)
        return
    by_scores = pipeline.by_scores(made, measured)
    show(plan_output.plan_text(made, by_scores, measured.catalogue, out, simple, remarks), as_json)


@app.command()
@with_wishes
def front(
    profile: Profile,
    wishes: Wishes,
    points: Annotated[int, typer.Option(min=1, max=200, help="Sizes to show, evenly spaced.")] = POINTS,
    vram: Annotated[str, typer.Option(help="Memory that marks what fits; default: the device's own.")] = "",
    out: Annotated[Path | None, typer.Option(help="Where to write the whole front as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Show the least loss at every size, with speed, beside uniform plans and the guide's rules."""
    measured = documents.check_profile_document(read(profile))
    request = wishes.request(measured, requests.limits(vram, "", ""), tolerates=False)
    if out:
        documents.check_writable(out, profile)
    with silenced_stdout():
        found = pipeline.pareto_front(measured, request, points)
    if out:
        documents.write_document(out, found.model_dump_json(indent=1))
    wishes.remark_floors()
    remarks = pipeline.remarks_on_front(found, measured)
    if as_json:
        show(found.model_dump(mode="json") | {"remarks": list(remarks)}, as_json)
        return
    show(plan_output.front_text(found, points, out, remarks), as_json)


# apply, verify, evaluate, answers, preferences
app.add_typer(applied_commands)
app.add_typer(report_command)


@app.command()
def tables(which: Annotated[Table, typer.Argument(help="What to list.")], as_json: Json = False) -> None:
    """List what the advisor knows of devices, engines, formats, roles, deployments, targets, methods, with sources.

    The guide says in words, topic by topic, what these tables mean.
    """
    rows: dict[Any, Any] = guide.topics() if which is Table.GUIDE else getattr(knowledge, which.value)()
    found = [row.model_dump(mode="json") for row in rows.values()]
    show(found if as_json else output.table_text(which.value, list(rows.values())), as_json)


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of plan.json."""
    show(documents.plan_schema(), True)


@app.command("run-job", hidden=True)
def run_job(job_id: str) -> None:
    """Carry out a queued job; the page starts this."""
    jobs.run_job(job_id)


def main() -> None:
    """Run a command; a refusal is one line on standard error and exit status 2."""
    with one_line_errors():
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        if status == STOPPED:  # which is all that Typer says of Ctrl-C
            raise KeyboardInterrupt
    raise SystemExit(status or 0)
