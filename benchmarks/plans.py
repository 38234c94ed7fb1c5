"""Plans at equal size on held-out text: every simple plan that fits, the plan by scores alone, the refined plan.

    python -m benchmarks.plans [--text FILE] [--folder build/sensitivity] [--rounds 5]
        [--bits 3.5,3.75,4.0,4.25,4.625,5.25,6.0] [--tokens 12288]

On the demo model moved off its 4-bit lattice (`off_lattice`), with the Fisher profile that `benchmarks.sensitivity`
leaves in its folder, or one made now. Calibration takes one part of the text, these measurements another. All layers
but the embedding are decided. Scores are ranked with KL counted twice, as the product does, and with KL counted
otherwise; `--rounds 0` refines nothing. Results are appended to `plans.txt` in the folder.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from advisor import models, pipeline
from advisor.apply import simulated
from advisor.evaluate import Scores, score
from advisor.matmul import fast_fp32_matmul
from advisor.planner.candidates import prepare
from advisor.planner.planning import assemble, make_plan
from advisor.planner.reasons import explain
from advisor.planner.refine import BY_SCORES, REFINED, choice_of, damped_otherwise, limits_of
from advisor.planner.regret import rates_of
from advisor.planner.simple_plans import ROLE_RULE, STRATEGY, simple_plans
from advisor.texts import token_windows
from advisor.types import Budget, Plan, PlanRequest, ProfileRequest, SensitivityProfile
from advisor.weights import device_of
from benchmarks.off_lattice import write_off_lattice
from storage.engine import open_repository

ALL_FORMATS = ("int8", "int4_g64", "int3_g64", "int2_g64")
TWO_FORMATS = ("int8", "int4_g64")
BITS = (3.5, 3.75, 4.0, 4.25, 4.625, 5.25, 6.0)
SEQUENCE = 256


class Found(NamedTuple):
    """What a plan did to the held-out text, nats per token."""

    perplexity: float
    delta_nll: float
    kl: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="python-docs")
    parser.add_argument("--folder", type=Path, default=Path("build/sensitivity"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bits", default=",".join(map(str, BITS)))
    parser.add_argument("--tokens", type=int, default=12288)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with (args.folder / "plans.txt").open("a") as file:

        def report(line: str) -> None:
            print(line, flush=True)
            print(line, file=file, flush=True)

        _run(args, report)


def _run(args: argparse.Namespace, report: Callable[[str], None]) -> None:
    profile = _profile(args)
    probe = pipeline.plan_probe(profile) if args.rounds else None
    evaluate = evaluation(str(args.folder / "model"), args.text, args.tokens, report)
    uniform = make_plan(profile, _request(4.25, ("int4_g64",)))
    int4 = evaluate(uniform.assignments).delta_nll
    report(f"uniform INT4 loses {int4:.4f} nats; its share that a plan wins back stands under 'recovered'\n")
    report(f"{'bits':>6}  {'plan':34}{'perplexity':>11}{'nats':>9}{'KL':>9}{'recovered':>11}{'predicted':>17}{'s':>7}")
    for bits, formats in _cases(profile, args.bits):
        request = _request(bits, formats)
        rows = {name: plan for name, plan in simple_plans(profile, request, formats).items() if _fits(plan, bits)}
        rows |= _by_scores(profile, request)
        seconds: dict[str, float] = {}
        if args.rounds:
            started = time.perf_counter()
            refined = pipeline.refine_plan(profile, request, args.rounds, probe=probe)
            name = f"{REFINED} (winner: {refined.refinement.winner})"
            rows[name], seconds[name] = refined, time.perf_counter() - started
        for name, plan in rows.items():
            found = evaluate(plan.assignments)
            predicted = f"{plan.predicted.delta_nll:.4f}/{plan.predicted.kl:.4f}"
            measured = f"{found.perplexity:11.2f}{found.delta_nll:9.4f}{found.kl:9.4f}"
            report(
                f"{plan.memory.decided_bits:6.3f}  {name:34}{measured}{1 - found.delta_nll / int4:11.0%}{predicted:>17}"
                + (f"{seconds[name]:7.0f}" if name in seconds else "")
            )
        if not args.rounds:
            continue
        steps = ", ".join(f"{r.changed} changed of {r.tried} tries" for r in refined.refinement.rounds)
        last = refined.refinement.rounds[-1]
        started_from = (c for c in refined.refinement.contenders if c.name != REFINED)
        before = min(started_from, key=lambda contender: contender.expected_loss)
        report(
            f"        {'/'.join(formats)} rounds: {steps}; KL where gradients are "
            f"{refined.refinement.calibration_kl_before:.4f} -> {last.calibration_kl:.4f}, "
            f"on the text that decides {before.kl:.4f} -> {last.kl:.4f}\n"
        )


def _by_scores(profile: SensitivityProfile, request: PlanRequest) -> dict[str, Plan]:
    """The product's plan by scores, and those whose KL counts more or less often."""
    plan, case = make_plan(profile, request), prepare(profile, request)
    first = choice_of(case, plan.assignments)
    others = damped_otherwise(case, first, limits_of(case, first))
    return {BY_SCORES: plan} | {
        name: assemble(case, choice, explain(case, choice, rates_of(case, choice)), None, name)
        for name, choice in others.items()
    }


def _cases(profile: SensitivityProfile, listed: str) -> list[tuple[float, tuple[str, ...]]]:
    """Average bits and formats to choose from: all at the listed sizes, two at the sizes of the guide's own rules."""
    rules = simple_plans(profile, _request(16.0, TWO_FORMATS), TWO_FORMATS)
    own_sizes = [rules[name].memory.decided_bits for name in (ROLE_RULE, STRATEGY)]
    return [*((bits, TWO_FORMATS) for bits in own_sizes), *((float(bits), ALL_FORMATS) for bits in listed.split(","))]


def _profile(args: argparse.Namespace) -> SensitivityProfile:
    """The Fisher scores of all layers but the embedding, which the plans compared leave alone."""
    model = args.folder / "model"
    if not model.is_dir():
        write_off_lattice(model)
    store = open_repository(f"sqlite:///{(args.folder / 'fisher.sqlite').resolve()}")
    request = ProfileRequest(
        model=str(model.resolve()), text=args.text, samples=16, seq_len=SEQUENCE, formats=ALL_FORMATS
    )
    profile = pipeline.profile_model(request, store)
    kept = tuple(m for m in profile.measurements if m.layer != "model.embed_tokens")
    return profile.model_copy(update={"measurements": kept})


def _request(bits: float, formats: tuple[str, ...]) -> PlanRequest:
    """MLX stores all of these formats, and decides every layer by itself."""
    budget = Budget(weight_bits=bits)
    return PlanRequest(hardware="m4-max-128gb", engine="mlx", budget=budget, formats=formats)


def _fits(plan: Plan, bits: float) -> bool:
    return plan.memory.decided_bits <= bits + 1e-9


def evaluation(
    model: str, text: str, tokens: int, report: Callable[[str], None]
) -> Callable[[Mapping[str, str]], Found]:
    """What measures assignments of a model on so many held-out tokens of a text, each once."""
    loaded = models.load(model, lambda progress: None)
    windows = token_windows(text, loaded.tokenizer, "evaluation", tokens // SEQUENCE, SEQUENCE)
    device = device_of(loaded.model)

    def scored(assignments: Mapping[str, str], reference: Scores | None = None) -> Scores:
        with simulated(loaded.model, loaded.catalogue, assignments), fast_fp32_matmul(device):
            return score(loaded.model, windows, reference, keep=reference is None)

    base = scored({})
    known: dict[tuple[tuple[str, str], ...], Found] = {}

    def evaluate(assignments: Mapping[str, str]) -> Found:
        key = tuple(assignments.items())
        if key not in known:
            found = scored(assignments, base)
            nll = found.nll.mean().item()
            known[key] = Found(math.exp(nll), nll - base.nll.mean().item(), found.kl.mean().item())
        return known[key]

    tokens = windows.shape[0] * (SEQUENCE - 1)
    report(
        f"{tokens:,} held-out tokens (KL on the first {len(base.log_probs) * 2048:,}), perplexity "
        f"{math.exp(base.nll.mean().item()):.2f} unquantized"
    )
    return evaluate


if __name__ == "__main__":
    main()
