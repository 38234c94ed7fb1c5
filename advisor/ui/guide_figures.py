"""What the guide's sections draw from the tables, by the name that `profiles/guide.toml` gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import pandas as pd
import streamlit as st

from advisor import guide, knowledge, texts
from advisor.marks import mark_of, usual_range
from advisor.types import QuantizationMethod, Scenario
from advisor.ui import browser, common, drawing, fields, front_chart, guide_charts, wording

_MEASURED = "measured"  # in no engine's layout, as scores are
_NEEDED_BY = {
    "method": "an option of *Apply*",
    "format": "comes with the format",
    "target": "comes with the files",
    "training": "comes with training",
}


def _table(rows: Sequence[Mapping[str, str]]) -> None:
    """Rows as a table whose cells are as wide as the page lets them; the keys of the first are the heads."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([row[head].replace("|", "/") for head in heads] for row in rows)]
    st.markdown("\n".join(f"| {' | '.join(line)} |" for line in lines), width="stretch")


# ------------------------------------------------------------------------------------------------ decision


def _batch() -> None:
    marks = knowledge.batch_marks()
    drawing.chart(
        guide_charts.batch_scale(marks, browser.dark()),
        alt=f"Up to {marks.small.value:g} sequences at once weights only, from {marks.large.value:g} on W8A8 too.",
    )


def _scenarios() -> None:
    columns = st.columns(2)
    for place, scenario in enumerate(knowledge.scenarios().values()):
        with columns[place % 2].container(border=True):
            _scenario(scenario)


def _scenario(row: Scenario) -> None:
    device, engine = knowledge.find_hardware(row.hardware), knowledge.find_engine(row.engine)
    families = dict.fromkeys(knowledge.find_format(name).family for name in row.formats)
    here = [f"{family.upper()} {guide_charts.STATUS[device.support[family]][0]}" for family in families]
    st.markdown(f"**{row.label}**  \n{row.description}")
    st.markdown(f"**The guide:** {row.guide}")
    gpus = f"{row.gpus} × " if row.gpus > 1 else ""
    facts = [f"{gpus}{device.label}, {engine.label}", *([f"on it {', '.join(here)}"] if here else [])]
    if row.max_ppl_increase is not None:
        facts.append(f"accepted is a rise of perplexity by {100 * row.max_ppl_increase:g} %")
    st.caption(f"{'; '.join(facts)}. Source: {row.source}.")
    common.link("plan", "Plan for this", ":material/balance:", scenario=row.name)


# ------------------------------------------------------------------------------------------------- formats


def _bits_per_weight() -> None:
    engines = knowledge.engines()
    chosen = common.choose(
        "stored_by",
        "As stored by",
        {_MEASURED: "the formats themselves, as scores measure them"} | {n: row.label for n, row in engines.items()},
        "Engines have scales, zero points and group sizes of their own, and a plan counts theirs.",
        width=420,
    )
    sizes = guide.format_sizes(engines.get(chosen))
    shown = [size for size in sizes if size.fmt.quantized]
    drawing.chart(
        guide_charts.format_bars(shown, browser.dark()),
        alt="Bits of a weight: " + ", ".join(f"{size.fmt.label} {size.bits:.5g}" for size in shown) + ".",
    )


def _model_sizes() -> None:
    example = knowledge.guide()["formats"].numbers["billions"].value
    billions = fields.number(
        "billions",
        st.number_input,
        "Parameters of the model (billions)",
        0.01,
        10_000.0,
        float(example),
        format="%.2f",
        width=280,
        help="All weights in one format, without what an engine leaves alone; the model page counts a model of yours.",
    )
    sixteen = knowledge.find_format("bf16").bits
    rows = [
        {
            "Format": size.fmt.label,
            "Bits per weight": f"{size.bits:.5g}",
            "Weights (GB)": f"{billions * size.bits / 8:,.2f}",
            "Of BF16": f"{100 * size.bits / sixteen:.0f} %",
            "Loss that the guide expects": guide.expected_loss(size.fmt.family),
        }
        for size in guide.format_sizes()
    ]
    _table(rows)
    st.caption("1 GB is 10⁹ bytes. What a model of yours loses, its sensitivity profile says.")


def _one_format() -> None:
    known = knowledge.formats()
    name = common.choose(
        "shown_format",
        "Format",
        {n: row.label for n, row in known.items()},
        "A row of the table of formats.",
        "int4_g64",
        width=420,
    )
    fmt = known[name]
    st.markdown(f"{fmt.description} Expected loss by the guide: {guide.expected_loss(fmt.family)}.")
    own = {engine.label: engine.formats[name] for engine in knowledge.engines().values() if name in engine.formats}
    bits = {
        row.label: size.bits
        for row in knowledge.engines().values()
        for size in guide.format_sizes(row)
        if size.fmt.name == name
    }
    rows = [
        {
            "Engine": label,
            "Stored as": stored.stored_as or fmt.label,
            "Bits per weight": f"{bits[label]:.5g}" if label in bits else "as its weight-only twin",
            "Note": stored.note or "–",
        }
        for label, stored in own.items()
    ]
    if rows:
        _table(rows)
    else:
        st.caption("No engine stores it.")
    st.caption(f"Source of the format: {fmt.source}.")


# ------------------------------------------------------------------------------------------------- methods


def _approaches() -> None:
    rows = [
        {
            "Approach": row.label,
            "Retraining": row.retraining,
            "Time": row.time,
            "Perplexity at INT4": f"{row.int4_perplexity.value:g}",
            "Who uses it": row.used_by,
            "When": row.use_when,
        }
        for row in knowledge.approaches().values()
    ]
    _table(rows)


def _methods() -> None:
    wanted = st.query_params.get("shown_method")
    for row in knowledge.methods().values():
        with st.expander(f"**{row.label}** · {row.use_when}", expanded=row.name == wanted):
            _method(row)


def _method(row: QuantizationMethod) -> None:
    targets, engines = knowledge.targets(), knowledge.engines()
    written = ", ".join(targets[name].label for name in row.targets) or "every export"
    st.markdown(row.does)
    st.markdown(
        f"- **Needs:** {row.needs}\n"
        f"- **Takes:** {row.time}\n"
        f"- **How it is chosen:** {_NEEDED_BY[row.chosen_by]}\n"
        f"- **Serves:** {wording.format_labels(row.formats)}\n"
        f"- **Written as:** {written}\n"
        f"- **Loaded by:** {', '.join(engines[name].label for name in row.engines)}"
    )
    approach = knowledge.approaches()[row.approach].label
    st.caption(f"{approach}. Source: {row.source}, checked {row.checked_on}.")


def _method_gains() -> None:
    found, known = knowledge.guide()["methods"].numbers, knowledge.formats()
    methods = knowledge.methods()
    rises = {
        (known[fmt].label, methods[method].label): found[number].value
        for fmt, method, number in (
            ("int4_g64", "rtn", "int4_nearest"),
            ("int4_g64", "gptq", "int4_gptq"),
            ("int8_w8a8", "rtn", "w8a8_nearest"),
            ("int8_w8a8", "smoothquant", "w8a8_smooth"),
            ("int8", "rtn", "int8_nearest"),
        )
    }
    drawing.chart(
        guide_charts.gain_bars(rises, browser.dark()),
        alt="Rise of perplexity: " + ", ".join(f"{' by '.join(key)} {rise:g} %" for key, rise in rises.items()) + ".",
    )


# ------------------------------------------------------------------------------------------------ hardware


def _support() -> None:
    kinds = guide.device_kinds()
    drawing.chart(
        guide_charts.support_matrix(kinds, browser.dark()),
        alt="What each device does with each format family; the table below says it of one device in words.",
    )
    st.caption(f"{guide_charts.DIFFERS}: the guide says another thing, see below. Point at a cell for its source.")


def _differences() -> None:
    rows = [
        {
            "Devices": kind.label,
            "Format": family.upper(),
            "The guide": kind.guide[family],
            "The hardware": guide_charts.STATUS[kind.support[family]][0],
            "Source": kind.devices[0].support_source,
        }
        for kind in guide.device_kinds()
        for family in guide.families()
        if guide.differs(kind, family)
    ]
    if rows:
        _table(rows)
    else:
        st.caption("Nowhere: the tables agree with it.")


def _one_device() -> None:
    devices = knowledge.hardware()
    name = common.choose(
        "shown_device",
        "Device",
        {n: row.label for n, row in devices.items()},
        "A row of the tables of hardware; the plan page's device to begin with. Type to search.",
        st.session_state.get("last_device"),
        width=420,
    )
    device = devices[name]
    rows = [
        {
            "Format": row.fmt.label,
            "Hardware": guide_charts.STATUS[row.support][0],
            "The guide": f"{row.guide} {guide_charts.DIFFERS}" if row.guide and row.guide != row.support else row.guide,
            **row.engines,
        }
        for row in guide.kernels(device)
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, height="content")
    peaks = ", ".join(f"{family.upper()} {peak.value:g}" for family, peak in device.peak_tflops.items())
    bandwidth = f"{device.bandwidth_gb_s.value:g} GB/s" if device.bandwidth_gb_s else "not stated"
    st.caption(
        f"{device.memory_gb.value:.4g} GB ({device.memory_gb.source}); bandwidth {bandwidth}; dense peaks in TFLOPS or "
        f"TOPS: {peaks or 'not stated'}. Source of the support: {device.support_source}. {device.notes}"
    )


# --------------------------------------------------------------------------------------------------- roles


def _roles() -> None:
    advice = list(knowledge.roles().values())
    drawing.chart(
        guide_charts.role_bars(advice, browser.dark()),
        alt=", ".join(f"{row.label}: {row.minimum_bits} bits, sensitivity {row.sensitivity}" for row in advice) + ".",
    )
    rows = [{"Role": row.label, "Advice": row.advice, "Source": row.source} for row in advice]
    _table(rows)


# --------------------------------------------------------------------------------------------- calibration


def _texts() -> None:
    _table([{"Text": name, "What it is": said} for name, said in texts.BUILT_IN.items()])


def _calibrating() -> None:
    rows = [{"Method": row.label, "What it needs": row.needs} for row in guide.methods_that_calibrate()]
    _table(rows)


# ---------------------------------------------------------------------------------------------- evaluation


def _marks() -> None:
    marks = knowledge.perplexity_marks()
    end = marks.poor.value + marks.acceptable.value
    drawing.chart(
        front_chart.rise_scale(0.0, end, browser.dark()),
        alt=f"A rise of perplexity: {usual_range()} acceptable, above {marks.poor.value:g} % poor.",
    )
    edges = [marks.acceptable.value, marks.limit.value, marks.poor.value]
    stretches = [
        f"up to {edges[0]:g} %",
        *(f"{low:g} to {high:g} %" for low, high in pairwise(edges)),
    ]
    rows = [{"A rise of": said, "is": mark_of(edge).text} for said, edge in zip(stretches, edges, strict=True)]
    rows.append({"A rise of": f"more than {edges[-1]:g} %", "is": mark_of(end).text})
    _table(rows)
    accepted = [
        f"{row.label} {100 * row.max_ppl_increase:g} %"
        for row in knowledge.scenarios().values()
        if row.max_ppl_increase is not None
    ]
    if accepted:
        st.caption(f"Deployments for which the guide names what it accepts: {'; '.join(accepted)}.")


FIGURES: dict[str, Callable[[], None]] = {
    "batch": _batch,
    "scenarios": _scenarios,
    "bits_per_weight": _bits_per_weight,
    "model_sizes": _model_sizes,
    "one_format": _one_format,
    "approaches": _approaches,
    "methods": _methods,
    "method_gains": _method_gains,
    "support": _support,
    "differences": _differences,
    "one_device": _one_device,
    "roles": _roles,
    "texts": _texts,
    "calibrating": _calibrating,
    "marks": _marks,
}
