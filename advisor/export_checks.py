"""What an engine would load wrongly or not at all, said before anything is written, and the nearest plan that it can.

Judged by the engine's table alone: its formats, what it fuses and what it leaves in the model's dtype. No torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from advisor.errors import UnfitPlan
from advisor.formats.table import fits, packed_bytes
from advisor.knowledge import find_engine, find_format, formats, stored_format
from advisor.types import Catalogue, Engine, Format, Layer, Role, Target

_NAMED = 3


def refuse_for(catalogue: Catalogue, assignments: Mapping[str, str], target: Target) -> None:
    """Raises UnfitPlan, which carries the nearest plan, for what cannot be written to `target`."""
    if not target.activations:
        refuse_rounded_inputs(assignments, target.label)
    if not target.lenient:
        refuse_unfit(catalogue, assignments, find_engine(target.stored_by))


def nearest_for(catalogue: Catalogue, assignments: Mapping[str, str], target: Target) -> dict[str, str]:
    """The assignments that can be written to `target` and differ least; the same ones where these can."""
    nearest = dict(assignments) if target.activations else _without_rounded_inputs(assignments)
    return nearest if target.lenient else nearest_plan(catalogue, nearest, find_engine(target.stored_by))


def refuse_rounded_inputs(assignments: Mapping[str, str], what: str) -> None:
    """Raises UnfitPlan for a plan with quantized activations, which files of weights alone cannot hold."""
    found = [name for name, fmt in assignments.items() if find_format(fmt).quantizes_activations]
    if found:
        raise UnfitPlan(
            f"{found[0]} has {assignments[found[0]]}, which rounds activations while the model runs, but {what} holds "
            "weights only and would compute something else; plan without such formats, or take the nearest plan, which "
            "leaves activations as they are.",
            _without_rounded_inputs(assignments),
        )


def _without_rounded_inputs(assignments: Mapping[str, str]) -> dict[str, str]:
    return {name: _weights_alone(find_format(fmt)).name for name, fmt in assignments.items()}


def _weights_alone(fmt: Format) -> Format:
    """The format of the same weights that leaves activations as they are."""
    if not fmt.quantizes_activations:
        return fmt
    same = (fmt.kind, fmt.bits, fmt.group_size, fmt.symmetric, None)
    twins = (f for f in formats().values() if (f.kind, f.bits, f.group_size, f.symmetric, f.activation_bits) == same)
    return next(twins)


def refuse_unfit(catalogue: Catalogue, assignments: Mapping[str, str], engine: Engine) -> None:
    """Raises UnfitPlan, which names layers and reasons and carries the nearest plan, for what `engine` cannot load."""
    found = unfit(catalogue, assignments, engine)
    if not found:
        return
    names = defaultdict(list)
    for name, reason in found.items():
        names[reason].append(name)
    told = "; ".join(f"{_listed(layers)}: {reason}" for reason, layers in names.items())
    nearest = nearest_plan(catalogue, assignments, engine)
    changed = [f"{name} in {fmt}" for name, fmt in nearest.items() if assignments.get(name, catalogue.dtype) != fmt]
    raise UnfitPlan(
        f"{engine.label} cannot load this plan as it is: {told}. Plan for that engine, or take the nearest plan that "
        f"it loads, which has {_listed(changed)}.",
        nearest,
    )


def unfit(catalogue: Catalogue, assignments: Mapping[str, str], engine: Engine) -> dict[str, str]:
    """Layer name -> why `engine` would load it wrongly or not at all; empty when it loads the plan as it is.

    Layers that share a kernel with others of another format are all named: the engine would take the first one's.
    """
    layers = catalogue.by_name()
    found = {name: _why_not(catalogue, layers[name], find_format(fmt), engine) for name, fmt in assignments.items()}
    for key, members in _fused(catalogue, engine).items():
        chosen = {assignments.get(layer.name, catalogue.dtype) for layer in members}
        if len(chosen) > 1:
            reason = f"they share one kernel ({key.rpartition(':')[2]}), so all need one format, not {_either(chosen)}"
            found |= {layer.name: found.get(layer.name) or reason for layer in members}
    return {name: reason for name, reason in found.items() if reason}


def nearest_plan(catalogue: Catalogue, assignments: Mapping[str, str], engine: Engine) -> dict[str, str]:
    """The assignments that `engine` can load which differ least: nothing gets fewer bytes than it was planned.

    A format that the engine cannot load becomes the next larger one that it can; fused layers all get the largest of
    their formats. Both are the model's dtype where nothing smaller will do.
    """
    layers = catalogue.by_name()
    nearest = {name: _next_larger(catalogue, (layers[name],), fmt, engine) for name, fmt in assignments.items()}
    for members in _fused(catalogue, engine).values():
        if any(layer.name in assignments for layer in members):
            chosen = [nearest.get(layer.name, catalogue.dtype) for layer in members]
            largest = max(chosen, key=lambda name: _precision(find_format(name), members[0]))
            common = _next_larger(catalogue, members, largest, engine)
            nearest |= {layer.name: common for layer in members}
    return nearest


def _fused(catalogue: Catalogue, engine: Engine) -> dict[str, tuple[Layer, ...]]:
    """Key -> the layers that the engine runs as one, for every set of them."""
    sets = defaultdict(list)
    for layer in catalogue.quantizable:
        if layer.fused_with and layer.fusion in engine.fuses:
            sets[layer.fused_with].append(layer)
    return {key: tuple(members) for key, members in sets.items()}


def _next_larger(catalogue: Catalogue, members: tuple[Layer, ...], name: str, engine: Engine) -> str:
    """The smallest format of the engine, `name` or larger, that all `members` can have."""
    wanted = find_format(name)
    alike = (wanted.kind, "integer")
    larger = [
        fmt
        for fmt in formats().values()
        if (fmt.name == name or fmt.kind in alike and fmt.activation_bits == wanted.activation_bits)
        and all(not _why_not(catalogue, layer, fmt, engine) for layer in members)
        and _precision(fmt, members[0]) >= _precision(wanted, members[0])
    ]
    smallest = min(larger, key=lambda fmt: (fmt.name != name, _precision(fmt, members[0])), default=None)
    return smallest.name if smallest else catalogue.dtype


def _precision(fmt: Format, layer: Layer) -> tuple[int, bool]:
    """Sorts formats upwards: by bytes, and of two with the same bytes the one that leaves activations alone is more."""
    return packed_bytes(fmt, layer), not fmt.quantizes_activations


def _why_not(catalogue: Catalogue, layer: Layer, fmt: Format, engine: Engine) -> str:
    """Why the engine cannot have this one layer in this format, "" if it can."""
    if not fmt.quantized:
        same = fmt.name == catalogue.dtype
        return "" if same else f"what is not quantized stays in the model's own {catalogue.dtype}, not {fmt.name}"
    if fmt.name not in engine.formats:
        return _why_no_kernel(fmt, engine)
    if layer.role is Role.EMBEDDING and not engine.quantizes_embedding:
        return "embeddings are not quantized"
    if layer.role is Role.LM_HEAD and not engine.quantizes_lm_head:
        return "output layers are not quantized"
    if layer.role is Role.EXPERT and not engine.quantizes_experts:
        return "experts are not quantized"
    if layer.role is Role.EXPERT and not engine.formats[fmt.name].experts:
        return f"there is no kernel for experts in {fmt.name}"
    if layer.input_axis == 0 and not engine.quantizes_conv1d:
        return "linear modules only are packed, and this is a Conv1D"
    if not fits(stored_format(engine, fmt), layer):
        return f"{fmt.name} does not fit its {layer.matrix_shape[1]} input features"
    return ""


def _why_no_kernel(fmt: Format, engine: Engine) -> str:
    own = [find_format(name) for name in engine.formats]
    same_bits = [other for other in own if (other.kind, other.bits) == (fmt.kind, fmt.bits)]
    if not same_bits:
        return f"there is no kernel for {fmt.name} ({fmt.bits} bits)"
    if not any(other.symmetric == fmt.symmetric for other in same_bits):
        return f"the kernels for {fmt.bits} bits need symmetric formats, and {fmt.name} is not"
    if not any(other.activation_bits == fmt.activation_bits for other in same_bits):
        rounded = f"rounded to {fmt.activation_bits} bits" if fmt.activation_bits else "left as they are"
        return f"there is no kernel for {fmt.bits}-bit weights whose inputs are {rounded}, as {fmt.name} has it"
    groups = ", ".join(_groups(other) for other in same_bits)
    return f"there is no kernel for {_groups(fmt)} at {fmt.bits} bits (there are {groups})"


def _groups(fmt: Format) -> str:
    return f"groups of {fmt.group_size}" if fmt.group_size else "one scale per channel"


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _either(chosen: set[str]) -> str:
    *others, last = sorted(chosen)
    return f"{', '.join(others)} and {last}"
