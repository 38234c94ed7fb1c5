"""Page 6: everything that is stored: found by its words, reopened, compared, renamed, deleted, and brought back."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from advisor import pipeline
from advisor.types import DELETED_DAYS
from advisor.ui import common, history_actions, history_rows, wording
from advisor.ui.history_rows import Listing, Row

DELETED, SPACE = "deleted", "space"


@common.guarded
def render() -> None:
    """The whole page."""
    common.page_head("History")
    store = common.store()
    store.purge_expired()
    found, deletions = history_rows.listings(store), store.deletions()
    if not deletions and not any(listing.rows for listing in found.values()):
        common.empty_state(
            "**Nothing stored yet.** Models, sensitivity profiles, plans, evaluations and jobs are listed here.",
            "model",
            "Start with a model",
        )
        return
    history_actions.undo_banner(deletions)
    words = (
        st.text_input(
            "Search",
            placeholder="model, name, format, device, text, id",
            icon=":material/search:",
            help="Lists what has all of these words in its row or its id, in any list; the link of the page keeps "
            "them.",
            **common.setting("q"),
        )
        or ""
    ).lower()
    shown = {key: [row for row in listing.rows if row.matches(words.split())] for key, listing in found.items()}
    gone = [row for row in history_rows.deleted(deletions) if row.matches(words.split())]
    chosen = _choose(found, shown, gone)
    if chosen == DELETED:
        _deleted(gone)
    elif chosen == SPACE:
        _space()
    else:
        _listing(found[chosen], shown[chosen], words)
    st.caption(
        ":material/group: Everybody who can open this page sees all of it, and may rename, delete and bring back any "
        f"of it. What is deleted stays here for {DELETED_DAYS} days, and then goes for good."
    )


def _choose(found: dict[str, Listing], shown: dict[str, list[Row]], gone: list[Row]) -> str:
    labels = {key: f"{listing.title} ({len(shown[key]):,})" for key, listing in found.items()}
    labels |= {DELETED: f"Recently deleted ({len(gone):,})", SPACE: "Storage used"}
    first = next((key for key in ("plans", "profiles", "models", "jobs") if shown[key]), "plans")
    return common.choose(
        "list",
        "What to list",
        labels,
        "The numbers count what the search leaves.",
        default=first,
        widget=st.segmented_control,
        required=True,
    )


def _listing(listing: Listing, rows: list[Row], words: str) -> None:
    noun = listing.title.lower()
    if not rows:
        st.info(f"None of the {noun} has all of these words." if words else f"No {noun} yet.")
        return
    chosen = _table(rows, listing.kind, listing.links)
    history_actions.show(listing, chosen)


def _deleted(rows: list[Row]) -> None:
    if not rows:
        st.info("Nothing was deleted lately.")
        return
    history_actions.restore(_table(rows, "deletion"), rows)


def _space() -> None:
    used = pipeline.space_used(common.store())
    spare = sum(one.spare_bytes for one in used)
    whole = wording.size(sum(one.bytes for one in used))
    st.markdown(f"**{whole}** in all, of which {wording.size(spare)} can be freed.")
    history_actions.free(_table(history_rows.space(used, common.store().plans()), "place"))
    st.caption(
        "Models of the hub lie in the hub's own cache, which other programs share: `hf cache ls` lists them and `hf "
        "cache rm` frees them."
    )


def _table(rows: list[Row], noun: str, links: tuple[str, ...] = ()) -> list[Row]:
    """Draw the rows and return those that are ticked."""
    ids = tuple(row.id for row in rows)
    state = st.dataframe(
        pd.DataFrame([row.cells for row in rows]),
        # Ticks count rows, so another set of rows starts without any.
        key=f"rows_{noun}_{hash(ids)}_{st.session_state.get(history_actions.TURN, 0)}",
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        column_config={name: st.column_config.LinkColumn(name, display_text="open", width="small") for name in links},
        alt=f"{wording.plural(len(rows), noun)}, newest first.",
    )
    return [rows[number] for number in state.selection.rows if number < len(rows)]


if __name__ == "__main__":
    render()
