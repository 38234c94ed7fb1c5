"""The nouns of an export: how a folder was written, and what was compared of it with its plan."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from advisor.nouns.base import FiniteNoun, Noun, now


class Verification(FiniteNoun):
    """What was compared of an export with its plan, every tensor's format, group size and bytes being as planned.

    Attributes:
        bytes: of all layers in the files.
        largest_row_difference: between what the files stand for and the simulated plan, of the norm of a layer's row.
        kl: of the reloaded model to the simulated plan, nats per token, on `tokens` of text.
    """

    layers: int
    bytes: int
    largest_row_difference: float
    row_tolerance: float
    tokens: int
    kl: float
    kl_tolerance: float


class ExportRecord(Noun):
    """How a plan was written to a folder; lies in it as `export.json`.

    Attributes:
        target: the row of `profiles/targets.toml`.
        otherwise: layer name -> what is other than it was measured.
        tensors: tensor name -> SHA-256 of its bytes, of all that were written.
        files: file -> SHA-256 of what it holds beside tensors, of all that were written but the model card.
        bytes: of all layers in the files, made already or still to be made.
        decided_bits: average bits per weight of the layers that the plan decides, as these files hold them; None in
            records of earlier versions.
        size_note, over_limit: how `bytes` differ from what was planned and why, and which of the plan's limits they
            exceed; empty where they do not.
        left: the command to run in the folder before an engine can load it; empty where nothing is left to do.
        verified: what was compared with the plan; None where something is left to be run by hand first.
        base_model, license: the hub's name of the model and its license, as far as they are known.
        versions: package -> its version, of those that wrote the folder.
    """

    target: str
    otherwise: dict[str, str] = {}
    tensors: dict[str, str] = {}
    files: dict[str, str] = {}
    bytes: int = 0
    decided_bits: float | None = None
    size_note: str = ""
    over_limit: str = ""
    left: str = ""
    verified: Verification | None = None
    base_model: str = ""
    license: str = ""
    versions: dict[str, str] = {}
    created: datetime = Field(default_factory=now)
