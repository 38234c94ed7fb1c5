"""The parts of the report about what was measured before the plan: the model, the text, and the layers' scores."""

from __future__ import annotations

from collections import Counter

from advisor.knowledge import find_format
from advisor.types import Plan, SensitivityProfile
from advisor.ui import charts, frames, ranked_chart, wording
from advisor.ui.report_parts import Commands, Figure, Table, Words, figure

Blocks = list[Words | Table | Figure | Commands]
_TOP = 20


def model(plan: Plan, profile: SensitivityProfile | None) -> Blocks:
    """What the model is made of."""
    ref = plan.model
    blocks: Blocks = [Words(f"{ref.name}, from {ref.source}. Fingerprint of its weights: {ref.fingerprint or '–'}.")]
    if profile is None:
        return blocks
    catalogue, attention = profile.catalogue, profile.catalogue.attention
    blocks.append(
        Words(
            f"{catalogue.architecture}: {wording.parameters(catalogue.parameters)} parameters in "
            f"{wording.format_label(catalogue.dtype)}, "
            f"{wording.plural(attention.blocks, 'block')}, hidden size {catalogue.hidden_size:,}, vocabulary "
            f"{catalogue.vocabulary:,}, context {catalogue.max_context:,} tokens, {attention.attention_heads} "
            f"attention heads over {attention.kv_heads} of keys and values."
        )
    )
    tensors, parameters = Counter(), Counter()
    for layer in catalogue.layers:
        tensors[layer.role] += 1
        parameters[layer.role] += layer.parameters
    rows = [
        (
            wording.role(role),
            f"{tensors[role]:,}",
            wording.parameters(count),
            f"{100 * count / catalogue.parameters:.1f} %",
        )
        for role, count in parameters.items()
    ]
    return [*blocks, Table(("Role", "Weights", "Parameters", "Of all"), rows, numbers=(1, 2, 3))]


def text(profile: SensitivityProfile | None) -> Blocks:
    """What the scores were measured on, and whether it deserves trust."""
    if profile is None:
        return []
    asked, base = profile.calibration, profile.baseline
    blocks: Blocks = [
        Words(
            f"{asked.samples:,} sequences of {asked.seq_len:,} tokens of {asked.text} (seed {asked.seed}); the "
            f"unquantized model has perplexity {wording.number(base.perplexity, 4)} on {base.tokens:,} of them."
        )
    ]
    quality = asked.quality
    if quality is None:
        return blocks
    rows = [
        (
            "Distinct tokens",
            f"{quality.distinct_tokens:,} of {quality.tokens:,}; the model knows {quality.vocabulary:,}",
        ),
        ("Repeated runs of 8 tokens", f"{100 * quality.repetition:.1f} %"),
    ]
    if quality.evaluation_perplexity is not None:
        rows.append(("Perplexity of the evaluation text", wording.number(quality.evaluation_perplexity, 4)))
    if quality.divergence is not None:
        chance = f" (chance: {quality.expected_divergence:.2f})" if quality.expected_divergence is not None else ""
        rows.append(("Distance from the evaluation text", f"{quality.divergence:.2f} bits{chance}"))
    warnings = [Words(warning, "poor") for warning in quality.warnings]
    return [*blocks, *warnings, Table(("Quality", "Value"), rows)]


def scores(plan: Plan, profile: SensitivityProfile | None) -> Blocks:
    """A heatmap of the format with the fewest bits that the plan uses, and the most sensitive layers of all formats."""
    if profile is None or not profile.measurements:
        return []
    shown, frame, measure = _format(plan, profile), frames.profile_frame(profile), frames.MEASURES["kl"]
    of_format = frame[frame["format"] == shown]
    label = wording.format_label(shown)
    top = of_format.nlargest(_TOP, "kl")
    first, powers = top.iloc[0], ranked_chart.flattened(of_format, measure, _TOP)
    said = (
        f"most sensitive is {first['layer']} with {wording.with_error(first['kl'], first['kl_stderr'])} nats per token"
    )
    heads = ("Layer", "Role", "Parameters", "KL, nats per token", "Change of perplexity", "How")
    rows = [
        (
            row.layer,
            row.role,
            f"{row.parameters:,}",
            wording.with_error(row.kl, row.kl_stderr),
            wording.percent(row.delta_ppl_pct),
            row.how,
        )
        for row in top.itertuples()
    ]
    return [
        Words(
            f"What rounding one layer alone to {label} does to the model's predictions, all others untouched. "
            f"Measured: {wording.plural(len(profile.measured_layers), 'layer')} in "
            f"{wording.format_labels(profile.formats)}."
        ),
        figure(
            lambda dark: charts.sensitivity_heatmap(profile.catalogue, of_format, measure, dark),
            f"KL by block and module in {label}; {said}.",
            own_scale=True,
        ),
        figure(
            lambda dark: ranked_chart.ranked_layers(
                of_format, measure, _TOP, profile.baseline.noise_floor_kl, dark, powers=powers
            ),
            f"The {len(top)} most sensitive layers in {label}; {said}.",
            f"With one standard error to each side{', on a scale of powers of ten' if powers else ''}.",
        ),
        Table(heads, rows, "± is one standard error.", numbers=(2, 3, 4), dense=True),
    ]


def _format(plan: Plan, profile: SensitivityProfile) -> str:
    """The measured format with the fewest bits that the plan gives some layer, else of all that were measured."""
    used = [name for name in profile.formats if name in plan.assignments.values()]
    return min(used or profile.formats, key=lambda name: (find_format(name).bits, name))
