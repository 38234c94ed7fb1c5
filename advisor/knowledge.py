"""The tables of `profiles/` as validated nouns: what the road knows of devices, engines, formats and roles."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from advisor import this_machine
from advisor.errors import KnowledgeError
from advisor.table_files import Row, files_of, folders, only_table, rows_of, suggest
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
    PerplexityMarks,
    QuantizationMethod,
    Role,
    RoleAdvice,
    Scenario,
    Target,
)

_LISTABLE = 20
_STORED = ("bits", "group_size", "scale_bits", "zero_point_bits")


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
    return only_table(folders(), "marks.toml", "perplexity", PerplexityMarks)


def batch_marks() -> BatchMarks:
    """How many sequences at once are few, and how many are many. Raises KnowledgeError when the table is wrong."""
    return only_table(folders(), "marks.toml", "batch", BatchMarks)


def efficiency() -> Efficiency:
    """Shares of peak and bandwidth that kernels reach. Raises KnowledgeError when the table is wrong."""
    return only_table(folders(), "latency.toml", "efficiency", Efficiency)


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

    Raises KnowledgeError naming the known ones, engines that something serves among them.
    """
    served = {engine: target_for(engine) for target in targets().values() for engine in target.engines}
    found = served.get(name) or targets().get(name)
    if found is None:
        raise KnowledgeError(
            f"Unknown target '{name}'; {suggest(name, [*targets(), *served])}known are {', '.join(targets())}, and the "
            f"engines {', '.join(one for one in served if one not in targets())}; see `python -m advisor tables "
            "targets`."
        )
    return found


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
    return rows_of(Format, (place / "formats.toml" for place in places))


@cache
def _engines(places: tuple[Path, ...]) -> dict[str, Engine]:
    rows = rows_of(Engine, files_of(places, "engines"))
    known = _formats(places)
    for engine in rows.values():
        for name in engine.formats:
            if name not in known:
                raise KnowledgeError(
                    f"Engine '{engine.name}' in profiles/engines stores the format '{name}', which formats.toml lacks; "
                    f"{suggest(name, known)}add the format there or take it out of the engine."
                )
    return rows


@cache
def _hardware(places: tuple[Path, ...]) -> dict[str, Hardware]:
    rows = rows_of(Hardware, files_of(places, "hardware"))
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
    rows = rows_of(Scenario, (place / "scenarios.toml" for place in places))
    for scenario in rows.values():
        device, engine = find_hardware(scenario.hardware), find_engine(scenario.engine)
        problem = misfit(device, engine, scenario.gpus, scenario.kv_bits, scenario.formats)
        if problem:
            raise KnowledgeError(f"The scenario '{scenario.name}' in profiles/scenarios.toml {problem}; correct it.")
    return rows


@cache
def _methods(places: tuple[Path, ...]) -> dict[str, QuantizationMethod]:
    rows = rows_of(QuantizationMethod, (place / "methods.toml" for place in places))
    for method in rows.values():
        for kind, names, known in (
            ("format", method.formats, _formats(places)),
            ("engine", method.engines, _engines(places)),
        ):
            unknown = next((name for name in names if name not in known), None)
            if unknown is not None:
                raise KnowledgeError(
                    f"The method '{method.name}' in profiles/methods.toml names the {kind} '{unknown}', which is in no "
                    f"table; {suggest(unknown, known)}correct it."
                )
    return rows


@cache
def _approaches(places: tuple[Path, ...]) -> dict[str, Approach]:
    return rows_of(Approach, (place / "approaches.toml" for place in places))


@cache
def _guide(places: tuple[Path, ...]) -> dict[str, GuideTopic]:
    return rows_of(GuideTopic, (place / "guide.toml" for place in places))


@cache
def _expected_losses(places: tuple[Path, ...]) -> dict[str, ExpectedLoss]:
    return rows_of(ExpectedLoss, (place / "losses.toml" for place in places), key="family")


def misfit(device: Hardware, engine: Engine, gpus: int, kv_bits: int, wanted: Iterable[str]) -> str:
    """Why the engine cannot do on the device what a scenario asks, with these formats; empty when it can."""
    if device.vendor not in engine.vendors:
        return f"puts {engine.label} on {device.label}, which it does not run on"
    if gpus > 1 and not engine.tensor_parallel:
        return f"has {gpus} GPUs, over which {engine.label} splits no layers"
    if kv_bits not in engine.kv_cache_bits:
        return f"asks for a KV cache of {kv_bits} bits, which {engine.label} does not have"
    lacking = [name for name in wanted if find_format(name).name not in engine.formats]
    return f"asks for {lacking[0]}, which {engine.label} does not store" if lacking else ""


@cache
def _targets(places: tuple[Path, ...]) -> dict[str, Target]:
    rows = rows_of(Target, (place / "targets.toml" for place in places))
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
    rows = rows_of(RoleAdvice, (place / "roles.toml" for place in places), key="role")
    missing = [role.value for role in Role if role.value not in rows]
    if missing:
        raise KnowledgeError(f"profiles/roles.toml has no advice for {', '.join(missing)}; add a table for each.")
    return {role: rows[role.value] for role in Role}


def _find(name: str, rows: dict[str, Row], noun: str, table: str) -> Row:
    if name in rows:
        return rows[name]
    # Dozens of devices would bury the sentence; the few engines and formats are its most useful part.
    known = f"known are {', '.join(rows)}; " if len(rows) <= _LISTABLE else ""
    raise KnowledgeError(
        f"Unknown {noun} '{name}'; {suggest(name, rows)}{known}see `python -m advisor tables {table}`."
    )
