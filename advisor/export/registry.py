"""The module that writes and reads each target of `profiles/targets.toml`: all have the same few functions."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from advisor.knowledge import targets
from advisor.models import quiet_libraries
from advisor.stored import Stored
from advisor.types import Catalogue, Plan, Target

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from advisor.formats.quantize import Codes


class Export(Protocol):
    """What every module of a target does."""

    def check(self, model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> None:
        """Raises PlanError for a plan that cannot be written; `model` may be without weights (`models.load_empty`)."""

    def export(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        catalogue: Catalogue,
        plan: Plan,
        folder: Path,
        codes: Mapping[str, Codes] = ...,
    ) -> dict[str, str]:
        """Write the folder whole or not at all; `model`, in the dtype to store, may be changed on the way.

        `codes`, by the names of layers, take the place of the nearest ones; targets that round weights by rules of
        their own have no such argument.

        Returns:
            Layer name -> what is other than it was measured.
        """

    def expected(self, model: PreTrainedModel, catalogue: Catalogue, plan: Plan) -> dict[str, Stored]:
        """Layer name -> what the files must hold, for every layer of the unquantized `model`."""

    def read(self, folder: Path) -> dict[str, Stored]:
        """Layer name -> what the files hold, from the files alone. Raises ModelError for damaged ones."""

    def load(self, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
        """The written model, computing in `dtype`. Raises ModelError for damaged files."""

    def simulate(
        self,
        model: PreTrainedModel,
        catalogue: Catalogue,
        plan: Plan,
        folder: Path,
        codes: Mapping[str, Codes] = ...,
    ) -> None:
        """Give the unquantized `model` the very values that the files in `folder` should stand for; its dtype stays.

        Plan and `codes` say them; codes that a method chose, and nobody gives, are read from the files.
        """

    def is_one(self, folder: Path) -> bool:
        """Whether the folder holds what this module writes."""


def module_of(target: Target) -> Export:
    """The module of a target, imported when it is asked for: what one needs another may lack."""
    quiet_libraries()
    return import_module(f"advisor.export.{target.name.replace('-', '_')}")


def target_of(folder: Path) -> Target | None:
    """How the export in `folder` was written; None where there is none of ours."""
    if not folder.is_dir():
        return None
    return next((target for target in targets().values() if module_of(target).is_one(folder)), None)
