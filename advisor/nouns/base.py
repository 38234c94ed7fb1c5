"""What all nouns share: frozen and checked; lean and finite ones; what is wrong with a document; clock and change."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer


def now() -> datetime:
    """The current time, in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def relative_change(delta_nll: float) -> float:
    """The relative change of perplexity that a change of the negative log-likelihood means: exp(delta_nll) - 1.

    Beyond e^300 it stays there: a ruined layer has a number that can be stored and compared, not an overflow.
    """
    return math.expm1(min(delta_nll, 300.0))


class Noun(BaseModel):
    """Base of all nouns: immutable, and a field nobody declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FiniteNoun(Noun):
    """A noun whose numbers are all finite: JSON has no other ones."""

    model_config = ConfigDict(allow_inf_nan=False)


class LeanNoun(Noun):
    """A noun that a plan holds thousands of: fields at their defaults stay out of its JSON."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {name: value for name, value in serialize(self).items() if getattr(self, name) != fields[name].default}


def wrong_field(error: ValidationError) -> str:
    """The first thing that is wrong with a document: its field's path, what is wrong there, and how much more is."""
    first = error.errors()[0]
    # What our own checks say, without pydantic's prefix; those of a whole document name the place themselves.
    said = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
    path = ".".join(map(str, first["loc"]))
    more = f" ({error.error_count() - 1} more wrong)" if error.error_count() > 1 else ""
    return f"{path}: {said}{more}" if path else f"{said}{more}"
