"""Ready-made quantized checkpoints as transformers loads them: what people have already, to be held beside a plan."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from advisor import models
from advisor.errors import ModelError
from advisor.evaluate import tensor_bytes
from advisor.types import ModelRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What transformers needs installed for a way of quantizing, where that is not installed with this product.
_PACKAGES = {
    "awq": "gptqmodel==7.6.0",  # the newest that runs beside this product's transformers and torch
    "gptq": "gptqmodel==7.6.0",
    "bitsandbytes": "bitsandbytes",
    "hqq": "hqq",
    "aqlm": "aqlm",
    "auto-round": "auto_round",
    "torchao": "torchao",
}


class ReadyMade(NamedTuple):
    """A quantized checkpoint in memory, the bytes of all tensors in its files, and whether it computes with those."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    bytes: int
    packed: bool


def method_of(ref: ModelRef) -> str | None:
    """How a model says that its weights were quantized (`gguf`, `awq`, `bitsandbytes`); None if they were not."""
    if ref.kind in ("gguf", "demo"):
        return "gguf" if ref.kind == "gguf" else None
    try:
        config = json.loads((_files(ref) / "config.json").read_text(encoding="utf-8"))
        return config["quantization_config"]["quant_method"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load(ref: ModelRef, method: str) -> ReadyMade:
    """The checkpoint by transformers' own loader, on the device that computes; only safetensors, never code from it.

    Raises:
        ModelError: a package is missing, which is named, or the checkpoint cannot be read here.
    """
    models.quiet_libraries()
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig
    from transformers.quantizers import AutoHfQuantizer

    wanted = _PACKAGES.get(method, "")
    package = wanted.partition("==")[0]
    if package and find_spec(package) is None:
        raise ModelError(
            f"{ref.name} is quantized by {method}, which transformers reads with the package {package}: `pip install "
            f"{wanted}`, in another environment if it would replace packages of this one, then evaluate again."
        )
    device, where, extra = models.pick_device(), ref.source, {}
    if method == "gguf":
        where, extra = str(Path(ref.source).parent), {"gguf_file": Path(ref.source).name}
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False, **extra)
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **extra)
        if method != "gguf" and not AutoHfQuantizer.supports_quant_method(config.quantization_config):
            raise ValueError(f"transformers knows no way of quantizing called {method}")
        if method == "compressed-tensors":
            extra = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
        dtype = config.dtype or torch.bfloat16
        if method != "torchao":  # its tensors compute in the dtype that they were written with
            dtype = models.pick_dtype("auto", device, dtype)
        # compressed-tensors draws progress bars whatever it is told, and GPTQModel prints among a command's JSON.
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(
                where, dtype=dtype, device_map={"": device}, use_safetensors=True, trust_remote_code=False, **extra
            )
    except Exception as error:  # transformers and the packages that it calls raise errors of all kinds here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(
            f"{ref.source} says that it is quantized by {method} and could not be loaded: check its files, or give "
            f"the unquantized model. ({reason})"
        ) from error
    packed = method != "gguf" and getattr(model, "hf_quantizer", None) is not None
    if not packed:
        for parameter in model.parameters():  # transformers leaves some as they are in the files
            parameter.data = parameter.data.to(dtype)
    return ReadyMade(model.eval().requires_grad_(False), tokenizer, _tensor_bytes(ref), packed)


def _tensor_bytes(ref: ModelRef) -> int:
    if ref.kind == "gguf":
        from gguf import GGUFReader

        return sum(int(tensor.n_bytes) for tensor in GGUFReader(ref.source).tensors)
    return tensor_bytes(_files(ref))


def _files(ref: ModelRef) -> Path:
    """The folder of the checkpoint's files, for a hub model where the hub's cache has them; raises OSError."""
    from transformers.utils import cached_file

    models.quiet_libraries()  # the hub's client tells every attempt
    return Path(ref.source) if ref.kind == "folder" else Path(cached_file(ref.source, "config.json")).parent
