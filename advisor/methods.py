"""Which quantization method a plan gets for a target, and whether a recovery can follow; what each does is a table."""

from __future__ import annotations

from advisor.errors import PlanError
from advisor.knowledge import find_format, find_method, find_target, methods
from advisor.types import AppliedMethod, Catalogue, MethodChoice, Plan, Recovery, Role
from advisor.units import duration, plural

NEAREST, GPTQ, AWQ, SMOOTHQUANT, RECOVERY = "rtn", "gptq", "awq", "smoothquant", "recovery"
_FEW_BITS = 4


def choose(method: str, plan: Plan, to: str, catalogue: Catalogue | None = None) -> MethodChoice:
    """What was asked for, or for `auto` what is recommended.

    Raises:
        KnowledgeError: there is no such method. PlanError: it does not serve this plan or this target.
    """
    if method == "auto":
        return recommend(plan, to, catalogue)
    refusal = why_not(method, plan, to, catalogue)
    if refusal:
        raise PlanError(refusal)
    return MethodChoice(name=method, reason="asked for")


def recommend(plan: Plan, to: str, catalogue: Catalogue | None = None) -> MethodChoice:
    """The method that should lose least, where its calibration is worth the time; the catalogue tells of experts."""
    candidates = possible(plan, to, catalogue)
    formats = {name: find_format(name) for name in plan.assignments.values()}
    if SMOOTHQUANT in candidates:
        return MethodChoice(
            name=SMOOTHQUANT, reason="activations are rounded to INT8, whose outliers it moves into the weights first"
        )
    few = sorted(name for name, fmt in formats.items() if fmt.kind == "integer" and fmt.bits <= _FEW_BITS)
    if GPTQ in candidates and few:
        return MethodChoice(name=GPTQ, reason=f"{few[0]} loses enough for it to win some back")
    if not methods_of(to):
        target = find_target(to)
        does = "rounds by its engine's own rules" if target.own_codes else "stores the very codes that were measured"
        return MethodChoice(name=NEAREST, reason=f"{target.label} {does}")
    if few:
        return MethodChoice(name=NEAREST, reason=why_not(GPTQ, plan, to, catalogue))
    return MethodChoice(
        name=NEAREST, reason="no layer has fewer than 8 bits, where there is next to nothing to win back"
    )


def possible(plan: Plan, to: str, catalogue: Catalogue | None = None) -> tuple[str, ...]:
    """The methods to choose from, in the table's order; round-to-nearest always is one."""
    options = [name for name, method in methods().items() if method.chosen_by == "method"]
    return tuple(name for name in options if name == NEAREST or not why_not(name, plan, to, catalogue))


def methods_of(to: str) -> tuple[str, ...]:
    """The methods beside round-to-nearest that a target takes the codes of."""
    return tuple(name for name, m in methods().items() if m.chosen_by == "method" and to in m.targets)


def why_not(name: str, plan: Plan, to: str, catalogue: Catalogue | None = None) -> str:
    """One sentence why the method does not serve this plan and target, with what to do; "" when it does.

    Raises KnowledgeError for a name that is in no table.
    """
    method = find_method(name)
    if method.chosen_by != "method":
        return (
            f"{method.label} is no choice of its own: it comes with the {method.chosen_by}; take one of "
            f"{', '.join(possible(plan, to, catalogue))}."
        )
    if name == NEAREST:
        return ""
    if to not in method.targets:
        return f"{method.label} is written by {' and '.join(method.targets)} only, not by {to}: apply with rtn or auto."
    if not set(method.formats) & set(plan.assignments.values()):
        return (
            f"{method.label} serves {', '.join(method.formats)}, and no layer of this plan has one of them: apply with "
            "rtn or auto."
        )
    experts = [layer.name for layer in catalogue.layers if layer.role is Role.EXPERT] if catalogue else []
    if experts:
        return (
            f"{method.label} calibrates linear modules one by one, and the experts of {catalogue.model.name} are fused "
            "in one tensor: apply with rtn or auto."
        )
    return ""


def applied_method(plan: Plan | None) -> AppliedMethod | None:
    """How the codes of the export that carries this plan were chosen; None for exports of earlier versions."""
    stated = plan.provenance.get("applied") if plan else None
    return AppliedMethod.model_validate(stated) if stated else None


def method_note(plan: Plan | None) -> tuple[str, ...]:
    """What is said of an export's method beside its measurements: nothing where codes are what was measured."""
    applied = applied_method(plan)
    if applied is None or applied.method == NEAREST:
        return ()
    on = f"{applied.samples} x {applied.seq_len} tokens of {applied.text}"
    kl = f"KL {applied.kl:.4f}, rounded to nearest {applied.nearest_kl:.4f}, on {applied.tokens:,} tokens held back"
    return (f"codes by {find_method(applied.method).label} on {on}: {kl}",)


def why_not_recovered(plan: Plan, to: str) -> str:
    """One sentence why scales and norms of this plan cannot be trained for this target; "" when they can."""
    formats = [find_format(name) for name in sorted(set(plan.assignments.values()))]
    if to not in find_method(RECOVERY).targets:
        return (
            f"A recovery trains scales, and {find_target(to).label} has scales of its own that are found as it rounds: "
            "apply without it."
        )
    rounded = [fmt.name for fmt in formats if fmt.quantizes_activations]
    if rounded:
        return (
            f"A recovery cannot train through {rounded[0]}, which rounds activations while the model runs: apply "
            "without it, or plan without such formats."
        )
    if not any(fmt.quantized for fmt in formats):
        return "A recovery trains scales of quantized layers, and this plan has none: apply without it."
    return ""


def recovery_of(plan: Plan | None) -> Recovery | None:
    """What a recovery did to the export that carries this plan; None where there was none."""
    stated = plan.provenance.get("recovered") if plan else None
    return Recovery.model_validate(stated) if stated else None


def holds_other_codes(plan: Plan | None) -> bool:
    """Whether a method or a recovery left other values than the round-to-nearest ones that a prediction is of."""
    recovery = recovery_of(plan)
    return bool(method_note(plan)) or (recovery is not None and recovery.kept)


def codes_notes(plan: Plan | None) -> tuple[str, ...]:
    """What is said beside an export's measurements of what it holds other than round-to-nearest."""
    recovery = recovery_of(plan)
    return (*method_note(plan), *((recovery_said(recovery),) if recovery else ()))


def recovery_said(found: Recovery) -> str:
    """Cost and gain in one clause."""
    gain = (
        f"KL {found.kl_before:.4f} before, {found.kl:.4f} after, and perplexity {found.perplexity_before:.2f} before, "
        f"{found.perplexity:.2f} after, on {found.held_back:,} tokens held back"
    )
    cost = f"{plural(found.steps, 'step')} on {found.tokens:,} tokens of {found.text}, {duration(found.seconds)}"
    if not found.kept:
        return f"a recovery won nothing and was left out ({cost}): {gain}"
    return f"scales and norms recovered by distillation ({cost}): {gain}"
