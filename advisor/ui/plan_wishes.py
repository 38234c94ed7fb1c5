"""What people want of a plan whatever the scores say: formats to choose from, floors of roles, locks and exclusions.

All of it is in the link, as the command line writes it: `?plan_formats=int8&floor=mlp_down=8&lock=blocks 0-1=int8`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from advisor import knowledge
from advisor.errors import AdvisorError
from advisor.planner.locks import resolve_locks
from advisor.types import MOST_FLOOR_BITS, Engine, PlanRequest, Role, SensitivityProfile
from advisor.ui import common, linked, wording

FLOORS = {"off": "Ignore", "advise": "Advise", "enforce": "Enforce"}
_GUIDE = "guide"
_FLOOR_BITS = ("0", "2", "3", "4", "8", "16")
_LINKED_BITS = tuple(map(str, range(MOST_FLOOR_BITS + 1)))
_SHOWN = 12
_LONGEST = 4000  # characters; many servers take no more than 8,000 of an address
_CHANGED = "wishes_changed"


def show(profile_id: str, profile: SensitivityProfile, engine: Engine) -> dict[str, Any]:
    """Draw the fields and return what they say, as fields of a PlanRequest."""
    changed()  # by what is drawn now it is no longer
    _read_link(profile_id, profile, engine)
    if "plan_formats" in st.session_state:  # formats chosen for another profile are no choice here
        st.session_state["plan_formats"] = [f for f in st.session_state["plan_formats"] if f in profile.formats]
    formats = st.multiselect(
        "Formats to choose from",
        list(profile.formats),
        format_func=wording.format_label,
        key="plan_formats",
        placeholder="all that were measured",
        persist_state="session",
        help="Empty means all measured ones. The original format is always possible.",
    )
    floors = common.choose(
        "floors",
        "Role floors",
        FLOORS,
        "The least bits for each role: ignored, shown as advice, or enforced whatever the scores say.",
        "advise",
        widget=st.segmented_control,
        required=True,
    )
    floor_bits = _floors(profile) if floors != "off" else {}
    _fixed_layers(profile_id, profile, engine)
    _write_link(profile_id, formats, floor_bits)
    return {
        "formats": tuple(formats),
        "role_floors": floors,
        "floor_bits": floor_bits,
        "locks": locks(profile_id),
        "excluded": excluded(profile_id),
    }


def changed() -> bool:
    """Whether these fields have to be drawn again, since something else on the page filled them; told once."""
    return st.session_state.pop(_CHANGED, False)


def fill(profile_id: str, wanted: PlanRequest) -> None:
    """Take the wishes of a request into the fields."""
    st.session_state[_CHANGED] = True
    fill_formats(wanted)
    common.set_choice("floors", wanted.role_floors)
    for role in Role:
        bits = wanted.floor_bits.get(role)
        st.session_state[_key(role)] = _GUIDE if bits is None else str(bits)
    if (wanted.locks, wanted.excluded) != _held(profile_id):
        set_locks(profile_id, dict(wanted.locks), wanted.excluded)


def fill_formats(wanted: PlanRequest) -> None:
    """Take the formats of a request into their field."""
    st.session_state["plan_formats"] = list(wanted.formats)


# ------------------------------------------------------------------------------------------ the link


def _read_link(profile_id: str, profile: SensitivityProfile, engine: Engine) -> None:
    """Take the wishes of the link, once a session: from then on it is written from what the session holds."""
    if "wishes_linked" in st.session_state:
        return
    st.session_state["wishes_linked"] = True
    asked = st.query_params.get_all
    if asked("plan_formats"):
        _read_formats(asked("plan_formats"), profile)
    _read_floors(asked("floor"))
    _read_fixed(profile_id, profile, engine, asked("lock"), asked("exclude"))


def _read_floors(asked: list[str]) -> None:
    unread = []
    for entry in asked:
        role, _, bits = entry.partition("=")
        if role in list(Role) and bits in _LINKED_BITS:
            st.session_state[_key(Role(role))] = bits
        else:
            unread.append(entry)
    why = f"is not ROLE=BITS with at most {MOST_FLOOR_BITS} bits"
    linked.refused("Floor of each role", unread, ["the guide's"], why)


def _read_fixed(
    profile_id: str, profile: SensitivityProfile, engine: Engine, asked: list[str], asked_out: list[str]
) -> None:
    """Hold what this model can; each is tried alone, so that all of those that it cannot are named."""
    held = {}
    for entry in asked:
        name, _, fmt = entry.rpartition("=")
        if name and _fits(profile, engine, {name: fmt}):
            held[entry] = name, fmt
    left_out = [entry for entry in asked_out if _fits(profile, engine, {}, [entry])]
    why = "is not LAYERS=FORMAT with layers of this model and a known format"
    linked.refused("Locks", [entry for entry in asked if entry not in held], [], why)
    why = "names no layers of this model that can be quantized"
    linked.refused("Exclusions", [entry for entry in asked_out if entry not in left_out], [], why)
    if asked or asked_out:  # nothing to undo yet
        st.session_state.setdefault("wishes", {})[profile_id] = dict(held.values()), tuple(left_out)


def _fits(profile: SensitivityProfile, engine: Engine, wanted: dict[str, str], left_out: Sequence[str] = ()) -> bool:
    try:
        resolve_locks(profile.catalogue, engine, wanted, left_out)
    except AdvisorError:
        return False
    return True


def _read_formats(asked: list[str], profile: SensitivityProfile) -> None:
    found = [name for name in asked if name in profile.formats]
    st.session_state["plan_formats"] = found
    shown = [wording.format_label(name) for name in found] or ["all that were measured"]
    linked.refused("Formats to choose from", [name for name in asked if name not in found], shown)


def fit_link(profile_id: str) -> bool:
    """Whether locks and exclusions are few enough for a link."""
    return sum(len(entry) for entries in _fixed(profile_id).values() for entry in entries) <= _LONGEST


def _fixed(profile_id: str) -> dict[str, list[str]]:
    return {
        "lock": [f"{name}={fmt}" for name, fmt in locks(profile_id).items()],
        "exclude": list(excluded(profile_id)),
    }


def _write_link(profile_id: str, formats: list[str], floor_bits: dict[Role, int]) -> None:
    floors = [f"{role}={bits}" for role, bits in floor_bits.items()]
    wishes = {"plan_formats": list(formats), "floor": floors, **_fixed(profile_id)}
    if not fit_link(profile_id):
        st.caption("These locks are too many for a link: save the plan to share it.")
        wishes |= {"lock": [], "exclude": []}
    for key, entries in wishes.items():
        if entries and st.query_params.get_all(key) != entries:
            st.query_params[key] = entries
        elif not entries and key in st.query_params:
            del st.query_params[key]


# ----------------------------------------------------------------------------------- floors of roles


def _floors(profile: SensitivityProfile) -> dict[Role, int]:
    """Least bits of the roles whose floor is not the guide's."""
    advice, chosen = knowledge.roles(), {}
    with st.expander("Floor of each role"):
        for role in dict.fromkeys(layer.role for layer in profile.catalogue.quantizable):
            guide = advice[role]
            held = st.session_state.get(_key(role), _GUIDE)
            # A stored plan may ask for any number of bits.
            options = dict.fromkeys([_GUIDE, *_FLOOR_BITS, held])
            bits = st.selectbox(
                wording.role(role),
                list(options),
                format_func=lambda value, guide=guide: _floor_label(value, guide.minimum_bits),
                key=_key(role),
                persist_state="session",
                help=f"Least bits of this role. {guide.advice} Sensitivity: {guide.sensitivity}. "
                f"Source: {guide.source}.",
            )
            st.caption(guide.advice)
            if bits != _GUIDE:
                chosen[role] = int(bits)
        common.guide_link("roles")
    return chosen


def _floor_label(value: str, guide: int) -> str:
    if value == _GUIDE:
        return f"{guide} bits, as the guide says" if guide else "none, as the guide says"
    return "no floor" if value == "0" else f"{value} bits"


def _key(role: Role) -> str:
    return f"floor_{role.value}"


# ------------------------------------------------------------------------------ locks and exclusions


def locks(profile_id: str) -> dict[str, str]:
    """The locks that this session holds for a profile: layer name, blocks or pattern -> format name."""
    return _held(profile_id)[0]


def excluded(profile_id: str) -> tuple[str, ...]:
    """What this session leaves out for a profile: layer names, blocks or patterns."""
    return _held(profile_id)[1]


def set_locks(profile_id: str, wanted: dict[str, str], left_out: tuple[str, ...] = ()) -> None:
    """Replace locks and exclusions, which `buttons` can take back; the table is drawn afresh."""
    st.session_state.setdefault("wishes_before", {}).setdefault(profile_id, []).append(_held(profile_id))
    st.session_state.setdefault("wishes", {})[profile_id] = wanted, left_out
    st.session_state["wishes_version"] = version() + 1
    st.session_state[_CHANGED] = True


def version() -> int:
    """Another number whenever locks or exclusions were replaced."""
    return st.session_state.get("wishes_version", 0)


def buttons(profile_id: str, key: str) -> None:
    """Buttons that take all locks and exclusions away, and that take the last change of them back, where there are any.

    Args:
        key: of this place on the page.
    """
    counts = {"lock": len(locks(profile_id)), "exclusion": len(excluded(profile_id))}
    said = " and ".join(wording.plural(count, noun) for noun, count in counts.items() if count)
    row = st.container(horizontal=True)
    if said:
        row.button(
            f"Clear {said}",
            on_click=set_locks,
            args=(profile_id, {}),
            key=f"clear_{key}",
            icon=":material/lock_open:",
            help="The solver decides every layer again.",
        )
    if st.session_state.get("wishes_before", {}).get(profile_id):
        row.button(
            "Undo",
            on_click=_undo,
            args=(profile_id,),
            key=f"undo_{key}",
            icon=":material/undo:",
            help="Takes the last change of locks and exclusions back.",
        )


def _undo(profile_id: str) -> None:
    before = st.session_state["wishes_before"][profile_id]
    wanted = before.pop()
    set_locks(profile_id, *wanted)
    before.pop()  # what was taken back is no change to take back


def _held(profile_id: str) -> tuple[dict[str, str], tuple[str, ...]]:
    return st.session_state.get("wishes", {}).get(profile_id, ({}, ()))


def _fixed_layers(profile_id: str, profile: SensitivityProfile, engine: Engine) -> None:
    held, left_out = locks(profile_id), excluded(profile_id)
    count = len(held) + len(left_out)
    opened = st.session_state.setdefault("locks_opened", bool(count)) or bool(count)
    st.session_state["locks_opened"] = opened  # it stays open when the last lock is taken away
    own, last_block = profile.catalogue.dtype, profile.catalogue.attention.blocks - 1
    with st.expander(f"Locks and exclusions ({count})" if count else "Locks and exclusions", expanded=opened):
        pattern = st.text_input(
            "Layers",
            key="lock_pattern",
            placeholder=f"blocks 0-{min(3, last_block)} or down_proj",
            help=wording.LAYERS_HELP,
        ).strip()
        fmt = st.selectbox(
            "Format",
            ["", *profile.formats],
            format_func=lambda name: (
                wording.format_label(name) if name else f"leave out: keep {wording.format_label(own)}"
            ),
            key="lock_format",
            help="The format that these layers must get. What is left out of quantization keeps the model's own dtype.",
        )
        if st.button("Hold", disabled=not pattern, help="The solver works around these layers."):
            wanted = ({**held, pattern: fmt}, left_out) if fmt else (held, tuple(dict.fromkeys([*left_out, pattern])))
            try:
                resolve_locks(profile.catalogue, engine, *wanted)
            except AdvisorError as refusal:
                common.refuse(refusal)
            else:
                set_locks(profile_id, *wanted)
                st.rerun()
        _list(profile_id, own)
        buttons(profile_id, "locks")


def _list(profile_id: str, own: str) -> None:
    """What is held, each with a button that frees it."""
    held, left_out = locks(profile_id), excluded(profile_id)
    rows = [(pattern, wording.format_label(fmt), ":material/lock:") for pattern, fmt in held.items()]
    rows += [(pattern, f"{wording.format_label(own)}, left out", ":material/block:") for pattern in left_out]
    for pattern, what, icon in rows[:_SHOWN]:
        st.button(
            f"{icon} `{pattern}` {what}",
            icon=":material/close:",
            type="tertiary",
            key=f"free_{what}_{pattern}",
            on_click=set_locks,
            args=(
                profile_id,
                {name: fmt for name, fmt in held.items() if icon != ":material/lock:" or name != pattern},
                tuple(name for name in left_out if icon != ":material/block:" or name != pattern),
            ),
            help=f"Free {pattern}: the solver decides again.",
        )
    if len(rows) > _SHOWN:
        st.caption(f"and {len(rows) - _SHOWN} more, in the table")
