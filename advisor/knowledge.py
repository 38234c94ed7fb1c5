"""The tables of `profiles/` as validated nouns: what the road knows of devices, engines, formats and roles."""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from advisor import this_machine
from advisor.errors import KnowledgeError
from advisor.types import (
    Approach,
    BatchMarks,
    Efficiency,
    Engine,
    EngineFormat,
    ExpectedLoss,
    Format,
    GuideTopic,
    Hardware,
    Noun,
    PerplexityMarks,
    QuantizationMethod,
    Role,
    RoleAdvice,
    Scenario,
    Target,
)

BUILT_IN = Path(__file__).resolve().parent.parent / "profiles"
_LISTABLE = 20
_STORED = ("bits", "group_size", "scale_bits", "zero_point_bits")

Row = TypeVar("Row", bound=Noun)


def folders() -> tuple[Path, ...]:
    """The folders of tables: the product's own, then the one that `ADVISOR_PROFILES` names, whose rows win."""
    own = os.environ.get("ADVISOR_PROFILES")
    if not own:
        return (BUILT_IN,)
    folder = Path(own).expanduser().resolve()
    if not folder.is_dir():
        raise KnowledgeError(f"ADVISOR_PROFILES names {folder}, which is no folder; create it or unset the variable.")
    return (BUILT_IN, folder)


def formats() -> dict[str, Format]:
    """Every storage format by name, in the order of `formats.toml`. Raises KnowledgeError when the table is wrong."""
    return _formats(folders())


def engines() -> dict[str, Engine]:
    """Every engine by name, one file each. Raises KnowledgeError, also when one stores a format that nobody knows."""
    return _engines(folders())


def hardware() -> dict[str, Hardware]:
    """Every device by name, first the machine that this runs on, which is detected at the first call.

    Raises KnowledgeError when a table is wrong or misses a format family.
    """
    return _hardware(folders())


def roles() -> dict[Role, RoleAdvice]:
    """The guide's advice by role; every role has one. Raises KnowledgeError when the table is wrong."""
    return _roles(folders())


def scenarios() -> dict[str, Scenario]:
    """The guide's deployments by name.

    Raises KnowledgeError when the table is wrong, or names a device, an engine or a format that does not fit.
    """
    return _scenarios(folders())


def methods() -> dict[str, QuantizationMethod]:
    """Every quantization method by name. Raises KnowledgeError when the table is wrong or names an unknown format."""
    return _methods(folders())


def approaches() -> dict[str, Approach]:
    """Quantizing after training and with it, by name. Raises KnowledgeError when the table is wrong."""
    return _approaches(folders())


def guide() -> dict[str, GuideTopic]:
    """Every topic of the guide by name, its numbers still to be filled in (`advisor.guide`).

    Raises KnowledgeError when the table is wrong.
    """
    return _guide(folders())


def expected_losses() -> dict[str, ExpectedLoss]:
    """What the guide expects a format family to lose, of those that it names. Raises KnowledgeError likewise."""
    return _expected_losses(folders())


def targets() -> dict[str, Target]:
    """Every way to write an applied plan by name, in the order in which they are offered.

    Raises KnowledgeError when the table is wrong, or names an engine that nobody knows.
    """
    return _targets(folders())


def targets_for(engine: str) -> tuple[Target, ...]:
    """The ways to write a plan that `engine` loads, the one to take first; empty for an engine that nothing serves."""
    return tuple(target for target in targets().values() if engine in target.engines)


def perplexity_marks() -> PerplexityMarks:
    """The guide's marks for a rise of perplexity. Raises KnowledgeError when the table is wrong."""
    return _only_table(folders(), "marks.toml", "perplexity", PerplexityMarks)


def batch_marks() -> BatchMarks:
    """How many sequences at once are few, and how many are many. Raises KnowledgeError when the table is wrong."""
    return _only_table(folders(), "marks.toml", "batch", BatchMarks)


def efficiency() -> Efficiency:
    """Shares of peak and bandwidth that kernels reach. Raises KnowledgeError when the table is wrong."""
    return _only_table(folders(), "latency.toml", "efficiency", Efficiency)


def find_format(name: str) -> Format:
    """The format called `name`; raises KnowledgeError naming the known ones."""
    return _find(name, formats(), "format", "formats")


def find_engine(name: str) -> Engine:
    """The engine called `name`; raises KnowledgeError naming the known ones."""
    return _find(name, engines(), "engine", "engines")


def find_hardware(name: str) -> Hardware:
    """The device called `name`; raises KnowledgeError naming the known ones."""
    return _find(name, hardware(), "device", "hardware")


def find_scenario(name: str) -> Scenario:
    """The scenario called `name`; raises KnowledgeError naming the known ones."""
    return _find(name, scenarios(), "scenario", "scenarios")


def find_method(name: str) -> QuantizationMethod:
    """The quantization method called `name`; raises KnowledgeError naming the known ones."""
    return _find(name, methods(), "method", "methods")


def target_for(engine: str) -> Target:
    """The way to write a plan for `engine` to take first; for an engine that nothing serves, the first of the table."""
    return next(iter((*targets_for(engine), *targets().values())))


def find_target(name: str) -> Target:
    """The way to write a plan called `name`; an engine's name is the first way that serves it.

    Raises KnowledgeError naming the known ones.
    """
    return next(iter(targets_for(name)), None) or _find(name, targets(), "target", "targets")


def stored_format(engine: Engine, fmt: Format) -> Format:
    """`fmt` as `engine` really stores it: the engine's group size, scale and zero-point bits where they differ.

    Raises KnowledgeError when the engine does not store the format.
    """
    if fmt.name not in engine.formats:
        raise KnowledgeError(
            f"{engine.label} does not store {fmt.name}; choose one of {', '.join(engine.formats)}, or another engine."
        )
    return _as_stored(fmt, engine.formats[fmt.name])


@cache
def _as_stored(fmt: Format, own: EngineFormat) -> Format:
    return fmt.model_copy(update=own.model_dump(include=set(_STORED), exclude_none=True))


def has_kernel(engine: Engine, fmt: Format, device: Hardware) -> bool:
    """Whether the engine stores the format, and states no NVIDIA compute capability for it that the device lacks."""
    own, capability = engine.formats.get(fmt.name), device.compute_capability
    if own is None or capability is None:
        return own is not None
    return (own.least_capability or 0.0) <= capability.value < (own.below_capability or math.inf)


def multiplies_rounded(engine: Engine, fmt: Format, device: Hardware) -> bool:
    """Whether the format's rounded activations are multiplied as such: the device has units, the engine a kernel."""
    return fmt.quantizes_activations and device.support[fmt.family] == "native" and has_kernel(engine, fmt, device)


@cache
def _formats(places: tuple[Path, ...]) -> dict[str, Format]:
    return _rows(Format, (place / "formats.toml" for place in places))


@cache
def _engines(places: tuple[Path, ...]) -> dict[str, Engine]:
    rows = _rows(Engine, _files(places, "engines"))
    known = _formats(places)
    for engine in rows.values():
        for name in engine.formats:
            if name not in known:
                raise KnowledgeError(
                    f"Engine '{engine.name}' in profiles/engines stores the format '{name}', which formats.toml lacks; "
                    f"{_suggest(name, known)}add the format there or take it out of the engine."
                )
    return rows


@cache
def _hardware(places: tuple[Path, ...]) -> dict[str, Hardware]:
    rows = _rows(Hardware, _files(places, "hardware"))
    families = {fmt.family for fmt in _formats(places).values()}
    for device in rows.values():
        missing = sorted(families - device.support.keys())
        if missing:
            raise KnowledgeError(
                f"Device '{device.name}' in profiles/hardware does not say how it computes with {', '.join(missing)}; "
                "add native, weight_only, emulated or none to its `support`."
            )
    if this_machine.NAME not in rows:
        rows = {this_machine.NAME: this_machine.detect(rows.values(), sorted(families)), **rows}
    return rows


@cache
def _scenarios(places: tuple[Path, ...]) -> dict[str, Scenario]:
    rows = _rows(Scenario, (place / "scenarios.toml" for place in places))
    for scenario in rows.values():
        problem = _misfit(find_hardware(scenario.hardware), find_engine(scenario.engine), scenario)
        if problem:
            raise KnowledgeError(f"The scenario '{scenario.name}' in profiles/scenarios.toml {problem}; correct it.")
    return rows


@cache
def _methods(places: tuple[Path, ...]) -> dict[str, QuantizationMethod]:
    rows = _rows(QuantizationMethod, (place / "methods.toml" for place in places))
    for method in rows.values():
        for kind, names, known in (
            ("format", method.formats, _formats(places)),
            ("engine", method.engines, _engines(places)),
        ):
            unknown = next((name for name in names if name not in known), None)
            if unknown is not None:
                raise KnowledgeError(
                    f"The method '{method.name}' in profiles/methods.toml names the {kind} '{unknown}', which is in no "
                    f"table; {_suggest(unknown, known)}correct it."
                )
    return rows


@cache
def _approaches(places: tuple[Path, ...]) -> dict[str, Approach]:
    return _rows(Approach, (place / "approaches.toml" for place in places))


@cache
def _guide(places: tuple[Path, ...]) -> dict[str, GuideTopic]:
    return _rows(GuideTopic, (place / "guide.toml" for place in places))


@cache
def _expected_losses(places: tuple[Path, ...]) -> dict[str, ExpectedLoss]:
    return _rows(ExpectedLoss, (place / "losses.toml" for place in places), key="family")


def _misfit(device: Hardware, engine: Engine, scenario: Scenario) -> str:
    """Why the engine cannot do what the scenario asks; empty when it can."""
    if device.vendor not in engine.vendors:
        return f"puts {engine.label} on {device.label}, which it does not run on"
    if scenario.gpus > 1 and not engine.tensor_parallel:
        return f"has {scenario.gpus} GPUs, over which {engine.label} splits no layers"
    if scenario.kv_bits not in engine.kv_cache_bits:
        return f"asks for a KV cache of {scenario.kv_bits} bits, which {engine.label} does not have"
    lacking = [name for name in scenario.formats if find_format(name).name not in engine.formats]
    return f"asks for {lacking[0]}, which {engine.label} does not store" if lacking else ""


@cache
def _targets(places: tuple[Path, ...]) -> dict[str, Target]:
    rows = _rows(Target, (place / "targets.toml" for place in places))
    for target in rows.values():
        unknown = [name for name in (target.stored_by, *target.engines) if name not in _engines(places)]
        if unknown:
            raise KnowledgeError(
                f"The target '{target.name}' in profiles/targets.toml names the engine '{unknown[0]}', which has no "
                "table in profiles/engines; correct it."
            )
    return rows


@cache
def _roles(places: tuple[Path, ...]) -> dict[Role, RoleAdvice]:
    rows = _rows(RoleAdvice, (place / "roles.toml" for place in places), key="role")
    missing = [role.value for role in Role if role.value not in rows]
    if missing:
        raise KnowledgeError(f"profiles/roles.toml has no advice for {', '.join(missing)}; add a table for each.")
    return {role: rows[role.value] for role in Role}


@cache
def _only_table(places: tuple[Path, ...], file_name: str, name: str, noun: type[Row]) -> Row:
    """The one table of a file; that of the last folder wins."""
    files = [place / file_name for place in places]
    tables = [(file, _read(file)[name]) for file in files if name in _read(file)]
    if not tables:
        raise KnowledgeError(f"profiles/{file_name} has no [{name}]; restore the profiles/ folder of this version.")
    file, own = tables[-1]
    return _validated(noun, file, name, own)


def _files(places: Iterable[Path], kind: str) -> list[Path]:
    return [file for place in places for file in sorted((place / kind).glob("*.toml"))]


def _rows(noun: type[Row], files: Iterable[Path], key: str = "name") -> dict[str, Row]:
    """Every table of every file as a `noun`; the table's own name becomes its `key`, later files win.

    A table may say `like = "other"`: it starts from a table read before it and replaces the keys that it gives.
    """
    raw: dict[str, dict[str, Any]] = {}
    rows: dict[str, Row] = {}
    for file in files:
        for name, table in _read(file).items():
            raw[name] = _inherit(file, name, table, raw)
            rows[name] = _validated(noun, file, name, {**raw[name], key: name})
    return rows


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        # A folder of one's own need not hold every table; the built-in one always does.
        if file.parent != BUILT_IN:
            return {}
        raise KnowledgeError(f"The table {file} is missing; restore the profiles/ folder of this version.")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KnowledgeError(f"{file} is not valid TOML ({error}); correct that line.") from error
    except OSError as error:
        raise KnowledgeError(f"{file} cannot be read ({error.strerror}); check its permissions.") from error


def _inherit(file: Path, name: str, table: Any, raw: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise KnowledgeError(f"{file}: '{name}' stands outside of any [table]; move it below the table it belongs to.")
    table = dict(table)
    model = table.pop("like", None)
    if model is None:
        return table
    if model not in raw:
        raise KnowledgeError(
            f"{file}: [{name}] is like '{model}', which is not a table before it; {_suggest(model, raw)}"
            "move that table up or correct the name."
        )
    return {**raw[model], **table}


def _validated(noun: type[Row], file: Path, name: str, values: dict[str, Any]) -> Row:
    try:
        return noun.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the table"
        raise KnowledgeError(f"{file}: [{name}] {field}: {first['msg']}; correct that field.") from error


def _find(name: str, rows: dict[str, Row], noun: str, table: str) -> Row:
    if name in rows:
        return rows[name]
    # Dozens of devices would bury the sentence; the few engines and formats are its most useful part.
    known = f"known are {', '.join(rows)}; " if len(rows) <= _LISTABLE else ""
    raise KnowledgeError(
        f"Unknown {noun} '{name}'; {_suggest(name, rows)}{known}see `python -m advisor tables {table}`."
    )


def _suggest(name: str, known: Iterable[str]) -> str:
    wanted, names = name.lower(), list(known)
    close = [other for other in names if wanted and wanted in other][:3]
    close = close or difflib.get_close_matches(wanted, names, n=1)
    return f"did you mean {' or '.join(repr(other) for other in close)}? " if close else ""
