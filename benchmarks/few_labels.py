"""Plans from few labels: chosen and predicted by sums of layers' losses, or by what all layers together should lose.

    python -m benchmarks.few_labels [--labels 4x2,4x4,4x8] [--bits 4.75,5.5] [--tokens 8192]

On the demo model, with a Fisher profile for each number of sequences and of labels drawn per token, 256 tokens a
sequence; both plans of a size are measured on the same held-out text.
"""

from __future__ import annotations

import argparse
from tempfile import TemporaryDirectory
from unittest.mock import patch

from advisor import estimates, pipeline
from advisor.types import Budget, Plan, PlanRequest, ProfileRequest, SensitivityProfile
from benchmarks.plans import SEQUENCE, evaluation
from storage.engine import open_repository
from storage.repository import Repository

MODEL, TEXT = "smollm2", "python-docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", default="4x2,4x4,4x8")
    parser.add_argument("--bits", default="4.75,5.5")
    parser.add_argument("--tokens", type=int, default=8192)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        store = open_repository(f"sqlite:///{folder}/scores.sqlite")
        profiles = {labels: _profile(*map(int, labels.split("x")), store) for labels in args.labels.split(",")}
    evaluate = evaluation(MODEL, TEXT, args.tokens, print)
    print(f"{'labels':>7}{'bits':>7}  {'plan by':10}{'nats':>8}{'predicted':>11}{'KL':>9}{'predicted':>11}")
    for labels, profile in profiles.items():
        for bits in map(float, args.bits.split(",")):
            for rule, summed in (("sums", True), ("together", False)):
                plan = _plan(profile, bits, summed)
                found, told = evaluate(plan.assignments), plan.predicted
                print(
                    f"{labels:>7}{plan.memory.decided_bits:7.3f}  {rule:10}{found.delta_nll:8.4f}{told.delta_nll:11.4f}"
                    f"{found.kl:9.4f}{told.kl:11.4f}",
                    flush=True,
                )


def _profile(samples: int, draws: int, store: Repository) -> SensitivityProfile:
    request = ProfileRequest(model=MODEL, text=TEXT, samples=samples, seq_len=SEQUENCE, draws=draws)
    return pipeline.profile_model(request, store)


def _plan(profile: SensitivityProfile, bits: float, summed: bool) -> Plan:
    request = PlanRequest(hardware="rtx-4090", engine="transformers", budget=Budget(weight_bits=bits))
    with patch.object(estimates, "_FEWEST_LABELS", 2**60 if summed else 0):
        return pipeline.make_plan(profile.model_copy(), request)  # what is worked out from a profile is kept with it


if __name__ == "__main__":
    main()
