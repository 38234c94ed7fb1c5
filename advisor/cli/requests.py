"""From the options of a command to a request: what `plan` and `front` have in common, and what `evaluate` measures."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer

from advisor import knowledge, layer_names
from advisor.errors import PlanError
from advisor.types import MOST_FLOOR_BITS, Budget, Catalogue, PlanRequest, Role, SensitivityProfile
from advisor.types import Scenario as Preset

# Ten digits are more than any budget, and no float overflows.
_NUMBER = r"(\d{1,10}(?:\.\d+)?)"
_SIZE = re.compile(rf"{_NUMBER}\s*(KiB|MiB|GiB|TiB|KB|MB|GB|TB)", re.IGNORECASE)
_UNITS = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BITS = re.compile(rf"{_NUMBER}\s*bits?", re.IGNORECASE)
# Of tokens, sequences and GPUs: more than anybody serves, and sizes stay readable.
_MOST = 2**24
_PERCENT = re.compile(rf"{_NUMBER}\s*%")


class Floors(StrEnum):
    OFF = "off"
    ADVISE = "advise"
    ENFORCE = "enforce"


class KvBits(StrEnum):
    FOUR = "4"
    EIGHT = "8"
    SIXTEEN = "16"


LAYERS = layer_names.SAID

Against = Annotated[str | None, typer.Option(help="The unquantized model: for KL and changes, paired token by token.")]
Stride = Annotated[
    int | None,
    typer.Option(min=1, help="Let windows of --seq-len overlap, and score the last so many tokens of each."),
]
Tasks = Annotated[
    str, typer.Option(help="Downstream tasks of lm-eval, separated by commas: mmlu,hellaswag,arc_easy,arc_challenge.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Documents of each task; default: all.")]
TasksFrom = Annotated[
    str | None, typer.Option(help="A folder of tasks of your own: YAML in lm-eval's format, without code.")
]
Speed = Annotated[
    bool, typer.Option("--speed", help="Time reading a prompt and writing after it, and look at the memory in use.")
]
Hardware = Annotated[str, typer.Option(help="A device: see `tables hardware`.")]
Engine = Annotated[str, typer.Option(help="An engine: see `tables engines`.")]
Scenario = Annotated[
    str,
    typer.Option(
        help="Take from a deployment what is not given here: see `tables scenarios`. `plan` takes the rise of "
        "perplexity that it accepts too, unless a limit of one's own is given."
    ),
]
Vram = Annotated[
    str,
    typer.Option(
        help="Memory of one device, such as 24GiB; default: the device's own. The engine fills only a part of it."
    ),
]
Weights = Annotated[str, typer.Option(help="Size of the weights: 4.5bits on average, or 3GiB in all.")]
MaxPplIncrease = Annotated[
    str,
    typer.Option(
        help="Least memory within this rise of perplexity, such as 5%; beside --vram or --weights: most speed."
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        min=1, max=_MOST, help="Tokens of one sequence in the KV cache; default: 4096, or all that the model reads."
    ),
]
Sequences = Annotated[int | None, typer.Option(min=1, max=_MOST, help="Sequences served at once; default: 1.")]
KvBitsOption = Annotated[
    KvBits | None, typer.Option(help="Bits of one value in the KV cache, of those the engine has; default: 16.")
]
Gpus = Annotated[int | None, typer.Option(min=1, max=_MOST, help="GPUs over which every layer is split; default: 1.")]
Lock = Annotated[list[str] | None, typer.Option(help=f"LAYERS=FORMAT; {LAYERS}; may be repeated.")]
Exclude = Annotated[
    list[str] | None, typer.Option(help=f"LAYERS that keep the model's dtype; {LAYERS}; may be repeated.")
]
Formats = Annotated[str, typer.Option(help="Choose among these only; default: all measured.")]
RoleFloors = Annotated[Floors, typer.Option(help="What the least bits per role do.")]
Floor = Annotated[
    list[str] | None,
    typer.Option(
        help="ROLE=BITS in place of the guide's least bits, such as mlp_down=8; 0 lifts a floor; may be repeated. "
        "A floor only advises without --role-floors enforce."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The options that `plan` and `front` share, as they were typed."""

    hardware: Hardware = ""
    engine: Engine = ""
    scenario: Scenario = ""
    context: Context = None
    sequences: Sequences = None
    kv_bits: KvBitsOption = None
    gpus: Gpus = None
    lock: Lock = None
    exclude: Exclude = None
    formats: Formats = ""
    role_floors: RoleFloors = Floors.ADVISE
    floor: Floor = None

    def request(
        self, measured: SensitivityProfile, limits: Mapping[str, float | int], tolerates: bool = True
    ) -> PlanRequest:
        """What the options ask for; a scenario fills what they leave open.

        Without limits they are the device's memory and, where the command `tolerates` one, the rise of perplexity that
        the scenario accepts; with any limit of one's own it is that alone.

        Raises PlanError for an option that cannot be read, KnowledgeError for an unknown name.
        """
        preset = knowledge.find_scenario(self.scenario) if self.scenario else None
        hardware = self.hardware or (preset.hardware if preset else "")
        engine = self.engine or (preset.engine if preset else "")
        if not hardware or not engine:
            raise PlanError("--hardware and --engine are needed: give both, or a --scenario that has them.")
        chosen = names(self.formats)
        if self.formats and not chosen:
            raise PlanError(
                f"--formats {self.formats!r} names no format: write it like int8,int4_g64, or leave it out."
            )
        tolerance = preset.max_ppl_increase if preset and tolerates else None
        usual = {"vram_bytes": knowledge.find_hardware(hardware).memory_bytes, "max_ppl_increase": tolerance}
        return PlanRequest(
            hardware=hardware,
            engine=engine,
            budget=Budget(**self._load(preset, measured.catalogue), **(limits or usual)),
            locks=_locks(self.lock or []),
            excluded=tuple(_excluded(entry) for entry in self.exclude or []),
            formats=chosen or _measured_ones(preset, measured),
            role_floors=self.role_floors.value,
            floor_bits=dict(_floor(entry) for entry in self.floor or []),
        )

    def _load(self, preset: Preset | None, catalogue: Catalogue) -> dict[str, int]:
        """The load that memory is planned for: what was given, else the scenario's, else the product's own."""
        bits = int(self.kv_bits.value) if self.kv_bits else None
        given = {"context": self.context, "sequences": self.sequences, "kv_bits": bits, "gpus": self.gpus}
        own = Budget.model_fields
        found = {name: getattr(preset, name) if preset else own[name].default for name in given}
        found["context"] = min(found["context"], catalogue.max_context)
        return found | {name: value for name, value in given.items() if value is not None}

    def remark_floors(self) -> None:
        """Say on standard error that floors of one's own forbid nothing, where they do not."""
        if self.floor and self.role_floors is not Floors.ENFORCE:
            does = "only advises" if self.role_floors is Floors.ADVISE else "is not looked at"
            print(
                f"note: --floor {does} with --role-floors {self.role_floors.value}: give --role-floors enforce to have "
                "it kept",
                file=sys.stderr,
            )


def with_wishes(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of `Wishes` for its parameter `wishes`; Typer reads them off the signature."""
    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=one.default, annotation=one.annotation)
        for name, one in signature(Wishes, eval_str=True).parameters.items()
    ]
    own = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in signature(command, eval_str=True).parameters.values()]
    place = [one.name for one in own].index("wishes")
    parameters = [*own[:place], *options, *own[place + 1 :]]

    @wraps(command)
    def run(**given: Any) -> None:
        command(wishes=Wishes(**{one.name: given.pop(one.name) for one in options}), **given)

    run.__signature__ = Signature(parameters)
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def limits(vram: str, weights: str, max_ppl_increase: str) -> dict[str, float | int]:
    """The limits of a budget; empty where no option gives one. Raises PlanError for what cannot be read."""
    if vram and weights:
        raise PlanError("--vram and --weights exclude each other: give one limit of memory.")
    found: dict[str, float | int] = {}
    if max_ppl_increase:
        percent = _PERCENT.fullmatch(max_ppl_increase.strip())
        if not percent:
            raise PlanError(f"--max-ppl-increase {max_ppl_increase!r} is no percentage: write it like 5%.")
        found["max_ppl_increase"] = float(percent[1]) / 100
    if weights and (average := _BITS.fullmatch(weights.strip())):
        found["weight_bits"] = _positive(float(average[1]), "--weights")
    elif weights:
        found["weight_bytes"] = _size(weights, "--weights", "4.5bits or 3GiB")
    elif vram:
        found["vram_bytes"] = _size(vram, "--vram", "24GiB")
    return found


def names(listed: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def _measured_ones(preset: Preset | None, measured: SensitivityProfile) -> tuple[str, ...]:
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


def _locks(entries: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in entries:
        name, _, fmt = (part.strip() for part in entry.rpartition("="))
        if not name:
            raise PlanError(f"--lock {entry!r} is not LAYERS=FORMAT: write it like lm_head=bf16.")
        if not fmt:
            raise PlanError(f"--lock {entry!r} names no format: write it like {name}=bf16.")
        known = knowledge.find_format(fmt).name
        if found.setdefault(name, known) != known:
            raise PlanError(f"--lock gives '{name}' two formats, {found[name]} and {known}: keep one of them.")
    return found


def _excluded(entry: str) -> str:
    if not entry.strip():
        raise PlanError("--exclude '' names no layers: write it like lm_head, `block 5` or `blocks 0-3`.")
    return entry.strip()


def _floor(entry: str) -> tuple[Role, int]:
    name, _, bits = entry.partition("=")
    if name not in list(Role):
        raise PlanError(f"--floor {entry!r} names no role: write it like mlp_down=8, with one of {', '.join(Role)}.")
    if not bits.isdecimal() or int(bits) > MOST_FLOOR_BITS:
        raise PlanError(f"--floor {entry!r} gives no bits from 0 to {MOST_FLOOR_BITS}: write it like mlp_down=8.")
    return Role(name), int(bits)
