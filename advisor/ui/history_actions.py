"""What can be done with rows of the History: compare, rename, delete, undo, bring back, and free room."""

from __future__ import annotations

from collections.abc import Iterable

import streamlit as st

from advisor import pipeline
from advisor.types import Deletion
from advisor.ui import common, history_rows, wording
from advisor.ui.history_rows import Listing, Row
from advisor.units import plural

TURN = "history_turn"  # counts what was done, so that no tick outlives it
_LAST = "history_last_deleted"
_HINT = "Tick rows at their left to {}. By keyboard: arrow keys to a row, then Shift and space."


def undo_banner(deletions: Iterable[Deletion]) -> None:
    """What this reader deleted last, and the button that brings it back."""
    last = [one for one in deletions if one.id in st.session_state.get(_LAST, ())]
    if not last:
        return
    said, button = st.columns([5, 1], vertical_alignment="center")
    names = "; ".join(
        wording.verbatim(one.label) + (f", with {history_rows.also(one)}" if one.also else "") for one in last
    )
    said.success(f"Deleted: {names}.", icon=":material/delete:")
    if button.button(
        "Undo",
        icon=":material/undo:",
        width="stretch",
        help="Brings back what you deleted last, and all that went with it.",
    ):
        _undelete(one.id for one in last)


def show(listing: Listing, chosen: list[Row]) -> None:
    """The buttons for the ticked rows; a hint where none is."""
    if not chosen:
        verbs = [*(["compare"] if listing.kind == "plan" else []), *(["rename"] if listing.rename else []), "delete"]
        st.caption(_HINT.format(" or ".join([", ".join(verbs[:-1]), verbs[-1]] if verbs[:-1] else verbs)))
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        for name in listing.links:
            if len(chosen) == 1 and chosen[0].cells[name]:
                st.link_button(f"Open {name.lower()}" if name != "Open" else name, str(chosen[0].cells[name]))
        if listing.kind == "plan":
            _compare(chosen)
        if listing.rename is not None and len(chosen) == 1:
            _rename(listing, chosen[0])
        with_it = f" With it goes what was made from it: {listing.goes_too}." if listing.goes_too else ""
        wanted = st.button(
            f"Delete {plural(len(chosen), listing.kind)}",
            icon=":material/delete:",
            help=f"Can be undone.{with_it}",
        )
        made = common.store().made_from(listing.kind, [row.id for row in chosen])
        if made:
            counts = history_rows.counted({kind: len(ids) for kind, ids in made.items()})
            st.caption(f"Takes along what was made from it: {counts}.", width="content")
    if wanted:
        _delete(listing, chosen)


def restore(chosen: list[Row], everything: list[Row]) -> None:
    """Bring back the ticked deletions, or let go for good of these or all."""
    if not chosen:
        st.caption(_HINT.format("bring them back or delete them for good"))
    with st.container(horizontal=True):
        if st.button(
            f"Bring back {plural(len(chosen), 'deletion')}",
            icon=":material/undo:",
            type="primary",
            disabled=not chosen,
            help="Restores the thing with all that was deleted with it.",
        ):
            _undelete(row.id for row in chosen)
        going = chosen or everything
        with st.popover("Delete for good", icon=":material/delete_forever:"):
            st.markdown(f"{'; '.join(wording.verbatim(row.label) for row in going)}: this cannot be undone.")
            if st.button(f"Delete {plural(len(going), 'thing')} for good", type="primary"):
                for row in going:
                    common.store().purge(row.id)
                common.store().compact()
                _done()


def free(chosen: list[Row]) -> None:
    """Give back the room of the ticked places."""
    store = common.store()
    removable = {one.place for one in pipeline.space_used(store) if one.removable}
    places = [str(row.id) for row in chosen if row.id in removable]
    if len(places) < len(chosen):
        if st.button("Compact the database", icon=":material/compress:", help="Gives back what deleted rows left."):
            store.compact()
            _done()
    elif not chosen:
        st.caption(_HINT.format("free their room"))
    if not places:
        return
    with st.popover(f"Remove {plural(len(places), 'place')}", icon=":material/delete_forever:"):
        st.markdown("; ".join(places) + ": this cannot be undone.")
        if st.button("Remove for good", type="primary"):
            for place in places:
                pipeline.free_space(place, store)
            _done()


def _compare(chosen: list[Row]) -> None:
    """The link to the plan page with both plans, where both were made from stored scores."""
    if len(chosen) != 2:
        return
    store = common.store()
    plans = {plan.id: plan for plan in store.plans()}
    weights = {profile.id: profile.fingerprint for profile in store.profiles()}
    one, other = (plans[str(row.id)] for row in chosen)
    if one.profile_id is None or weights.get(one.profile_id) != weights.get(other.profile_id or ""):
        st.caption("Plans of different models are not compared.")
        return
    common.link(
        "plan",
        "Compare these two",
        icon=":material/compare_arrows:",
        profile=one.profile_id,
        plan=one.id,
        against=other.id,
    )


def _rename(listing: Listing, row: Row) -> None:
    with st.popover("Rename", icon=":material/edit:"), st.form(f"rename_{row.id}", border=False):
        name = st.text_input(
            "New name",
            row.name,
            max_chars=max(common.LONGEST_NAME, len(row.name)),  # the name of a file may be longer
            key=f"new_name_{row.id}",
            help="Shown in lists; empty takes it away.",
        )
        if st.form_submit_button("Rename"):
            listing.rename(row.id, name.strip())
            _done()


def _delete(listing: Listing, chosen: list[Row]) -> None:
    labels = {row.id: row.label for row in chosen}
    st.session_state[_LAST] = pipeline.delete_stored(listing.kind, labels, common.store())
    _done()


def _undelete(deletions: Iterable[str | int]) -> None:
    for deletion_id in deletions:
        common.store().undelete(str(deletion_id))
    st.toast("Brought back.", icon=":material/undo:")
    _done()


def _done() -> None:
    st.session_state[TURN] = st.session_state.get(TURN, 0) + 1
    st.rerun()
