"""The form of the model page: which method, text, formats and layers -> a ProfileRequest, estimated first or run."""

from __future__ import annotations

import streamlit as st

from advisor import knowledge, layer_names, texts
from advisor.demo import DEMO_SOURCE
from advisor.errors import PlanError
from advisor.types import Catalogue, Job, ProfileRequest
from advisor.ui import common, fields, wording

METHODS = {"fisher": "Fisher first look", "auto": "Auto", "exact": "Exact"}
METHOD_SENTENCES = {
    "fisher": "estimates every layer in every format at once from a few backward passes: a minute or two for the "
    "demo model.",
    "auto": "estimates all, then measures exactly the layers whose error bars leave a choice open: minutes.",
    "exact": "runs the model again for every layer and format: no approximation, and by far the longest.",
}
MOST_SAMPLES = 4096


def restore(job: Job | None) -> None:
    """Take the settings of the job that a bare link names, such as the History's; any other link has its own."""
    if job is None or "from" in st.query_params or "model" not in job.params:
        return
    demo = job.params["model"] == DEMO_SOURCE
    common.set_choice("from", "demo" if demo else "own")
    if not demo:
        st.session_state["source"] = job.params["model"]
    if job.kind == "inspect":
        return
    request = ProfileRequest(**job.params)
    built_in = request.text in texts.BUILT_IN
    common.set_choice("text", request.text if built_in else "file")
    if not built_in:
        st.session_state["path"] = request.text
    common.set_choice("method", request.method)
    common.set_choices("formats", [name for name in request.formats if name in knowledge.formats()])
    common.set_choice("dtype", request.dtype)
    st.session_state.update(
        samples=request.samples and min(request.samples, MOST_SAMPLES),
        seq_len=request.seq_len,
        draws=request.draws,
        layers=request.layers,
    )


def request(source: str, catalogue: Catalogue | None) -> tuple[ProfileRequest | None, str]:
    """Draw the fields; returns what they ask for, None where they ask for nothing that could be run, and a sentence."""
    method = common.choose(
        "method",
        "Method",
        METHODS,
        " ".join(f"*{label}* {METHOD_SENTENCES[name]}" for name, label in METHODS.items()),
        widget=st.segmented_control,
        required=True,
    )
    st.caption(f"**{METHODS[method]}** {METHOD_SENTENCES[method]}")
    text, samples, length = _text(method, catalogue)
    formats = common.choose_several(
        "formats",
        "Formats to measure",
        {name: fmt.label for name, fmt in knowledge.formats().items() if fmt.quantized},
        "Every layer is tried in each of these; a plan can only choose among them (and the original).",
        ("int8", "int4_g64"),
    )
    common.guide_link("calibration", "formats")
    draws, pattern, dtype = _advanced(method)
    problem = _problem(text, formats, pattern, catalogue)
    if problem:
        return None, f":material/info: {problem}"
    found = ProfileRequest(
        model=source,
        text=text,
        samples=samples,
        seq_len=length,
        formats=formats,
        method=method,
        draws=draws,
        layers=pattern,
        dtype=dtype,
    )
    return found, _workload(found, catalogue)


def _text(method: str, catalogue: Catalogue | None) -> tuple[str, int | None, int]:
    text_kind, samples, seq_len = st.columns([3, 1, 1], vertical_alignment="bottom")
    with text_kind:
        text = common.choose_text(
            "Calibration text",
            "Scores are measured on this text: choose what resembles the model's use. Evaluation reads other parts.",
        )
    cpu, accelerator = (texts.default_samples(method, device) for device in ("cpu", "cuda"))
    count = fields.number(
        "samples",
        samples.number_input,
        "Samples",
        1,
        MOST_SAMPLES,
        None,
        placeholder="auto",
        help="How many sequences of text. More make the error bars smaller and the run longer. Empty is auto: with "
        f"this method {cpu} on a CPU and {accelerator} on an accelerator.",
    )
    return text, count, common.sequence_length(seq_len, "seq_len", catalogue)


def _advanced(method: str) -> tuple[int, str, str]:
    """Labels drawn per token, layers and dtype: what most runs leave as it is."""
    held = st.session_state.get("layers", st.query_params.get("layers", ""))
    with st.expander("Advanced: layers, drawn labels, dtype", expanded=bool(held)):
        layers, draws, dtype = st.columns([2, 1, 1], vertical_alignment="bottom")
        pattern = layers.text_input(
            "Layers",
            placeholder="all",
            help="Empty measures all. " + wording.LAYERS_HELP,
            **common.setting("layers"),
        )
        count = fields.number(
            "draws",
            draws.number_input,
            "Drawn labels per token",
            1,
            64,
            ProfileRequest.model_fields["draws"].default,
            disabled=method == "exact",
            help="Estimates average over labels that the model itself draws for every token; each takes one backward "
            "pass. More make the bars smaller; more samples do so as well. The exact method draws none.",
        )
        precision = common.choose(
            "dtype",
            "Compute in",
            {name: wording.format_label(name) for name in ("auto", "bf16", "fp32")},
            "The dtype in which the model runs while it is measured. auto is FP32 on a CPU, where rounding to "
            "BF16 would drown the scores of INT8, and the model's own dtype on an accelerator.",
            widget=dtype.selectbox,
        )
    return count, pattern or "", precision


def _problem(text: str, formats: tuple[str, ...], pattern: str, catalogue: Catalogue | None) -> str | None:
    if not text:
        return "Give the path of the text file."
    if not formats:
        return "Choose at least one format."
    try:
        layer_names.check(pattern)
        if catalogue is not None:
            layer_names.to_measure(pattern, catalogue)
    except PlanError as refusal:
        return str(refusal)
    return None


def _workload(request: ProfileRequest, catalogue: Catalogue | None) -> str:
    formats = wording.plural(len(request.formats), "format")
    tokens = _tokens(request)
    if catalogue is None:
        which = f"The layers that `{request.layers}` names" if request.layers else "Every quantizable layer"
        return f"{which} in {formats}, on {tokens}."
    chosen = len(layer_names.to_measure(request.layers, catalogue))
    return (
        f"{chosen} of {len(catalogue.quantizable)} layers in {formats}: "
        f"{wording.plural(chosen * len(request.formats), 'score')} on {tokens}."
    )


def _tokens(request: ProfileRequest) -> str:
    if request.samples is not None:
        return f"{request.samples * request.seq_len:,} tokens"
    cpu, accelerator = (texts.default_samples(request.method, d) * request.seq_len for d in ("cpu", "cuda"))
    return f"{cpu:,} tokens ({accelerator:,} on an accelerator)"
