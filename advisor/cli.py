"""The command line: the same use cases as the page, human output by default and JSON on request."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from advisor import cli_output, documents, jobs, knowledge, pipeline
from advisor.errors import AdvisorError, PlanError
from advisor.front import POINTS
from advisor.quiet import silenced_stdout
from advisor.types import (
    MOST_FLOOR_BITS,
    Budget,
    Catalogue,
    PlanRequest,
    ProfileRequest,
    Role,
    Scenario,
    SensitivityProfile,
)

app = typer.Typer(
    help="Which layers may go to INT4, which must stay INT8 or BF16, and what will it cost?",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# What every wrong option or argument raises; Typer gives only its children a public name.
_UsageError = typer.BadParameter.__bases__[0]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(KiB|MiB|GiB|TiB|KB|MB|GB|TB)", re.IGNORECASE)
_UNITS = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BITS = re.compile(r"(\d+(?:\.\d+)?)\s*bits?", re.IGNORECASE)
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")

_MODEL = "`smollm2` (the demo model), a hub id, a folder of safetensors, or a .gguf file."
_TEXT = (
    "`python-docs`, `python-chat`, `mix` of both, `wikitext2`, `c4`, `ultrachat`, a .txt, .jsonl or .parquet file; "
    "several joined by `+` give equal shares."
)

_LAYERS = "a layer's name, `block 5`, `blocks 0-3`, or a regular expression of whole names; may be repeated."

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
SeqLen = Annotated[int, typer.Option(min=8, help="Tokens of one sequence.")]
Text = Annotated[str, typer.Option(help=_TEXT)]


class Target(StrEnum):
    QUANTO = "quanto"
    SIMULATED = "simulated"


class Table(StrEnum):
    HARDWARE = "hardware"
    ENGINES = "engines"
    FORMATS = "formats"
    ROLES = "roles"
    SCENARIOS = "scenarios"


class Dtype(StrEnum):
    AUTO = "auto"
    BF16 = "bf16"
    FP32 = "fp32"


class Floors(StrEnum):
    OFF = "off"
    ADVISE = "advise"
    ENFORCE = "enforce"


class KvBits(StrEnum):
    FOUR = "4"
    EIGHT = "8"
    SIXTEEN = "16"


class Method(StrEnum):
    FISHER = "fisher"
    EXACT = "exact"
    AUTO = "auto"


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help=_MODEL)],
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
    layers: Annotated[str, typer.Option(help="Measure layers whose name matches this regular expression.")] = "",
    around: Annotated[
        Path | None,
        typer.Option(
            help="A plan: measure exactly what giving back each of its layers wins, all others staying quantized; "
            "its formats are the plan's."
        ),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype to measure in; auto is fp32 on a CPU.")] = Dtype.AUTO,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    seed: Annotated[int, typer.Option(help="Chooses the calibration passages and the drawn labels.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only judge the text and estimate time and memory.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure what quantizing each layer does to the model, everything else left as it is.

    Every score is stored as it arrives: stop with Ctrl-C, run the same command again, and it goes on there.
    """
    chosen = _names(formats)
    if not chosen:
        raise PlanError("--formats is empty: name at least one, such as int8,int4_g64 (see `tables formats`).")
    plan = documents.check_plan_document(_read(around)) if around else None
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
        with cli_output.progress() as report:
            preview = pipeline.preview_profile(request, report)
        _print(preview.model_dump(mode="json") if as_json else cli_output.preview_text(preview), as_json)
        return
    documents.check_writable(out)
    with cli_output.progress() as report:
        found = pipeline.profile_model(request, pipeline.open_store(), report)
    documents.write_document(out, found.model_dump_json(indent=1))
    _print(cli_output.profile_summary(found) if as_json else cli_output.profile_text(found, out), as_json)


@app.command()
def plan(
    profile: Annotated[Path, typer.Argument(help="A sensitivity profile that `profile` wrote.")],
    out: Annotated[Path, typer.Option(help="Where to write the plan.")],
    hardware: Annotated[str, typer.Option(help="A device: see `tables hardware`.")] = "",
    engine: Annotated[str, typer.Option(help="An engine: see `tables engines`.")] = "",
    scenario: Annotated[
        str, typer.Option(help="Take from a deployment what is not given here: see `tables scenarios`.")
    ] = "",
    vram: Annotated[
        str,
        typer.Option(
            help="Memory of one device, such as 24GiB; default: the device's own. The engine fills only a part of it."
        ),
    ] = "",
    weights: Annotated[str, typer.Option(help="Size of the weights: 4.5bits on average, or 3GiB in all.")] = "",
    max_ppl_increase: Annotated[
        str,
        typer.Option(
            help="Least memory within this rise of perplexity, such as 5%; with --vram or --weights, most speed within "
            "both."
        ),
    ] = "",
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of one sequence in the KV cache; default: 4096, or all that the model reads."),
    ] = None,
    sequences: Annotated[int | None, typer.Option(min=1, help="Sequences served at once; default: 1.")] = None,
    kv_bits: Annotated[
        KvBits | None, typer.Option(help="Bits of one value in the KV cache, of those the engine has; default: 16.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs over which every layer is split; default: 1.")] = None,
    lock: Annotated[list[str] | None, typer.Option(help=f"LAYERS=FORMAT; {_LAYERS}")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help=f"LAYERS that keep the model's dtype; {_LAYERS}")] = None,
    formats: Annotated[str, typer.Option(help="Choose among these only; default: all measured.")] = "",
    role_floors: Annotated[Floors, typer.Option(help="What the least bits per role do.")] = Floors.ADVISE,
    floor: Annotated[
        list[str] | None,
        typer.Option(
            help="ROLE=BITS in place of the guide's least bits, such as mlp_down=8; 0 lifts a floor; may be repeated."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose a format for every layer: least loss within memory, least memory within a loss, most speed within both."""
    measured = documents.check_profile_document(_read(profile))
    preset = knowledge.find_scenario(scenario) if scenario else None
    hardware = hardware or (preset.hardware if preset else "")
    engine = engine or (preset.engine if preset else "")
    if not hardware or not engine:
        raise PlanError("--hardware and --engine are needed: give both, or a --scenario that has them.")
    load = {
        "context": context,
        "sequences": sequences,
        "kv_bits": int(kv_bits.value) if kv_bits else None,
        "gpus": gpus,
    }
    request = PlanRequest(
        hardware=hardware,
        engine=engine,
        budget=Budget(**_load(load, preset, measured.catalogue), **_limit(hardware, vram, weights, max_ppl_increase)),
        locks=dict(_lock(entry) for entry in lock or []),
        excluded=tuple(exclude or ()),
        formats=_names(formats) or _measured_ones(preset, measured),
        role_floors=role_floors.value,
        floor_bits=dict(_floor(entry) for entry in floor or []),
    )
    with silenced_stdout():
        made = pipeline.make_plan(measured, request)
    documents.write_document(out, made.model_dump_json(indent=1))
    _print(cli_output.plan_summary(made) if as_json else cli_output.plan_text(made, measured.catalogue, out), as_json)


@app.command()
def front(
    profile: Annotated[Path, typer.Argument(help="A sensitivity profile that `profile` wrote.")],
    hardware: Annotated[str, typer.Option(help="A device: see `tables hardware`.")],
    engine: Annotated[str, typer.Option(help="An engine: see `tables engines`.")],
    points: Annotated[int, typer.Option(min=1, max=200, help="Sizes to show, evenly spaced.")] = POINTS,
    vram: Annotated[str, typer.Option(help="Memory that marks what fits; default: the device's own.")] = "",
    context: Annotated[int, typer.Option(min=1, help="Tokens of one sequence in the KV cache.")] = 4096,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences served at once.")] = 1,
    kv_bits: Annotated[KvBits, typer.Option(help="Bits of one value in the KV cache.")] = KvBits.SIXTEEN,
    lock: Annotated[list[str] | None, typer.Option(help="NAME_OR_REGEX=FORMAT; may be repeated.")] = None,
    formats: Annotated[str, typer.Option(help="Choose among these only; default: all measured.")] = "",
    role_floors: Annotated[Floors, typer.Option(help="The guide's least bits per role.")] = Floors.ADVISE,
    out: Annotated[Path | None, typer.Option(help="Where to write the whole front as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Show the least loss at every size, with speed, beside uniform plans and the guide's rule."""
    measured = documents.check_profile_document(_read(profile))
    limit = _limit(hardware, vram, "", "")
    request = PlanRequest(
        hardware=hardware,
        engine=engine,
        budget=Budget(context=context, sequences=sequences, kv_bits=int(kv_bits.value), **limit),
        locks=dict(_lock(entry) for entry in lock or []),
        formats=_names(formats),
        role_floors=role_floors.value,
    )
    with silenced_stdout():
        found = pipeline.pareto_front(measured, request, points)
    if out:
        documents.write_document(out, found.model_dump_json(indent=1))
    _print(found.model_dump(mode="json") if as_json else cli_output.front_text(found, points, out), as_json)


@app.command()
def apply(
    plan: Annotated[Path, typer.Argument(help="A plan that `plan` wrote.")],
    out: Annotated[Path, typer.Option(help="A new folder for the quantized model.")],
    to: Annotated[Target, typer.Option(help="quanto packs the weights; simulated loads anywhere.")] = Target.QUANTO,
    as_json: Json = False,
) -> None:
    """Put a plan onto its model and write a folder of safetensors."""
    document = documents.check_plan_document(_read(plan))
    with cli_output.progress() as report:
        simulated = pipeline.apply_plan(document, to.value, out, report)
    result = {"folder": str(out), "to": to.value, "simulated": simulated}
    _print(result if as_json else cli_output.apply_text(result), as_json)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help=_MODEL + " Or a folder that `apply` wrote.")],
    text: Text = "python-docs",
    tokens: Annotated[int, typer.Option(min=64, help="Tokens of held-out text.")] = 4096,
    seq_len: SeqLen = 256,
    as_json: Json = False,
) -> None:
    """Perplexity with its standard error on text held out from calibration."""
    with cli_output.progress() as report:
        found = pipeline.evaluate_source(model, text, tokens, seq_len, report)
    _print(found.model_dump(mode="json") if as_json else cli_output.evaluation_text(found), as_json)


@app.command()
def tables(which: Annotated[Table, typer.Argument(help="What to list.")], as_json: Json = False) -> None:
    """List what the advisor knows about devices, engines, formats, roles and deployments, with sources."""
    rows: dict[Any, Any] = getattr(knowledge, which.value)()
    found = [row.model_dump(mode="json") for row in rows.values()]
    _print(found if as_json else cli_output.table_text(which.value, list(rows.values())), as_json)


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of plan.json."""
    _print(documents.plan_schema(), True)


@app.command("run-job", hidden=True)
def run_job(job_id: str) -> None:
    """Carry out a queued job; the page starts this."""
    jobs.run_job(job_id)


def main() -> None:
    """Run a command; a refusal is one line on standard error and exit status 2."""
    with _one_line_errors():
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    raise SystemExit(status or 0)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except AdvisorError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except (KeyboardInterrupt, typer.Abort):
        print("stopped: what was measured is kept; the same command goes on from there", file=sys.stderr)
        raise SystemExit(130) from None
    except _UsageError as error:
        print(f"error: {' '.join(error.format_message().split())} See --help.", file=sys.stderr)
        raise SystemExit(2) from error
    except BrokenPipeError:
        raise SystemExit(1) from None  # the reader of a pipe went away
    except Exception as error:  # a defect of ours: still one line, and the whole story for whoever reports it
        if os.environ.get("ADVISOR_DEBUG"):
            raise
        line = (str(error).strip().splitlines() or [""])[0]
        print(
            f"error: unexpected {type(error).__name__}: {line} Set ADVISOR_DEBUG=1 to see where, and report it.",
            file=sys.stderr,
        )
        raise SystemExit(1) from error


def _limit(hardware: str, vram: str, weights: str, max_ppl_increase: str) -> dict[str, float | int]:
    if vram and weights:
        raise PlanError("--vram and --weights exclude each other: give one limit of memory.")
    found: dict[str, float | int] = {}
    if max_ppl_increase:
        percent = _PERCENT.fullmatch(max_ppl_increase.strip())
        if not percent:
            raise PlanError(f"--max-ppl-increase {max_ppl_increase!r} is no percentage: write it like 5%.")
        found["max_ppl_increase"] = float(percent[1]) / 100
    if weights and (bits := _BITS.fullmatch(weights.strip())):
        return found | {"weight_bits": _positive(float(bits[1]), "--weights")}
    if weights:
        return found | {"weight_bytes": _size(weights, "--weights", "4.5bits or 3GiB")}
    if vram:
        return found | {"vram_bytes": _size(vram, "--vram", "24GiB")}
    return found or {"vram_bytes": knowledge.find_hardware(hardware).memory_bytes}


def _load(given: dict[str, int | None], preset: Scenario | None, catalogue: Catalogue) -> dict[str, int]:
    """The load that memory is planned for: what was given, else the scenario's, else the product's own."""
    own = Budget.model_fields
    found = {name: getattr(preset, name) if preset else own[name].default for name in given}
    found["context"] = min(found["context"], catalogue.max_context)
    return found | {name: value for name, value in given.items() if value is not None}


def _measured_ones(preset: Scenario | None, measured: SensitivityProfile) -> tuple[str, ...]:
    """The scenario's formats of which there are scores; empty, which means all, where there are none."""
    return tuple(name for name in (preset.formats if preset else ()) if name in measured.formats)


def _size(text: str, option: str, example: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise PlanError(f"{option} {text!r} is no size: write it like {example}.")
    return int(_positive(int(float(match[1]) * _UNITS[match[2].lower()]), option))


def _positive(value: float, option: str) -> float:
    if value <= 0:
        raise PlanError(f"{option} must be more than zero.")
    return value


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def _lock(entry: str) -> tuple[str, str]:
    name, _, fmt = entry.rpartition("=")
    if not name:
        raise PlanError(f"--lock {entry!r} is not LAYERS=FORMAT: write it like lm_head=bf16.")
    return name, knowledge.find_format(fmt).name


def _floor(entry: str) -> tuple[Role, int]:
    name, _, bits = entry.partition("=")
    if name not in list(Role):
        raise PlanError(f"--floor {entry!r} names no role: write it like mlp_down=8, with one of {', '.join(Role)}.")
    if not bits.isdecimal() or int(bits) > MOST_FLOOR_BITS:
        raise PlanError(f"--floor {entry!r} gives no bits from 0 to {MOST_FLOOR_BITS}: write it like mlp_down=8.")
    return Role(name), int(bits)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or 'it is not text'}): check the path."
        ) from error


def _print(found: Any, as_json: bool) -> None:
    print(json.dumps(found, indent=2) if as_json else found)
