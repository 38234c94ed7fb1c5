"""Scores by role beside what the guide expects: a table, and in words where this model departs and where it agrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import streamlit as st

from advisor import knowledge
from advisor.role_sensitivity import LayerScore, Mean, Ordering, Per, RoleSensitivity, orderings, role_sensitivities
from advisor.types import Role, SensitivityProfile
from advisor.ui import frames, wording


def show(profile: SensitivityProfile, frame: pd.DataFrame, measure: frames.Measure) -> None:
    """The words, then the table they speak of.

    Args:
        frame: the scores that the page shows, one row per layer.
        measure: KL per MiB compares roles by what their bytes cost, every other one by what a layer costs.
    """
    per: Per = "byte" if measure.key == "kl_per_mib" else "layer"
    found = role_sensitivities(layer_scores(profile, frame))
    for paragraph in sentences(found, orderings(found, knowledge.roles(), per), per, measure.won):
        st.markdown(paragraph)
    measurable, measured = len(profile.catalogue.quantizable), len(frame)
    if measured < measurable and not measure.won:
        st.caption(f"So far: {measured} of {measurable} layers have a score here.")
    with st.container(key="numbers_roles"):
        st.table(
            table(found, per, measure.won),
            border="horizontal",
            hide_index=True,
            alt="Scores of each role beside the guide's expectation.",
        )
    other = "what a layer costs" if per == "byte" else "what their bytes cost, which large layers hide"
    switch = "KL divergence" if per == "byte" else "KL per MiB saved"
    st.caption(
        "± is one standard error, as if the errors of all layers of a role went the same way; an ordering counts only "
        f"where the means differ by twice that. With *{switch}* as the measure, roles are compared by {other}."
        if not measure.won
        else "What giving back wins, beside what the guide expects of quantizing alone."
    )


def layer_scores(profile: SensitivityProfile, frame: pd.DataFrame) -> list[LayerScore]:
    """The rows of the frame as scores of roles; those whose format saves nothing that is known count no bytes."""
    layers = profile.catalogue.by_name()
    columns = (frame[name] for name in ("layer", "kl", "kl_stderr", "saved"))
    return [
        LayerScore(layers[layer].role, kl, stderr, int(saved) if saved > 0 else 0)
        for layer, kl, stderr, saved in zip(*columns, strict=True)
    ]


def table(found: Mapping[Role, RoleSensitivity], per: Per, won: bool = False) -> pd.DataFrame:
    """One row per role, the most sensitive first; KL in nats per token."""
    advice, what = knowledge.roles(), "KL won" if won else "KL"
    ranked = sorted(found.items(), key=lambda item: -(item[1].mean(per) or item[1].per_layer).value)
    return pd.DataFrame(
        [
            {
                "Role": wording.role(role),
                "Layers": str(row.layers),
                f"Mean {what}": _error(row.per_layer),
                f"Largest {what}": wording.number(row.largest, 2),
                "Half of it in": wording.plural(row.half_in, "layer"),
                f"{what} per MiB saved": _per_mib(row.per_byte),
                "Guide: sensitivity": advice[role].sensitivity,
                "Guide: least bits": str(advice[role].minimum_bits),
            }
            for role, row in ranked
        ]
    )


def sentences(
    found: Mapping[Role, RoleSensitivity], pairs: Sequence[Ordering], per: Per, won: bool = False
) -> list[str]:
    """Where the model departs from the guide, one paragraph a role, then where it agrees and what is open."""
    if not pairs:
        return [
            "The layers scored so far leave the guide nothing to compare: it expects the same of all of their roles."
        ]
    departing = _by_more(pairs, "departs")
    said = [_departure(found, more, less, per, won) for more, less in departing.items()]
    if not said:
        said = ["**This model departs from the guide nowhere** that this text could tell."]
    agreeing, unsettled = _by_more(pairs, "agrees"), _by_more(pairs, "open")
    if agreeing:
        said.append(f":material/check: As the guide expects: {_list_pairs(agreeing, 'above')}.")
    if unsettled:
        said.append(f":material/question_mark: Not told apart by this text: {_list_pairs(unsettled, 'from')}.")
    return said


def _departure(found: Mapping[Role, RoleSensitivity], more: Role, less: Sequence[Role], per: Per, won: bool) -> str:
    advice = knowledge.roles()
    verb = "wins when given back" if won else "costs"
    unit = "nats for each MiB that it saves" if per == "byte" else "nats a layer"
    others = _and(
        [f"**{wording.role(role)}** (*{advice[role].sensitivity}*, {_mean(found[role], per)})" for role in less]
    )
    return (
        f":material/swap_vert: **{wording.role(more)}** is expected to be *{advice[more].sensitivity}*, but {verb} "
        f"{_mean(found[more], per)} {unit}: less than {others}."
    )


def _by_more(pairs: Sequence[Ordering], outcome: str) -> dict[Role, list[Role]]:
    together: dict[Role, list[Role]] = {}
    for pair in pairs:
        if pair.outcome == outcome:
            together.setdefault(pair.more, []).append(pair.less)
    return together


def _list_pairs(together: Mapping[Role, Sequence[Role]], word: str) -> str:
    return "; ".join(
        f"{wording.role(more)} {word} {_and([wording.role(role) for role in less])}" for more, less in together.items()
    )


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _mean(row: RoleSensitivity, per: Per) -> str:
    return _per_mib(row.per_byte) if per == "byte" else _error(row.per_layer)


def _per_mib(mean: Mean | None) -> str:
    return _error(Mean(mean.value * wording.MIB, mean.stderr * wording.MIB)) if mean else "–"


def _error(mean: Mean) -> str:
    return wording.with_error(mean.value, mean.stderr)
