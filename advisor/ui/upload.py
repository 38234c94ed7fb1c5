"""A GGUF file from the reader's own machine, kept in the data folder and then chosen as the model."""

from __future__ import annotations

import streamlit as st

from advisor import uploads
from advisor.errors import AdvisorError
from advisor.ui import common


def ask() -> None:
    """Draw the field; a file that arrives is kept and becomes the model of the page."""
    limit = st.get_option("server.maxUploadSize")
    file = st.file_uploader(
        "GGUF file",
        type="gguf",
        help=f"At most {limit:,} MB, passed through this server's memory; it stays in the data folder, where everybody "
        "who uses this page can measure it. Copy larger files to the server and give their path under *My model*.",
    )
    if file is None:
        return
    try:
        with st.spinner("Keeping and checking the file"):
            kept = uploads.keep_gguf(file.name, file)
    except AdvisorError as refusal:
        common.refuse(refusal)
        return
    common.set_choice("from", "own")
    st.session_state["source"] = str(kept)
    st.rerun()
