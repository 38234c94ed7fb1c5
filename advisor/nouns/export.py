"""The noun of an export: how a folder was written."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from advisor.nouns.base import Noun, now


class ExportRecord(Noun):
    """How a plan was written to a folder; lies in it as `export.json`.

    Attributes:
        target: the row of `profiles/targets.toml`.
        otherwise: layer name -> what is other than it was measured.
        versions: package -> its version, of those that wrote the folder.
    """

    target: str
    otherwise: dict[str, str] = {}
    versions: dict[str, str] = {}
    created: datetime = Field(default_factory=now)
