"""The guide as people read it: statements with their numbers taken from the tables, and the rows that its figures draw.

The rules, the planner and these read the same tables, so the guide cannot say anything else than they do.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from advisor import knowledge, text_quality, texts, this_machine
from advisor.errors import KnowledgeError
from advisor.formats.table import groups_per_row, packed_bytes
from advisor.memory import stored_bytes
from advisor.types import Engine, Format, GuideTopic, Hardware, Layer, QuantizationMethod, Role, Sourced, Support

_VARIANT = re.compile(r"( \(\d+-core GPU\))?,? \d+ GB$")
_MAKERS = re.compile(r"^(NVIDIA( GeForce)?|AMD Instinct|Apple) ")
_LISTED = 5
_ORDER = (this_machine.NAME, "nvidia", "amd", "apple", "cpu")


class _Tables(string.Formatter):
    """Fills `{table[row].field}`; a sourced number stands for its value, written as `:g` unless told otherwise."""

    def get_field(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        if "._" in name or "[_" in name:
            raise KeyError(name)
        return super().get_field(name, args, kwargs)

    def format_field(self, value: Any, spec: str) -> str:
        if isinstance(value, Sourced):
            value, spec = value.value, spec or "g"
        if value is None:
            raise ValueError("the table does not state it")
        said = super().format_field(value, spec)
        return said.replace("%", " %") if spec.endswith("%") else said


def topics() -> dict[str, GuideTopic]:
    """Every topic by name, with all numbers filled in.

    Raises KnowledgeError when a table is wrong, or a statement asks for a number that no table has.
    """
    tables = _tables()
    return {name: _filled(topic, tables) for name, topic in knowledge.guide().items()}


def _tables() -> dict[str, Any]:
    """What statements may take numbers from."""
    return {
        "formats": knowledge.formats(),
        "hardware": knowledge.hardware(),
        "engines": knowledge.engines(),
        "roles": knowledge.roles(),
        "losses": knowledge.expected_losses(),
        "perplexity": knowledge.perplexity_marks(),
        "batch": knowledge.batch_marks(),
        "efficiency": knowledge.efficiency(),
        "samples": {
            "accelerator": texts.default_samples("fisher", "cuda"),
            "estimate": texts.default_samples("fisher", "cpu"),
            "exact": texts.default_samples("exact", "cpu"),
        },
        "text": {
            "few_tokens": text_quality.FEW_TOKENS,
            "repetition": text_quality.REPETITION,
            "divergence": text_quality.DIVERGENCE_ABOVE_EXPECTED,
            "nll_of_uniform": text_quality.NLL_OF_UNIFORM,
        },
    }


def _filled(topic: GuideTopic, tables: Mapping[str, Any]) -> GuideTopic:
    def fill(text: str) -> str:
        try:
            return _Tables().vformat(text, (), {**tables, "numbers": topic.numbers})
        except (KeyError, AttributeError, IndexError, TypeError, ValueError) as error:
            raise KnowledgeError(
                f"The guide's topic '{topic.name}' in profiles/guide.toml asks for a number that no table has "
                f"({error}), in: {text[:80]}; correct the name in braces."
            ) from error

    sections = [
        section.model_copy(
            update={
                "statements": tuple(
                    one.model_copy(update={"title": fill(one.title), "says": fill(one.says)})
                    for one in section.statements
                )
            }
        )
        for section in topic.sections
    ]
    return topic.model_copy(update={"sections": tuple(sections)})


# ------------------------------------------------------------------------------------------------- formats


class FormatSize(NamedTuple):
    """Bits of one weight of a format, on average over a large matrix, by what they are spent on."""

    fmt: Format
    codes: float
    scales: float
    rest: float
    stored_as: str = ""

    @property
    def bits(self) -> float:
        return self.codes + self.scales + self.rest


def format_sizes(engine: Engine | None = None) -> list[FormatSize]:
    """What every weight format costs, as it is measured or as `engine` stores it; formats that it lacks are left out.

    Of a square matrix as wide as the guide's example, so that a channel's scale and the padding of rows count as little
    as they do in large models. Formats that round activations store what their twins store and are left out.
    """
    width = int(knowledge.guide()["formats"].numbers["features"].value)
    matrix = Layer(
        name="matrix",
        parameter="matrix.weight",
        role=Role.MLP_GATE_UP,
        block=None,
        shape=(width, width),
        quantizable=True,
    )
    found = []
    for fmt in knowledge.formats().values():
        if fmt.quantizes_activations or (engine is not None and fmt.name not in engine.formats):
            continue
        stored = fmt if engine is None else knowledge.stored_format(engine, fmt)
        count = packed_bytes(fmt, matrix) if engine is None else stored_bytes(engine, fmt, matrix)
        scales = groups_per_row(stored, width) * stored.scale_bits / width
        rest = 8 * count / width**2 - stored.bits - scales
        own = engine.formats[fmt.name].stored_as if engine is not None else ""
        found.append(FormatSize(fmt, stored.bits, scales, rest, own))
    return found


def expected_loss(family: str) -> str:
    """What the guide expects a family to lose, in words: `small (2–5 %)`; `not stated` where it names none."""
    row = knowledge.expected_losses().get(family)
    if row is None:
        return "not stated"
    if row.most_pct is None and row.least_pct is None:
        return row.label
    if row.most_pct is None:
        return f"{row.label} ({row.least_pct:g} % and more)"
    if row.least_pct is None:
        return f"{row.label} (below {row.most_pct:g} %)"
    return f"{row.label} ({row.least_pct:g}–{row.most_pct:g} %)"


# ------------------------------------------------------------------------------------------------ hardware


class DeviceKind(NamedTuple):
    """Devices that do the same with every format, and of which the guide says the same."""

    label: str
    devices: tuple[Hardware, ...]
    support: dict[str, Support]
    guide: dict[str, str]


def families() -> list[str]:
    """The format families, from the most bits to the fewest, as the table of formats has them."""
    return list(dict.fromkeys(fmt.family for fmt in knowledge.formats().values()))


def device_kinds() -> list[DeviceKind]:
    """All devices, those together that compute alike: this machine by itself, then vendor by vendor."""
    kinds: dict[tuple, list[Hardware]] = {}
    for device in knowledge.hardware().values():
        key = _owner(device), tuple(sorted(device.support.items())), tuple(sorted(device.guide.items()))
        kinds.setdefault(key, []).append(device)
    ordered = sorted(kinds.values(), key=lambda found: _ORDER.index(_owner(found[0])))
    return [DeviceKind(_label_of(found), tuple(found), found[0].support, found[0].guide) for found in ordered]


def _owner(device: Hardware) -> str:
    return device.name if device.name == this_machine.NAME else device.vendor


def _label_of(devices: list[Hardware]) -> str:
    """`NVIDIA H100 SXM, H100 PCIe`; `Apple M3 to M5 Max`: memory sizes and repeated makers left out."""
    if devices[0].name == this_machine.NAME:
        return devices[0].label.split(":")[0]
    chips = list(dict.fromkeys(_VARIANT.sub("", device.label) for device in devices))
    others = [_MAKERS.sub("", chip) for chip in chips[1:]]
    return f"{chips[0]} to {others[-1]}" if len(chips) > _LISTED else ", ".join([chips[0], *others])


def differs(kind: DeviceKind | Hardware, family: str) -> bool:
    """Whether the guide says another thing of a family than the hardware does."""
    said = kind.guide.get(family)
    return said is not None and said != kind.support[family]


class KernelRow(NamedTuple):
    """What a device and the engines that run on it do with one format; engines by label."""

    fmt: Format
    support: Support
    guide: str
    engines: dict[str, str]


def kernels(device: Hardware) -> list[KernelRow]:
    """Format by format: the hardware, the guide's word, and each engine's."""
    engines = [engine for engine in knowledge.engines().values() if device.vendor in engine.vendors]
    return [
        KernelRow(
            fmt,
            device.support[fmt.family],
            device.guide.get(fmt.family, ""),
            {engine.label: _kernel(engine, fmt, device) for engine in engines},
        )
        for fmt in knowledge.formats().values()
        if fmt.quantized
    ]


def _kernel(engine: Engine, fmt: Format, device: Hardware) -> str:
    if fmt.name not in engine.formats:
        return "–"
    if not knowledge.has_kernel(engine, fmt, device):
        return "no kernel here"
    if knowledge.multiplies_rounded(engine, fmt, device):
        return f"computes in {fmt.activation_bits} bits"
    return "no units here" if fmt.quantizes_activations else "stores it"


# -------------------------------------------------------------------------------------------- calibration


def methods_that_calibrate() -> tuple[QuantizationMethod, ...]:
    """The methods that read calibration text, in the table's order."""
    return tuple(method for method in knowledge.methods().values() if method.calibrates)


# --------------------------------------------------------------------------------------------------- find


class Entry(NamedTuple):
    """Something that the guide can be asked for: what it is called, and the choices of the page that show it."""

    label: str
    query: dict[str, str]


def entries() -> list[Entry]:
    """Everything that can be found by typing: sections, formats, methods, roles, and devices."""
    found = []
    for topic in topics().values():
        found += [Entry(f"{section.title} · {topic.label}", {"topic": topic.name}) for section in topic.sections]
    for fmt in knowledge.formats().values():
        found.append(Entry(f"{fmt.label} ({fmt.name}) · format", {"topic": "formats", "shown_format": fmt.name}))
    for method in knowledge.methods().values():
        found.append(Entry(f"{method.label} · method", {"topic": "methods", "shown_method": method.name}))
    found += [Entry(f"{row.label} · role", {"topic": "roles"}) for row in knowledge.roles().values()]
    for scenario in knowledge.scenarios().values():
        found.append(Entry(f"{scenario.label} · deployment", {"topic": "decision"}))
    for device in knowledge.hardware().values():
        found.append(Entry(f"{device.label} · device", {"topic": "hardware", "shown_device": device.name}))
    return found
