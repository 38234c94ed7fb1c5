"""Page 1: choose a model, look inside, and start measuring it."""

from __future__ import annotations

import streamlit as st

from advisor import pipeline
from advisor.demo import DEMO_SOURCE
from advisor.errors import AdvisorError, ModelError
from advisor.types import Catalogue, Job, JobStatus, ProfileRequest
from advisor.ui import anatomy, common, job_panel, preview, profile_form, recent, tour, upload


@common.guarded
def render() -> None:
    """The whole page."""
    common.page_head("Which layers can take fewer bits?")
    if "tour" in st.query_params:
        _on_tour()
        return
    _welcome()
    job = job_panel.current("inspect", "preview", "profile")
    profile_form.restore(job)
    source = _choose_source()
    if job is not None:
        job_panel.show(job, _when_done)
    if not source:
        return
    catalogue = _known_catalogue(source)
    with st.container(border=True):
        st.subheader("Measure its sensitivity")
        _profile_form(source, catalogue, job)
    if catalogue is not None:
        anatomy.show(catalogue)


def _welcome() -> None:
    said, button = st.columns([3, 1], vertical_alignment="center")
    said.markdown(
        "Measure how much each layer of a language model suffers from each format, then let the solver spend a memory "
        "budget where it matters. **Start here:** choose a model and press *Profile*, or let the tour show you the "
        "whole road on the demo model."
    )
    stop = tour.begun()
    if stop and button.button(
        f"Go on with the tour ({stop})",
        type="primary",
        icon=":material/explore:",
        width="stretch",
        help="Where you left it, with what was made on the way.",
    ):
        tour.go_on()
    if button.button(
        "Begin the tour anew" if stop else "Take the tour",
        icon=":material/explore:",
        width="stretch",
        help="Measures, plans, applies and checks the demo model for real, in about two minutes; it can be left at "
        "any time.",
    ):
        tour.start()
    if "job" not in st.query_params:
        recent.show()


def _on_tour() -> None:
    """Only what the tour speaks of: its job and the demo model's anatomy."""
    tour.panel("model")
    job = job_panel.current("inspect", "profile")
    if job is not None and job.status is not JobStatus.DONE:
        job_panel.show(job, _when_done)
    elif job is not None and job.kind == "profile":
        st.success("Measured and stored.")
    catalogue = _known_catalogue(DEMO_SOURCE)
    if catalogue is not None and (job is None or job.kind == "inspect"):
        anatomy.show(catalogue)


def _known_catalogue(source: str) -> Catalogue | None:
    """What an earlier look inside found, under the name that it was stored by."""
    try:
        return common.store().catalogue_for_source(pipeline.check_source(source).source)
    except ModelError:
        return None  # the buttons say what is wrong with it


def _choose_source() -> str:
    kind, field, button = st.columns([4, 5, 2], vertical_alignment="bottom")
    with kind:
        whose = common.choose(
            "from",
            "Model",
            {"demo": "Demo", "own": "My model", "upload": "Upload"},
            "The demo model is SmolLM2-135M-Instruct: 93 MB, fetched once from the Python package index. Your own is a "
            "hub id or a path on the machine that runs this page; a GGUF file on yours can be uploaded.",
            widget=st.segmented_control,
            required=True,
        )
    if whose == "upload":
        with field:
            upload.ask()
        source = ""
    elif whose == "own":
        source = field.text_input(
            "Hub id, folder or GGUF file",
            placeholder="Qwen/Qwen2.5-0.5B, /models/llama, /models/tiny.gguf",
            help="A model id of the Hugging Face hub, a local folder of safetensors, or a .gguf file. Pickled weights "
            "and remote code are refused.",
            **common.setting("source"),
        )
        source = (source or "").strip()
    else:
        source = DEMO_SOURCE
        field.text_input(
            "Hub id, folder or GGUF file",
            "SmolLM2-135M-Instruct",
            disabled=True,
            key="demo_name",
            help="Choose *My model* to type another.",
        )
    if button.button(
        "Look inside",
        width="stretch",
        key="look_inside",
        disabled=not source,
        help="Reads the model once and lists its layers by role; a moment for a small model.",
    ):
        _submit("inspect", {"model": source})
    return source


def _profile_form(source: str, catalogue: Catalogue | None, job: Job | None) -> None:
    request, said = profile_form.request(source, catalogue)
    idle = request is not None and (job is None or job.status.ended)
    estimated = job is not None and job.kind == "preview" and job.status is JobStatus.DONE
    note, first, run = st.columns([3, 1, 1], vertical_alignment="center")
    note.caption(said)
    if first.button(
        "Estimate first",
        width="stretch",
        disabled=not idle,
        help="Reads a little of the text: says what the run would take and whether the text deserves trust.",
    ):
        _submit("preview", request)
    if run.button(
        "Profile",
        type="secondary" if estimated else "primary",  # the estimate has a way on of its own
        width="stretch",
        disabled=not idle,
        help="Runs in the background; closing the page loses nothing.",
    ):
        _submit("profile", request)


def _submit(kind: str, request: ProfileRequest | dict[str, str]) -> None:
    params = dict(request) if isinstance(request, dict) else request.model_dump(mode="json")
    try:
        with st.spinner("Checking the model"):
            params["model"] = pipeline.check_source(params["model"]).source
            if "text" in params:
                params["text"] = pipeline.check_text(params["text"])  # absolute: the job runs in another folder
    except AdvisorError as refusal:
        common.refuse(refusal)
    else:
        job_panel.start(kind, params)


def _when_done(job: Job) -> None:
    if job.kind == "inspect":
        st.success("Read and catalogued: its anatomy is below.")
        return
    if job.kind == "preview":
        preview.show(job)
        return
    st.success("Measured and stored.")
    profile = (job.result or {}).get("profile_id", "")
    if st.button("See the sensitivity", type="primary", icon=":material/arrow_forward:"):
        common.go("sensitivity", profile=profile)


if __name__ == "__main__":
    render()
