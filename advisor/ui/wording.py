"""How numbers and names are said to people: units stated, rounded as they are read. Pure text, no streamlit."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime

from advisor import knowledge, layer_names, units
from advisor.types import (
    Budget,
    Catalogue,
    Engine,
    Format,
    Hardware,
    Layer,
    Plan,
    PlanSummary,
    ProfileSummary,
    Role,
)

GIB, MIB = units.GIB, units.MIB
number = units.number
size = units.size
plural = units.plural
seconds = units.seconds

LAYERS_HELP = f"{layer_names.SAID[0].upper()}{layer_names.SAID[1:]}, as on the command line."
ROLE_LABELS = {
    Role.EMBEDDING: "Embedding",
    Role.LM_HEAD: "LM head",
    Role.ATTENTION_QKV: "Attention Q/K/V",
    Role.ATTENTION_OUTPUT: "Attention output",
    Role.MLP_GATE_UP: "MLP gate/up",
    Role.MLP_DOWN: "MLP down",
    Role.EXPERT: "Expert",
    Role.ROUTER: "Router",
    Role.NORM: "Norm",
    Role.OTHER: "Other",
}


def parameters(count: int) -> str:
    """A number of parameters: `134.5 M`, `7.242 B`."""
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            value = count / factor
            return f"{value:.4g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
    return str(count)


def with_error(value: float, error: float) -> str:
    """`value ± error`, both to the second digit of the error: more digits would claim more than was measured."""
    if not math.isfinite(error) or error <= 0:
        return number(value, 4)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    if decimals > 6:
        exponent = math.floor(math.log10(max(abs(value), error)))
        decimals = max(0, decimals + exponent)
        return f"({value / 10**exponent:.{decimals}f} ± {error / 10**exponent:.{decimals}f})e{exponent}"
    return f"{value:,.{decimals}f} ± {error:,.{decimals}f}"


def percent(value: float) -> str:
    """A change in percent with its sign: `+3.2 %`."""
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 1 else 2
    return f"{value:+,.{decimals}f} %".replace("-", "−")


def size_change(change: float) -> str:
    """A difference of bytes with its sign: `+1.25 MiB`; `0 bytes` where there is none."""
    return size(0) if change == 0 else ("+" if change > 0 else "−") + size(abs(change))


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign: `+0.012`; `0` where there is none."""
    return "0" if value == 0 else ("+" if value > 0 else "−") + number(abs(value), digits)


def speed(tokens_per_s: float | None) -> str:
    """Tokens per second; `not known` where what tells it is not stated."""
    return "not known" if tokens_per_s is None else f"{number(tokens_per_s, 3)} tokens/s"


def moment(when: datetime | None) -> str:
    """A time as `2026-03-01 14:05 UTC`; a dash when there is none."""
    return f"{when:%Y-%m-%d %H:%M} UTC" if when else "–"


def profile_label(summary: ProfileSummary) -> str:
    """One line that tells stored sensitivity profiles apart."""
    what = summary.name or summary.model_name
    return (
        f"{what} · {format_labels(summary.formats) or 'nothing measured yet'} · {method(summary)} · "
        f"{summary.text}, {summary.samples} × {summary.seq_len} tokens · {moment(summary.created)}"
    )


def plan_label(plan: PlanSummary) -> str:
    """One line that tells stored plans apart."""
    name = f"{plan.name} · " if plan.name else ""
    refined = "refined · " if plan.refined else ""
    return (
        f"{name}{plan.model_name} · {plan.decided_bits:.2f} bits · {refined}{engine_label(plan.engine)} on "
        f"{device_label(plan.hardware)} · {moment(plan.created)}"
    )


def proof(plan: Plan) -> str:
    """How sure it is that no other plan within the limits is better; empty where nobody knows."""
    if plan.optimality_gap is None:
        return ""
    if plan.optimality_gap == 0:
        return "Proven optimal by scores."
    how = plan.provenance.get("solver") or "not proven"
    return f"{how[0].upper()}{how[1:]}."


def limits(budget: Budget) -> str:
    """What a plan is to keep, in words: `4.75 bits on average`, `8.00 GiB of device memory and ...`."""
    said = [f"{budget.weight_bits:g} bits on average"] if budget.weight_bits is not None else []
    said += [f"{size(budget.weight_bytes)} of weights"] if budget.weight_bytes is not None else []
    said += [f"{size(budget.vram_bytes)} of device memory"] if budget.vram_bytes is not None else []
    if budget.max_ppl_increase is not None:
        said.append(f"a rise of perplexity of {100 * budget.max_ppl_increase:g} %")
    return " and ".join(said)


def role(value: Role | str) -> str:
    """What people call a role."""
    return ROLE_LABELS.get(Role(value), str(value))


def method(summary: ProfileSummary) -> str:
    """How a stored profile was measured, in a few words: `fisher`, `auto, 31 of 422 exact`, `exact around a plan`."""
    said = summary.method
    if said == "auto":
        said += f", {summary.exact:,} of {summary.measured:,} exact"
    return f"{said} around a plan" if summary.around else said


def format_label(name: str) -> str:
    """What people call a format; its id where no table knows it (any more)."""
    return _label(knowledge.formats(), name)


def engine_label(name: str) -> str:
    """What people call an engine; its id where no table knows it (any more)."""
    return _label(knowledge.engines(), name)


def device_label(name: str) -> str:
    """What people call a device; its id where no table knows it (any more)."""
    return _label(knowledge.hardware(), name)


def _label(table: Mapping[str, Format | Engine | Hardware], name: str) -> str:
    return table[name].label if name in table else name


def format_labels(names: Iterable[str]) -> str:
    """The labels of several formats in a row; empty where there are none."""
    return ", ".join(map(format_label, names))


def layers_by_format(counts: Mapping[str, int]) -> str:
    """How many layers have which format: `180 layers in INT4 group 64, 30 layers in INT8 per channel`."""
    return ", ".join(f"{plural(count, 'layer')} in {format_label(name)}" for name, count in counts.items() if count)


def format_counts(counts: Mapping[str, int]) -> str:
    """The same for a cell of a table: `180 × INT4 group 64, 30 × INT8 per channel`."""
    return ", ".join(f"{count:,} × {format_label(name)}" for name, count in counts.items())


def labelled(text: str) -> str:
    """A sentence or a name such as `uniform int4_g64`, every format in it by its label."""
    return _ids(tuple(knowledge.formats())).sub(lambda found: format_label(found[0]), text)


def sentence(said: str) -> str:
    """What was stored as a part of a sentence, as one of its own."""
    words = labelled(said)
    return f"{words[:1].upper()}{words[1:]}."


def verbatim(text: str) -> str:
    """A name that somebody gave, for a place that reads Markdown: nothing in it works there."""
    escaped = re.sub(r"[\\`*_~\[\]<>#|$&]", r"\\\g<0>", text)
    # Icons, emoji and addresses are looked for in what escapes leave: a word joiner, which nobody sees, parts them.
    return re.sub(r"(?<=:)(?=[a-z/])|(?<=www)(?=\.)", "\u2060", escaped)


@functools.lru_cache(maxsize=8)
def _ids(names: tuple[str, ...]) -> re.Pattern[str]:
    # What stands in a path, a link or a longer name is none of them.
    return re.compile(rf"(?<![\w./=-])(?:{'|'.join(map(re.escape, names))})(?![\w/=-]|\.\w)")


def format_tag(fmt: Format) -> list[str]:
    """A format's name in one or two short lines for a chart cell: `INT4` over `g64`."""
    rest = fmt.name.removeprefix(fmt.family).strip("_").replace("_asym", "a")
    return [fmt.family.upper(), rest] if rest else [fmt.family.upper()]


def module(layer: Layer) -> str:
    """The layer's path inside its block (`self_attn.q_proj`), or its name without the outermost part."""
    if layer.block is not None:
        inside = re.split(rf"(?:^|\.){layer.block}\.", layer.name, maxsplit=1)
        if len(inside) == 2:
            return inside[1]
    return layer.name.removeprefix("model.").removeprefix("transformer.")


def module_labels(layers: Iterable[Layer]) -> dict[str, str]:
    """Layer name -> the shortest label of its module: its last part, or the whole path where two would look alike."""
    paths = {layer.name: module(layer) for layer in layers}
    last_parts = Counter(path.rsplit(".", 1)[-1] for path in set(paths.values()))
    return {
        name: path.rsplit(".", 1)[-1] if last_parts[path.rsplit(".", 1)[-1]] == 1 else path
        for name, path in paths.items()
    }


def layer_labels(catalogue: Catalogue) -> dict[str, str]:
    """Layer name -> `12 · down_proj`, or the module alone outside of the blocks."""
    labels = module_labels(catalogue.quantizable)
    return {
        layer.name: labels[layer.name] if layer.block is None else f"{layer.block} · {labels[layer.name]}"
        for layer in catalogue.quantizable
    }
