"""Log-likelihood and KL per token from final hidden states, the vocabulary head taken in slices.

Shared by the profiler and the evaluation: on a small model the head's softmax costs more than the blocks, and slices of
some hundred rows keep it out of main memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers.utils import ModelOutput

from advisor.weights import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Above 32 MiB glibc returns every buffer to the system, and faulting it in again costs a fifth of the time.
_SLICE_BYTES = 16 << 20
REFERENCE_CACHE_BYTES = 2 << 30


@contextmanager
def replaced_forward(module: torch.nn.Module, forward: Callable) -> Iterator[None]:
    """Let `module` compute `forward` for a while; a forward that accelerate hooked on is put back as it was."""
    hooked = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if hooked is None:
            del module.forward
        else:
            module.forward = hooked


@dataclass
class _BodyOutput(ModelOutput):
    """Every field that some architecture's head looks for in its body's output."""

    last_hidden_state: torch.Tensor | None = None
    past_key_values: object | None = None
    hidden_states: object | None = None
    attentions: object | None = None
    cross_attentions: object | None = None
    router_logits: object | None = None


class Head:
    """The model's own way from final hidden states to logits: soft caps and logit scales included.

    The model's forward runs as it is, with its body replaced by the hidden states at hand.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.vocabulary = model.config.get_text_config().vocab_size

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`(rows, hidden)` -> fp32 `(rows, vocabulary)`."""
        output = _BodyOutput(last_hidden_state=hidden[None])
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with replaced_forward(body(self.model), lambda *args, **kwargs: output):
            return self.model(input_ids=ids, use_cache=False).logits[0].float()

    def slices(self, rows: int) -> Iterator[slice]:
        step = max(16, _SLICE_BYTES // (4 * self.vocabulary))
        return (slice(start, start + step) for start in range(0, rows, step))


def final_hidden(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """`(sequences, length)` ids -> `(sequences, length, hidden)` after the final norm."""
    return body(model)(input_ids=ids.to(device_of(model)), use_cache=False).last_hidden_state


def body(model: PreTrainedModel) -> torch.nn.Module:
    """The part of a causal language model between the tokens and the vocabulary head."""
    return model.get_decoder()


def rows_and_targets(hidden: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states that predict a token `(tokens, hidden)`, and the tokens they predict `(tokens,)`."""
    return hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten().to(hidden.device)


def log_probs(head: Head, rows: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(head.logits(rows), dim=-1)


def nll_of(log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -log_p.gather(-1, targets[:, None]).squeeze(-1)


def kl_of(reference: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    """KL(reference || p) per row, from log-probabilities; the difference is taken before the sum to keep small KLs."""
    return (reference.exp() * (reference - log_p)).sum(-1)


def mean_and_stderr(values: torch.Tensor) -> tuple[float, float]:
    """Mean of per-token values and its standard error."""
    values = values.double()
    stderr = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else float("nan")
    return values.mean().item(), stderr


def mean_and_clustered_stderr(values: torch.Tensor, clusters: torch.Tensor) -> tuple[float, float]:
    """Mean of per-token values, and its standard error where tokens of one cluster depend on each other.

    The spread of sums of deviations over clusters, as in E. Miller, "Adding Error Bars to Evals" (arXiv 2411.00640,
    section 2.2), with n / (n - 1) for n clusters. For a single cluster tokens are taken as independent, which they are
    not: the error is then too small.

    Args:
        values: `(tokens,)`. clusters: `(tokens,)`, the number of each token's cluster.
    """
    _, index = clusters.unique(return_inverse=True)
    count = int(index.max()) + 1
    if count < 2:
        return mean_and_stderr(values)
    values = values.double()
    mean = values.mean()
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, index, values - mean)
    return mean.item(), math.sqrt(count / (count - 1) * sums.square().sum().item()) / len(values)
