"""The commands for a plan that is applied: write it, verify it, evaluate it, and have its answers judged."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from advisor import documents, knowledge, pipeline, preferences, texts
from advisor.cli import evaluation, output, plan_output
from advisor.cli import requests as requests
from advisor.cli.errors import resumable
from advisor.cli.options import MODEL_HELP, TEXT_HELP, Json, SeqLen, Text, read, show
from advisor.folders import check_free
from advisor.prompts import EXAMPLES
from advisor.prompts import parse as parse_prompts
from advisor.quiet import silenced_stdout
from advisor.types import ApplyRequest, Evaluation, EvaluationOptions, latest_evaluations

app = typer.Typer()


class Rounding(StrEnum):
    AUTO = "auto"
    RTN = "rtn"
    GPTQ = "gptq"
    AWQ = "awq"
    SMOOTHQUANT = "smoothquant"


@app.command()
def apply(
    plan: Annotated[Path, typer.Argument(help="A plan that `plan` wrote.")],
    out: Annotated[Path, typer.Option(help="A new folder for the quantized model.")],
    to: Annotated[
        str,
        typer.Option(
            help="How to write it, or an engine that is to load it: see `tables targets`; default: the plan's."
        ),
    ] = "",
    method: Annotated[
        Rounding,
        typer.Option(
            help="How codes are chosen: see `tables methods`. auto takes what suits plan and target, and rounds to "
            "nearest where that wins nothing."
        ),
    ] = Rounding.AUTO,
    calibration: Annotated[
        str | None, typer.Option(help="Text to calibrate on; default: that of the plan's scores. " + TEXT_HELP)
    ] = None,
    recover: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="STEPS",
            help="Then distill the original into scales and norms, for so many batches of the same text; kept where it "
            "wins on text held back. 0 leaves it out.",
        ),
    ] = 0,
    nearest: Annotated[
        bool, typer.Option("--nearest", help="Write the nearest plan where this one cannot be, and say what changed.")
    ] = False,
    evaluate_on: Annotated[
        str | None,
        typer.Option(
            "--evaluate",
            metavar="TEXT",
            help="Then measure it on 4,096 held-out tokens of a text, beside the original and uniform plans; told in "
            "the model card too. A folder that has this very plan is verified and measured again.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put a plan onto its model, write a folder that an engine loads, and hold it against the plan."""
    document = documents.check_plan_document(read(plan))
    documents.check_parent(out)
    store = pipeline.open_store() if nearest or evaluate_on is not None else None
    target = knowledge.find_target(to) if to else knowledge.target_for(document.request.engine)
    if nearest:
        _refuse_early(out, calibration, evaluate_on)
    way = {"method": method.value, "calibration": calibration, "recover": recover}
    measured: dict[str, Evaluation] = {}
    with output.progress() as report:
        given = document
        if nearest:
            document = pipeline.nearest_plan(given, target.name, store, report)
        if evaluate_on is None:
            pipeline.apply_plan(document, target.name, out, report, **way)
        else:
            plan_id = pipeline.keep_plan(document, store)
            request = ApplyRequest(plan_id=plan_id, to=target.name, out=str(out), text=evaluate_on, **way)
            with resumable():
                pipeline.apply_and_evaluate(request, store, report)
            measured = latest_evaluations(store.evaluations(plan_id))
    result = {"folder": str(out), "to": target.name, **_written(out, recovered=recover > 0)}
    if nearest:
        result |= plan_output.changes(given, document)
    text = output.apply_text(result)
    if measured:
        text += "\n" + evaluation.applied_text(measured, pipeline.plan_in(out).own_prediction, text)
        result["evaluations"] = [found.model_dump(mode="json") for found in measured.values()]
    show(result if as_json else text, as_json)


def _refuse_early(out: Path, calibration: str | None, evaluate_on: str | None) -> None:
    """What is wrong already before the nearest plan is looked for, which may load the model."""
    if evaluate_on is None:  # else an export of this very plan is welcome there
        check_free(out)
    else:
        texts.check_readable(evaluate_on, "evaluation")
    if calibration:
        texts.check_readable(calibration)


def _written(folder: Path, recovered: bool) -> dict[str, Any]:
    """What an export says of itself."""
    method, record = pipeline.method_in(folder), pipeline.record_in(folder)
    found: dict[str, Any] = {
        "method": method.model_dump(mode="json", exclude_none=True),
        "simulated": record.otherwise,
        "weights_bytes": record.bytes,
    }
    found |= {name: said for name in ("size_note", "over_limit") if (said := getattr(record, name))}
    if record.left:
        found["left_to_run"] = record.left
    if recovered:
        found["recovered"] = pipeline.recovery_in(folder).model_dump(mode="json")
    return found


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A folder that `apply` wrote.")],
    plan: Annotated[Path, typer.Argument(help="The plan that it should hold.")],
    as_json: Json = False,
) -> None:
    """Hold applied files against their plan: every tensor's format, groups, bytes and values, and what they compute."""
    document = documents.check_plan_document(read(plan))
    with output.progress() as report:
        found = pipeline.verify_export(folder, document, report)
    show(found.model_dump(mode="json") if as_json else output.verification_text(folder, found), as_json)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(help=MODEL_HELP + " Or a folder that `apply` wrote, or a quantized checkpoint.")
    ],
    against: requests.Against = None,
    text: Text = "python-docs",
    tokens: Annotated[
        int, typer.Option(min=64, help="Tokens of held-out text; a quarter of a text of your own is held out.")
    ] = 4096,
    seq_len: SeqLen = 256,
    stride: requests.Stride = None,
    tasks: requests.Tasks = "",
    limit: requests.Limit = None,
    tasks_from: requests.TasksFrom = None,
    speed: requests.Speed = False,
    as_json: Json = False,
) -> None:
    """Perplexity with its standard error on text held out from calibration; tasks and speed on request."""
    options = EvaluationOptions(
        stride=stride, tasks=requests.names(tasks), limit=limit, tasks_from=tasks_from, speed=speed
    )
    with output.progress() as report:
        found = pipeline.evaluate_source(model, text, tokens, seq_len, report, against, options)
    show(found.model_dump(mode="json") if as_json else evaluation.evaluation_text(found), as_json)


@app.command()
def answers(
    plan: Annotated[Path, typer.Argument(help="A plan that `plan` wrote.")],
    prompts: Annotated[
        Path | None, typer.Option(help="A text with one prompt a line; default: twelve examples.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, max=4096, help="Tokens of the longest answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 takes the likeliest token every time.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of what a temperature above 0 draws.")] = 0,
    folder: Annotated[
        Path | None, typer.Option(help="An export of the plan that answers for it; default: the plan simulated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Have the original and a plan answer prompts, to be judged blind on the page; see `preferences`.

    Every answer is stored as it arrives: stop with Ctrl-C, run the same command again, and it goes on there.
    """
    document = documents.check_plan_document(read(plan))
    asked = parse_prompts(read(prompts)) if prompts else EXAMPLES
    where = str(folder.absolute()) if folder else ""
    store = pipeline.open_store()
    fields = {"prompts": asked, "tokens": tokens, "temperature": temperature, "seed": seed, "folder": where}
    test_id = pipeline.open_blind_test(document, store, **fields)
    with silenced_stdout(), output.progress() as report, resumable():
        pipeline.answer_prompts(test_id, store, report)
    found = output.answers_summary(store.blind_test(test_id))
    show(found if as_json else output.answers_text(found), as_json)


@app.command("preferences")
def show_preferences(
    test: Annotated[str, typer.Argument(help="The id that `answers` printed.")],
    reveal: Annotated[bool, typer.Option("--reveal", help="End the voting, for good, to see the result.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where to write votes and answers as CSV.")] = None,
    as_json: Json = False,
) -> None:
    """Show what the votes of a blind test say, with an exact sign test, once the voting has ended."""
    if out:
        documents.check_writable(out)
    judged = pipeline.revealed_test(test, pipeline.open_store(), reveal)
    if out:
        documents.write_document(out, preferences.to_csv(judged))
    found = preferences.result(judged)
    show(found.model_dump(mode="json") if as_json else preferences.sentence(found), as_json)
