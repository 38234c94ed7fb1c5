"""Whether few labels tell how errors of layers meet: KL of whole plans, predicted together, summed, and measured.

    python -m benchmarks.few_labels [--labels 4x1,4x2,4x4,4x8,16x8] [--bits 4.75,5.5,6.0] [--tokens 8192]

On the demo model, with a Fisher profile for each number of sequences and of labels drawn per token. Each plan is made
by one profile and predicted by all of them, so that both ways of predicting are also seen where they chose nothing.
"""

from __future__ import annotations

import argparse
from tempfile import TemporaryDirectory

from advisor import estimates, pipeline
from advisor.types import Budget, PlanRequest, ProfileRequest, SensitivityProfile
from benchmarks.plans import SEQUENCE, evaluation
from storage.engine import open_repository

MODEL, TEXT = "smollm2", "python-docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", default="4x1,4x2,4x4,4x8,16x8")
    parser.add_argument("--bits", default="4.75,5.5,6.0")
    parser.add_argument("--tokens", type=int, default=8192)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        store = open_repository(f"sqlite:///{folder}/scores.sqlite")
        profiles = {labels: _profile(*map(int, labels.split("x")), store) for labels in args.labels.split(",")}
    evaluate = evaluation(MODEL, TEXT, args.tokens, print)
    print(f"{'made by':>8}{'bits':>7}{'measured':>10}   predicted together / summed, by " + ", ".join(profiles))
    for labels, profile in profiles.items():
        for bits in map(float, args.bits.split(",")):
            plan = pipeline.make_plan(profile, _request(bits))
            measured = evaluate(plan.assignments).kl
            told = "   ".join("{:.4f} / {:.4f}".format(*_kls(one, plan.assignments)) for one in profiles.values())
            print(f"{labels:>8}{plan.memory.decided_bits:7.3f}{measured:10.4f}   {told}", flush=True)


def _profile(samples: int, draws: int, store: object) -> SensitivityProfile:
    request = ProfileRequest(model=MODEL, text=TEXT, samples=samples, seq_len=SEQUENCE, draws=draws)
    return pipeline.profile_model(request, store)


def _request(bits: float) -> PlanRequest:
    return PlanRequest(hardware="rtx-4090", engine="transformers", budget=Budget(weight_bits=bits))


def _kls(profile: SensitivityProfile, assignments: dict[str, str]) -> tuple[float, float]:
    """Of all layers together, and the sum of each alone; nats per token."""
    scores = [score for score in profile.measurements if assignments.get(score.layer) == score.format]
    return estimates.set_kl(scores, profile.calibration.draws)[0], sum(score.kl for score in scores)


if __name__ == "__main__":
    main()
