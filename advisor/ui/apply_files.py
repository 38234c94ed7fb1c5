"""The quantized model of a plan: where it lies, its model card, and the folder as one file to download."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from advisor import pipeline
from advisor.folders import CARD_FILE, zip_of
from advisor.types import Job, JobStatus, ZipRequest
from advisor.ui import common, job_panel, wording
from advisor.units import GIB, size

# A download is read into the memory of the page's process.
_LARGEST_DOWNLOAD = GIB


def show(plan_id: str) -> None:
    """The newest folder that a job made of this plan; nothing where none did, or where it was removed."""
    folder = folder_of(plan_id)
    if folder is None:
        return
    st.subheader("Files")
    st.markdown("The quantized model lies in")
    st.code(str(folder), language=None)
    _size(folder)
    if (folder / CARD_FILE).is_file():
        with st.expander("Model card", icon=":material/description:"):
            text = (folder / CARD_FILE).read_text(encoding="utf-8")
            st.markdown(wording.labelled(text.split("---", 2)[-1]))
            st.download_button(
                "Download model card",
                text,
                CARD_FILE,
                "text/markdown",
                on_click="ignore",
                icon=":material/download:",
                help="The README.md of the folder, with the front matter of a model hub.",
            )
    _download(plan_id, folder)
    st.caption("The link of this page shows this result to whoever opens it here.")


def _size(folder: Path) -> None:
    """How the size of the files differs from the planned one, and which limit they exceed."""
    record = pipeline.record_in(folder)
    if record is not None and record.size_note:
        st.caption(f"Weights: {wording.labelled(record.size_note)}.")
    if record is not None and record.over_limit:
        st.warning(wording.sentence(record.over_limit))


def folder_of(plan_id: str) -> Path | None:
    """The newest folder that a job made of this plan; None where none did, or where it was removed."""
    made = (Path(job.result["folder"]) for job in common.store().jobs(limit=200) if _made(job, plan_id))
    folder = next(made, None)
    return folder if folder is not None and folder.is_dir() else None


def _download(plan_id: str, folder: Path) -> None:
    packed = zip_of(folder)
    if packed is None:
        if st.button(
            "Make a zip file",
            icon=":material/folder_zip:",
            help=f"In the background, beside the folder: it takes as much disk as the folder, {size(_bytes(folder))}.",
        ):
            job_panel.start("zip", ZipRequest(plan_id=plan_id, folder=str(folder)))
    elif packed.stat().st_size > _LARGEST_DOWNLOAD:
        st.markdown(f"The zip file is {size(packed.stat().st_size)}, too large to download from a page; it lies in")
        st.code(str(packed), language=None)
    else:
        st.download_button(
            f"Download zip · {size(packed.stat().st_size)}",
            packed.read_bytes,
            packed.name,
            "application/zip",
            on_click="ignore",
            icon=":material/download:",
            help="The whole folder: weights, tokenizer, plan and model card.",
        )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _made(job: Job, plan_id: str) -> bool:
    done = job.kind == "apply" and job.status is JobStatus.DONE and bool(job.result)
    return done and job.params.get("plan_id") == plan_id and "folder" in job.result
