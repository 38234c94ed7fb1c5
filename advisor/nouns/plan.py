"""The nouns of a plan: assignments, the reason of each, and how it was refined."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, Field

from advisor.nouns.base import FiniteNoun, LeanNoun, Noun
from advisor.nouns.expectation import LatencyEstimate, MemoryEstimate, Prediction
from advisor.nouns.model import ModelRef
from advisor.nouns.profile import FormatName
from advisor.nouns.request import PlanRequest

PLAN_SCHEMA_VERSION = 1
# In the provenance: which other plan the prediction is of.
PREDICTED_FOR = "predicted_for"


class Verdict(LeanNoun):
    """What one rule says of one layer in one format; `advice` speaks without forbidding.

    `price` is what the rule adds to the loss that the solver sees, in nats per token; predictions leave it out.
    """

    rule: str
    allowed: bool
    reason: str
    advice: bool = False
    source: str = ""
    price: float = Field(default=0.0, ge=0.0)


class Alternative(LeanNoun):
    """A format that a layer could have had: loss (nats, as plans are ranked) and bytes beyond the chosen one's.

    `delta_loss` is None for a format that was not measured on this layer; `delta_loss_stderr`, its standard error, is
    given for a runner-up.
    """

    format: str
    # `delta_kl` in plans of earlier versions.
    delta_loss: float | None = Field(validation_alias=AliasChoices("delta_loss", "delta_kl"))
    delta_bytes: int
    delta_loss_stderr: float | None = None
    verdicts: tuple[Verdict, ...] = ()


class Reason(LeanNoun):
    """Why a layer has its format: one sentence, the rules that spoke, and what else was possible.

    Attributes:
        verdicts: what was said of the layer in its format.
        alternatives: every other format that was measured or that the engine stores, for this layer alone; their
            verdicts are the bans, else what was not said of the chosen format already.
        runner_up: what the solver would take instead, for the whole fused group; None where nothing else was allowed.
        within_noise: the scores cannot tell the runner-up from the chosen format (rule: `advisor.planner.reasons`).
    """

    text: str
    verdicts: tuple[Verdict, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    runner_up: Alternative | None = None
    within_noise: bool = False


class Contender(FiniteNoun):
    """A plan of no more than the budget, measured on the text held back from the gradients; nats per token.

    `expected_loss` is what contenders are ranked by: KL, and of the change of likelihood beyond it what stands out of
    its error.
    """

    name: str
    decided_bits: float
    weights_bytes: int
    kl: float
    kl_stderr: float
    delta_nll: float
    delta_nll_stderr: float
    expected_loss: float


class RefinementRound(FiniteNoun):
    """One round: gradients around a plan, steps of several dampings measured, the best one taken if it is better.

    `changed` counts the groups that got another format, 0 where no step was taken; losses are after the round, on the
    gradients' own text and on the text held back from them.
    """

    tried: int
    changed: int
    damping: float | None = None
    calibration_kl: float
    kl: float
    delta_nll: float
    expected_loss: float


class Refinement(Noun):
    """How a plan was improved at its operating point, and what it was held against.

    Attributes:
        winner: the contender that the plan is: `refined`, one by scores (`scores alone`, or with KL
            counted otherwise), or a simple plan that was better than these.
        tokens, held_back_tokens: what gradients were taken on, and what decided.
    """

    winner: str
    contenders: tuple[Contender, ...]
    rounds: tuple[RefinementRound, ...]
    calibration_kl_before: float
    tokens: int
    held_back_tokens: int
    text: str
    seconds: float = 0.0


class Plan(Noun):
    """A mixed-precision plan: data that a person can read, edit, download, upload and hand to an engine.

    Attributes:
        optimality_gap: how far what the request asks for may be from the best possible by the scores, as a share of it;
            0 is proven optimal, None where the plan was measured instead.
        exchange_rate: what the last bytes within the limit win, nats per token and byte, or second of a step where the
            most speed was asked for; 0 where they do not decide.
    """

    schema_version: Literal[1] = PLAN_SCHEMA_VERSION
    model: ModelRef
    request: PlanRequest
    assignments: dict[str, FormatName] = Field(min_length=1)
    predicted: Prediction
    memory: MemoryEstimate
    latency: LatencyEstimate | None = None
    reasons: dict[str, Reason] = {}
    optimality_gap: float | None = 0.0
    exchange_rate: float = Field(default=0.0, ge=0.0)
    refinement: Refinement | None = None
    provenance: dict[str, Any] = {}

    @property
    def own_prediction(self) -> Prediction | None:
        """What is predicted of these assignments; None where the document states it of other ones."""
        return None if PREDICTED_FOR in self.provenance else self.predicted
