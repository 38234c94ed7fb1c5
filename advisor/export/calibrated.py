"""GPTQ, AWQ and SmoothQuant, as llmcompressor does them: codes that calibration text has chosen, for a plan's layers.

Everything that knows llmcompressor is here. Scales are those of `formats.quantize`, rounded to bf16 before the codes
are: whatever the method, files take the same bytes and read back as the same formats.
"""

from __future__ import annotations

import copy
import io
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from advisor.activations import rounded_inputs
from advisor.apply import quantized_layers, simulated
from advisor.errors import AdvisorError, PlanError
from advisor.evaluate import score
from advisor.export.compressed_tensors_files import scheme
from advisor.formats.quantize import Codes, quantize
from advisor.models import LoadedModel, pick_dtype
from advisor.types import Format, Layer

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme
    from llmcompressor.modifiers import Modifier
    from transformers import PreTrainedModel

_BATCH_TOKENS = 2048
# How much of the outliers moves from activations into weights: llmcompressor's examples for Llama-like models.
_SMOOTHING = 0.8
# Of the largest logit. Rescalings that cancel out leave the rounding of the dtype, others leave another model.
_SAME_FUNCTION = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


class Calibrated(NamedTuple):
    """What a method made of a model's weights, and what it won.

    Attributes:
        codes: layer name -> its codes, for every quantized layer.
        weights: parameter name -> what is not quantized but was rescaled, in the dtype that is stored.
        kl, nearest_kl: nats per token to the unquantized model, on text that the method did not see: its own, and that
            of the same formats rounded to nearest.
        tokens: how many tokens of such text.
    """

    codes: dict[str, Codes]
    weights: dict[str, torch.Tensor]
    kl: float
    nearest_kl: float
    tokens: int


def calibrate(
    loaded: LoadedModel,
    assignments: Mapping[str, str],
    method: str,
    windows: torch.Tensor,
    held_back: torch.Tensor,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Calibrated:
    """Quantize the integer layers of a plan with what calibration text says of them; the model stays as it is.

    Args:
        assignments: layer name -> format; every quantized layer is a linear module of its own.
        method: `gptq`, `awq` or `smoothquant` (which leaves the weights to GPTQ once they are smooth).
        windows: `(sequences, length)` token ids to calibrate on.
        held_back: the same of text to compare with rounding to nearest on.
        advance: called after every block with (done, in all); what it raises stops the work.

    Raises:
        PlanError: the method would change what this architecture computes.
    """
    work = copy.deepcopy(loaded.model).to(pick_dtype("auto", loaded.device, loaded.model.dtype))
    packed = dict(quantized_layers(loaded.catalogue, assignments))
    base = score(work, held_back, keep=True)
    with simulated(work, loaded.catalogue, assignments):
        nearest_kl = score(work, held_back, base).kl.mean().item()
    _transform(loaded, work, packed, method, windows, advance)
    codes = {layer.name: _codes(work, layer, fmt, method) for layer, fmt in packed.items()}
    weights = _rescaled(loaded.model, work, packed)
    put(work, codes, weights)
    with rounded_inputs(work, packed.items()):
        kl = score(work, held_back, base).kl.mean().item()
    return Calibrated(codes, weights, kl, nearest_kl, tokens=sum(len(part) for part in base.log_probs))


def put(model: PreTrainedModel, codes: Mapping[str, Codes], weights: Mapping[str, torch.Tensor]) -> None:
    """Give a model the values that a method found, in the model's dtype; inputs are rounded by `rounded_inputs`."""
    values = {f"{name}.weight": found.dequantize() for name, found in codes.items()}
    for name, value in (values | dict(weights)).items():
        parameter = model.get_parameter(name)
        parameter.data = value.to(parameter.data)


def _transform(
    loaded: LoadedModel,
    work: PreTrainedModel,
    packed: Mapping[Layer, Format],
    method: str,
    windows: torch.Tensor,
    advance: Callable[[int, int], None],
) -> None:
    """Run the method's passes over the text, each of which goes through the model block by block."""
    blocks = 1 + max(layer.block for layer in loaded.catalogue.layers if layer.block is not None)
    with _quietly() as aloud, _told_in_a_sentence(loaded, method):
        passes = _passes(method, work, packed)
        for index, (modifiers, rescales) in enumerate(passes):

            def told(done: int, index: int = index) -> None:
                with aloud():
                    advance(index * blocks + min(done, blocks), len(passes) * blocks)

            before = _logits(work, windows) if rescales else None
            _run(work, loaded.tokenizer, modifiers, windows, told)
            if rescales:
                _check_same_function(before, _logits(work, windows), loaded, method)
                _round_to_stored(work, loaded.model, packed)


@contextmanager
def _told_in_a_sentence(loaded: LoadedModel, method: str) -> Iterator[None]:
    """Whatever llmcompressor raises on an architecture that it cannot follow becomes a PlanError."""
    try:
        yield
    except AdvisorError:
        raise
    except Exception as error:  # tracing and matching raise all kinds
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise PlanError(
            f"{method} cannot be carried out on {loaded.catalogue.model.name} ({line}): take rtn."
        ) from error


# --------------------------------------------------------------------------------------- llmcompressor


def _passes(method: str, work: PreTrainedModel, packed: Mapping[Layer, Format]) -> list[tuple[list[Modifier], bool]]:
    """Modifiers, and whether they rescale weights without changing what the model computes; one entry a pass."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    groups = _config_groups(packed)
    if method == "awq":
        return [([AWQModifier(), QuantizationModifier(config_groups=groups)], True)]
    gptq = ([GPTQModifier(config_groups=groups)], False)
    if method == "gptq":
        return [gptq]
    # Left as it is: all that is not multiplied with rounded activations, which smoothing could only make worse.
    rounded = {layer.name for layer, fmt in packed.items() if fmt.quantizes_activations}
    options = {"smoothing_strength": _SMOOTHING, "ignore": [n for n, _ in work.named_modules() if n not in rounded]}
    smoothing = [SmoothQuantModifier(**options)]
    if _is_gated(work):
        smoothing.append(SmoothQuantModifier(mappings=[[["re:.*mlp\\.down_proj$"], "re:.*mlp\\.up_proj$"]], **options))
    return [(smoothing, True), gptq]


def _is_gated(work: PreTrainedModel) -> bool:
    """Whether every MLP is down(act(gate) * up): a scale of `up` goes through to `down`, past the activation."""
    names = {name for name, _ in work.named_modules()}
    downs = [name.removesuffix("down_proj") for name in names if name.endswith("mlp.down_proj")]
    return bool(downs) and all({f"{mlp}gate_proj", f"{mlp}up_proj"} <= names for mlp in downs)


def _config_groups(packed: Mapping[Layer, Format]) -> dict[str, QuantizationScheme]:
    """The integer layers by their format, each module by its name."""
    names = defaultdict(list)
    for layer, fmt in packed.items():
        if fmt.kind == "integer":
            names[fmt].append(layer.name)
    groups = {}
    for fmt, targets in names.items():
        one = scheme(fmt, targets)
        weights = one.weights.model_copy(update={"scale_dtype": torch.bfloat16})
        groups[fmt.name] = one.model_copy(update={"weights": weights})
    return groups


def _run(
    work: PreTrainedModel, tokenizer: Any, modifiers: list[Modifier], windows: torch.Tensor, told: Callable[[int], None]
) -> None:
    from llmcompressor import oneshot
    from llmcompressor.core import create_session
    from llmcompressor.modifiers import Modifier

    class Telling(Modifier):
        """Says after every block how many are done."""

        requires_calibration_data: bool = True
        done: int = 0

        def on_initialize(self, state: Any, **kwargs: Any) -> bool:
            return True

        def on_sequential_epoch_end(self, state: Any, event: Any, **kwargs: Any) -> None:
            self.done += 1
            told(self.done)

    data = torch.utils.data.DataLoader(
        [{"input_ids": ids} for ids in windows], batch_size=max(1, _BATCH_TOKENS // windows.shape[1])
    )
    with create_session(), _nothing_pinned():
        oneshot(model=work, tokenizer=tokenizer, dataset=data, recipe=[*modifiers, Telling()], pipeline="sequential")


@contextmanager
def _nothing_pinned() -> Iterator[None]:
    """AWQ of llmcompressor 0.14.0.1 pins memory to send it to an accelerator, and fails where there is none."""
    from compressed_tensors.utils import patch_attr
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available():
        yield
        return
    with patch_attr(IntermediatesCache, "pin_memory", lambda cache, batch_index: None):
        yield


@contextmanager
def _quietly() -> Iterator[Callable[[], Any]]:
    """Drops what libraries print and log meanwhile; gives a context in which our own words come through."""
    output, errors, level = sys.stdout, sys.stderr, logging.root.manager.disable

    @contextmanager
    def aloud() -> Iterator[None]:
        with redirect_stdout(output), redirect_stderr(errors):
            yield

    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            import llmcompressor  # noqa: F401 - as it is imported, it takes standard output to log to
            from loguru import logger

            logger.disable("llmcompressor")
            logger.disable("compressed_tensors")
            yield aloud
    finally:
        logging.disable(level)


# --------------------------------------------------------------------------------------- what came out


@torch.no_grad()
def _logits(work: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
    """Of the first sequence, without any rounding."""
    from compressed_tensors.quantization import disable_quantization

    work.apply(disable_quantization)
    return work(input_ids=windows[:1].to(work.device)).logits.float()


def _check_same_function(before: torch.Tensor, after: torch.Tensor, loaded: LoadedModel, method: str) -> None:
    change = ((after - before).abs().max() / before.abs().max()).item()
    dtype = pick_dtype("auto", loaded.device, loaded.model.dtype)
    if not change <= _SAME_FUNCTION[dtype]:
        raise PlanError(
            f"{method} would change what {loaded.catalogue.model.name} computes even before anything is rounded (its "
            f"logits by {change:.1%}), since it does not know {loaded.catalogue.architecture}: take gptq or rtn."
        )


def _round_to_stored(work: PreTrainedModel, model: PreTrainedModel, packed: Mapping[Layer, Format]) -> None:
    """What is not quantized is stored in the model's own dtype: what follows is calibrated on these values."""
    quantized = {layer.parameter for layer in packed}
    for name, parameter in work.named_parameters():
        if name not in quantized and not name.endswith(("_scale", "_zero_point")):
            parameter.data = parameter.data.to(model.get_parameter(name).dtype).to(parameter.dtype)


def _codes(work: PreTrainedModel, layer: Layer, fmt: Format, method: str) -> Codes:
    """A layer's codes: those that GPTQ found, or its weight, rescaled or not, rounded to nearest."""
    module = work.get_submodule(layer.name)
    if method == "awq" or fmt.kind != "integer":
        return quantize(module.weight.data, fmt)
    rows, features = module.weight.shape
    groups = features // (fmt.group_size or features)
    scale = module.weight_scale.data.view(rows, groups, 1)
    codes = (module.weight.data.view(rows, groups, -1) / scale).round()
    return Codes(codes.to(torch.int8), scale.to(torch.bfloat16), None)


def _rescaled(model: PreTrainedModel, work: PreTrainedModel, packed: Mapping[Layer, Format]) -> dict[str, torch.Tensor]:
    """What differs from the model and is not quantized, in the model's dtype."""
    quantized = {layer.parameter for layer in packed}
    found = {}
    for name, parameter in model.named_parameters():
        values = work.get_parameter(name).data.to(parameter.dtype)
        if name not in quantized and not torch.equal(values, parameter.data):
            found[name] = values
    return found
