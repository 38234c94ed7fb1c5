"""Which layers a few words name, the same wherever layers are named: in locks, in exclusions, and to be measured."""

from __future__ import annotations

import re
import warnings

from advisor.errors import PlanError
from advisor.types import Catalogue, Layer

CHOICE = "choice of layers"
SAID = "a layer's name, `block 5`, `blocks 0-3`, a module (`down_proj`, `mlp`), or a regular expression of whole names"
_BLOCKS = re.compile(r"blocks?\s+(\d+)(?:\s*-\s*(\d+))?")


def named(pattern: str, catalogue: Catalogue, what: str) -> list[str]:
    """The layers that a pattern means (`SAID`); all but an exact name leave out layers that cannot be quantized.

    Args:
        what: what the pattern is, for sentences: `lock`.

    Raises:
        PlanError: no valid expression, blocks that the model has not, or no layer matched.
    """
    if pattern in catalogue.by_name():
        return [pattern]
    blocks = _BLOCKS.fullmatch(pattern.strip())
    if blocks:
        first, last = _range(pattern, int(blocks[1]), int(blocks[2] or blocks[1]), catalogue, what)
        found = [x.name for x in catalogue.quantizable if x.block is not None and first <= x.block <= last]
    else:
        expression = _expression(pattern, what)
        names = [layer.name for layer in catalogue.quantizable]
        module = pattern.strip()
        found = [name for name in names if expression.fullmatch(name) or _in_module(name, module)]
    if not found:
        raise PlanError(
            f"The {what} '{pattern}' matches no layer of {catalogue.model.name} that can be quantized; write a layer's "
            f"whole name, blocks such as `blocks 0-{catalogue.attention.blocks - 1}`, a module such as "
            f"`{catalogue.quantizable[-1].name.rpartition('.')[2]}`, or a regular expression that matches whole names."
        )
    return found


def to_measure(pattern: str, catalogue: Catalogue) -> list[Layer]:
    """The quantizable layers that a pattern names, all where it is empty; raises PlanError as `named` does."""
    names = set(named(pattern, catalogue, CHOICE)) if pattern else catalogue.by_name().keys()
    found = [layer for layer in catalogue.quantizable if layer.name in names]
    if not found:
        raise PlanError(f"The {CHOICE} '{pattern}' is never quantized, so nothing of it can be measured; name others.")
    return found


def check(pattern: str) -> None:
    """Raises PlanError for a pattern that is no expression; whether it names layers is for the model to tell."""
    _expression(pattern, CHOICE)


def _in_module(name: str, module: str) -> bool:
    return not module.isdecimal() and module in name.split(".")


def _range(pattern: str, first: int, last: int, catalogue: Catalogue, what: str) -> tuple[int, int]:
    """The same blocks, once it is sure that they run upwards and that the model has them all."""
    if last < first:
        raise PlanError(
            f"The {what} '{pattern}' runs backwards: write the smaller number first, as in 'blocks {last}-{first}'."
        )
    end = catalogue.attention.blocks - 1
    if last > end:
        have = f"the blocks 0 to {end}" if end else "block 0 only"
        raise PlanError(
            f"The {what} '{pattern}' goes beyond {catalogue.model.name}, which has {have}: name blocks that it has."
        )
    return first, last


def _expression(pattern: str, what: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of sets that Python may read otherwise one day
            return re.compile(pattern)
    except re.error as error:
        raise PlanError(
            f"The {what} '{pattern}' is neither a layer's name nor a valid regular expression ({error}); correct it."
        ) from error
