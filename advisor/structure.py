"""Finds a model's blocks and the role of every weight in them: the catalogue's eyes, which see shapes before names.

A role follows from the part of the block (attention, MLP, experts) and from whether a matrix reads or writes the hidden
state; names only break the ties that shapes leave open, such as square attention matrices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from advisor.errors import ModelError
from advisor.types import Role

# Unknown matrices this small beside their part of a block stay in full precision; more means it is not understood.
_MINOR_SHARE = 0.05
_TRY_ANOTHER = "choose a decoder-only transformer language model, such as a Llama, Qwen or Gemma checkpoint"


class _Hint(NamedTuple):
    """Names that architectures give to one role inside one part of a block, in forward order."""

    part: str
    role: Role
    names: str
    reads_hidden: bool


_HINTS = (
    _Hint("attention", Role.ATTENTION_QKV, "qkv_proj query_key_value c_attn Wqkv W_pack wqkv", True),
    _Hint("attention", Role.ATTENTION_QKV, "q_proj k_proj v_proj wq wk wv query key value", True),
    _Hint("attention", Role.ATTENTION_QKV, "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj", True),
    _Hint("attention", Role.ATTENTION_QKV, "in_proj_qkvz in_proj_qkv in_proj_z in_proj_ba in_proj_b in_proj_a", True),
    _Hint("attention", Role.ATTENTION_QKV, "in_proj", True),
    _Hint("attention", Role.ATTENTION_OUTPUT, "o_proj out_proj dense c_proj wo", False),
    _Hint("mlp", Role.ROUTER, "router gate shared_expert_gate wg", True),
    _Hint("experts", Role.EXPERT, "gate_up_proj gate_proj up_proj input_linear w1 w3", True),
    _Hint("experts", Role.EXPERT, "down_proj output_linear w2", False),
    _Hint("mlp", Role.MLP_GATE_UP, "gate_up_proj gate_proj up_proj w1 w3 input_linear", True),
    _Hint("mlp", Role.MLP_GATE_UP, "dense_h_to_4h c_fc fc1 fc_in", True),
    _Hint("mlp", Role.MLP_DOWN, "down_proj dense_4h_to_h c_proj fc2 fc_out w2 output_linear", False),
)
_PLACES = {(hint.part, name): (i, j) for i, hint in enumerate(_HINTS) for j, name in enumerate(hint.names.split())}
_READS = {hint.role: hint.reads_hidden for hint in _HINTS if hint.role not in (Role.EXPERT, Role.ROUTER)}
_ROLES_OF_PART = {
    "attention": (Role.ATTENTION_QKV, Role.ATTENTION_OUTPUT),
    "mlp": (Role.MLP_GATE_UP, Role.MLP_DOWN),
}
# Latent attention makes queries, keys and values in two steps; the second reads what the first wrote.
_READS_LATENT = ("q_b_proj", "kv_b_proj")
# A state-space mixer takes the place of attention in the blocks that have it.
_ATTENTION_WORDS = ("attn", "attention", "mamba")
_MLP_WORDS = ("mlp", "ffn", "feed_forward", "feedforward", "moe", "shared_expert")


@dataclass
class Weight:
    """One unique parameter, where it sits, and what has been decided about it so far."""

    parameter: str
    tensor: nn.Parameter
    module: nn.Module
    index: int
    block: int | None = None
    path: tuple[str, ...] = ()
    role: Role = Role.OTHER
    input_axis: int = -1

    @property
    def name(self) -> str:
        return self.parameter.removesuffix(".weight")

    @property
    def is_bias(self) -> bool:
        return self.path[-1].endswith("bias")

    @property
    def is_matrix(self) -> bool:
        vector = self.is_bias or self.role is Role.NORM or isinstance(self.module, nn.Conv1d)
        return self.tensor.ndim >= 2 and not vector

    @property
    def is_linear(self) -> bool:
        return isinstance(self.module, nn.Linear | Conv1D) and self.tensor.ndim == 2

    @property
    def reads_latent(self) -> bool:
        return self.part == "attention" and self.path[-1] in _READS_LATENT

    @property
    def part(self) -> str | None:
        """Which part of the block: a direct child counts as MLP, since attention always has a module of its own."""
        inside = self.path[:-1]
        if "experts" in inside:
            return "experts"
        if any(known in word for word in inside for known in _ATTENTION_WORDS):
            return "attention"
        if not inside or any(known in word for word in inside for known in _MLP_WORDS):
            return "mlp"
        return None

    @property
    def _key(self) -> tuple[str | None, str]:
        return self.part, "router" if "router" in self.path else self.path[-1]

    @property
    def hint(self) -> _Hint | None:
        """What the architecture's own name suggests; None for a name nobody listed."""
        place = _PLACES.get(self._key)
        return _HINTS[place[0]] if place else None

    @property
    def place(self) -> tuple[int, int]:
        """Sorts the weights of one part of a block into forward order."""
        of_role = next((i for i, hint in enumerate(_HINTS) if hint.role is self.role), 0)
        return _PLACES.get(self._key, (of_role, 0))

    @property
    def owner(self) -> str:
        """The attention, MLP or experts module that this weight belongs to."""
        words = self.name.split(".")
        return ".".join(words[: words.index("experts") + 1] if "experts" in words[:-1] else words[:-1])

    def features(self) -> tuple[int, int]:
        """(inputs, outputs) of a linear module's matrix; Conv1D stores (inputs, outputs), Linear the reverse."""
        first, second = self.tensor.shape
        return (first, second) if isinstance(self.module, Conv1D) else (second, first)

    def found(self) -> str:
        return f"{self.name} ({type(self.module).__name__} {'x'.join(map(str, self.tensor.shape))})"


def refusal(model: nn.Module, what: str, found: Iterable[str] = (), todo: str = _TRY_ANOTHER) -> ModelError:
    """The error that names the architecture, says what is wrong, lists up to five findings and what to do."""
    listing = ", ".join(list(found)[:5])
    return ModelError(
        f"{type(model).__name__} cannot be catalogued: {what}{listing and f' (found {listing})'}; {todo}."
    )


def collect_weights(model: nn.Module) -> list[Weight]:
    """All unique parameters with their block (None outside) and their path inside it."""
    prefix = block_list(model)
    weights = []
    for index, (parameter, tensor) in enumerate(model.named_parameters()):
        weight = Weight(parameter, tensor, model.get_submodule(parameter.rpartition(".")[0]), index)
        weight.path = tuple(weight.name.split("."))
        if parameter.startswith(prefix + "."):
            block, _, inside = weight.name[len(prefix) + 1 :].partition(".")
            weight.block, weight.path = int(block), tuple(inside.split("."))
        if "norm" in type(weight.module).__name__.lower():
            weight.role = Role.NORM
        weights.append(weight)
    return weights


def block_list(model: nn.Module) -> str:
    """Name of the decoder's ModuleList: the longest of one class that lies in no other (experts lie inside blocks)."""
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    }
    outermost = [
        name
        for name, module in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists)
        and len({type(block) for block in module}) == 1
        and any(True for _ in module.parameters())
    ]
    if not outermost:
        matrices = (
            f"{name} ({type(module).__name__} {'x'.join(map(str, module.weight.shape))})"
            for name, module in model.named_modules()
            if getattr(getattr(module, "weight", None), "ndim", 0) >= 2
        )
        raise refusal(model, "it has no list of identical decoder blocks", matrices)
    return max(outermost, key=lambda name: (len(lists[name]), sum(p.numel() for p in lists[name].parameters())))


def blocks_of(weights: list[Weight]) -> list[list[Weight]]:
    """The weights inside blocks, block by block."""
    blocks = defaultdict(list)
    for weight in weights:
        if weight.block is not None:
            blocks[weight.block].append(weight)
    return [blocks[index] for index in sorted(blocks)]


def decide_block(model: nn.Module, block: list[Weight], hidden: int) -> None:
    """Gives each matrix of one block its role and input axis, or refuses the model."""
    matrices = [weight for weight in block if weight.is_matrix]
    experts = _expert_count(matrices, hidden)
    for weight in matrices:
        weight.role = _role(weight, hidden, experts)
    _find_output_by_siblings(matrices, hidden)
    for weight in matrices:
        weight.input_axis = _input_axis(model, weight, matrices, hidden)
    unknown = [weight for weight in matrices if weight.role is Role.OTHER]
    roles = {weight.role for weight in matrices}
    what = f"block {block[0].block} has "
    if not {Role.ATTENTION_QKV, Role.ATTENTION_OUTPUT} <= roles or not {Role.MLP_DOWN, Role.EXPERT} & roles:
        raise refusal(
            model, what + "no attention and MLP that can be told apart", (w.found() for w in unknown or block)
        )
    for part in {weight.part for weight in unknown}:
        share = _elements(w for w in unknown if w.part == part) / _elements(w for w in matrices if w.part == part)
        if share > _MINOR_SHARE:
            raise refusal(model, what + "weights whose role is unknown", (w.found() for w in unknown))


def _elements(weights: Iterable[Weight]) -> int:
    return sum(weight.tensor.numel() for weight in weights)


def _is_fused_experts(weight: Weight, hidden: int) -> bool:
    shape = weight.tensor.shape
    return len(shape) == 3 and weight.part in ("experts", "mlp") and hidden in shape[1:] and min(shape[1:]) > 1


def _expert_count(matrices: list[Weight], hidden: int) -> int:
    """Experts of a block: the first axis of fused ones, else how many modules its list holds; 0 in a dense block."""
    fused = [weight.tensor.shape[0] for weight in matrices if _is_fused_experts(weight, hidden)]
    listed = {w.path[w.path.index("experts") + 1] for w in matrices if w.part == "experts" and w.is_linear}
    return max([len(listed), *fused])


def _role(weight: Weight, hidden: int, experts: int) -> Role:
    if _is_fused_experts(weight, hidden):
        return Role.EXPERT
    hinted = weight.hint.role if weight.hint else None
    if hinted is Role.ROUTER and weight.tensor.ndim == 2:
        rows, features = weight.tensor.shape
        if features == hidden and rows <= experts:
            return Role.ROUTER
    if not weight.is_linear:
        return Role.OTHER
    if weight.reads_latent:
        return Role.ATTENTION_QKV
    inputs, outputs = weight.features()
    if weight.part == "experts":
        return Role.EXPERT if hidden in (inputs, outputs) else Role.OTHER
    possible = _ROLES_OF_PART.get(weight.part, ())
    fitting = [role for role in possible if (inputs if _READS[role] else outputs) == hidden]
    if hinted in fitting:
        return hinted
    # Without a known name, shapes may decide only inside a module that is recognisably attention or MLP.
    return fitting[0] if len(fitting) == 1 and len(weight.path) > 1 else Role.OTHER


def _find_output_by_siblings(matrices: list[Weight], hidden: int) -> None:
    """A nameless square matrix beside recognised q/k/v, the only one left, is the attention output."""
    for owner in {weight.owner for weight in matrices if weight.part == "attention"}:
        siblings = [weight for weight in matrices if weight.owner == owner]
        left = [w for w in siblings if w.role is Role.OTHER and w.is_linear and w.features()[1] == hidden]
        roles = {weight.role for weight in siblings}
        if len(left) == 1 and Role.ATTENTION_QKV in roles and Role.ATTENTION_OUTPUT not in roles:
            left[0].role = Role.ATTENTION_OUTPUT


def _input_axis(model: nn.Module, weight: Weight, matrices: list[Weight], hidden: int) -> int:
    """0 for Conv1D, -1 for Linear; fused experts are (E, out, in) or (E, in, out), told by themselves or a sibling."""
    if weight.tensor.ndim != 3 or weight.role is not Role.EXPERT:
        return 0 if isinstance(weight.module, Conv1D) else -1
    transposed = getattr(weight.module, "is_transposed", None)
    if isinstance(transposed, bool):
        return 1 if transposed else -1
    axes = set()
    for sibling in (w for w in matrices if w.owner == weight.owner and w.tensor.ndim == 3 and w.hint):
        first, last = sibling.tensor.shape[1:]
        if first != last:
            axes.add(-1 if (last if sibling.hint.reads_hidden else first) == hidden else 1)
    if len(axes) != 1:
        raise refusal(model, "nothing tells the input axis of its fused experts", [weight.found()])
    return axes.pop()
