"""Turns what a person names (demo model, hub id, folder, GGUF file) into a model in memory; never from pickles."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from advisor.demo import DEMO_NAME, DEMO_SOURCE, demo_gguf
from advisor.errors import ModelError
from advisor.folders import save_model
from advisor.paths import absolute, converted_dir
from advisor.quiet import without_bars
from advisor.types import Catalogue, ModelRef, Progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_GGUF_MAGIC = b"GGUF"
_WEIGHTS_SHARE = 0.7  # of an accelerator's free memory; the rest is for activations and the vocabulary's logits
_UNKNOWN_FREE_BYTES = 4 << 30


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run: weights on a device in the compute dtype, tokenizer, catalogue of the original."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    catalogue: Catalogue

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        from advisor.weights import device_of

        return device_of(self.model)


def resolve(source: str) -> ModelRef:
    """What `source` names, found without loading anything: the fingerprint stays empty until the model is catalogued.

    Raises:
        ModelError: nothing readable is there, or the folder holds only pickled weights.
    """
    source = source.strip()
    if source == DEMO_SOURCE:
        return ModelRef(source=source, kind="demo", name=DEMO_NAME)
    path = absolute(source) if source else None
    if path is not None and path.is_dir():
        return _folder(path)
    if path is not None and path.is_file():
        return _gguf(path)
    if source.endswith(".gguf") or source.startswith(("/", ".", "~")):
        raise ModelError(f"There is no file or folder {source!r}: check the path.")
    if _HUB_ID.fullmatch(source):
        return ModelRef(source=source, kind="hub", name=source.rsplit("/", 1)[-1])
    raise ModelError(
        f"{source!r} names no model: give `{DEMO_SOURCE}`, a hub id such as `org/name`, a folder of "
        "safetensors or a .gguf file."
    )


def load(
    source: str,
    report: Callable[[Progress], None],
    dtype: str = "auto",
    device: str = "auto",
    may_offload: bool = False,
) -> LoadedModel:
    """Load a model for measuring.

    Args:
        source: `smollm2`, a hub id, a folder of safetensors, or a `.gguf` file.
        dtype: `bf16`, `fp16`, `fp32`, `own` (every weight as it is stored), or `auto`: fp32 on a CPU, where bf16
            rounding would drown the score of an INT8 layer, and the model's own dtype elsewhere.
        device: `auto` takes CUDA, then Apple's MPS, then the CPU.
        may_offload: keep a model that is too large for the device in main memory, each module visiting as it is used;
            its weights are then read and swapped through `advisor.weights`.

    Raises:
        ModelError: the model cannot be found, fetched, read, or catalogued.
    """
    from advisor.catalogue import catalogue_model

    ref, target = resolve(source), pick_device(device)
    report(Progress(stage="load", message=f"Loading {ref.name}"))
    folder = _safetensors_source(ref, report)
    model, tokenizer = _from_pretrained(ref, folder)
    catalogue = catalogue_model(model, ref)
    if dtype != "own":
        model = model.to(dtype=pick_dtype(dtype, target, model.dtype))
    model = model.eval().requires_grad_(False)
    return LoadedModel(_place(model, target) if may_offload else model.to(target), tokenizer, catalogue)


def load_empty(source: str, report: Callable[[Progress], None]) -> tuple[PreTrainedModel, Catalogue]:
    """The modules and shapes of a model, on the meta device, by its configuration alone: no weight is read.

    The fingerprint in the catalogue is not that of the weights.

    Raises:
        ModelError: the configuration cannot be found, read or catalogued, or does not state the dtype of the weights.
    """
    from advisor.catalogue import catalogue_model

    ref = resolve(source)
    model = without_weights(ref, _safetensors_source(ref, report))
    return model, catalogue_model(model, ref)


def without_weights(ref: ModelRef, folder: str) -> PreTrainedModel:
    """The model of a folder on the meta device, in the dtype that its configuration states. Raises ModelError."""
    quiet_libraries()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.dtype is None:
            raise ValueError("config.json states no dtype")
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=config.dtype, trust_remote_code=False)
    except Exception as error:  # of the same libraries, and as many kinds, as in _from_pretrained
        raise _unreadable(ref, error) from error


def load_plain(folder: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a safetensors folder, in `dtype`, not catalogued. Raises ModelError."""
    model, _ = _from_pretrained(resolve(folder), folder)
    return model.to(device=pick_device(), dtype=dtype).eval().requires_grad_(False)


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises ModelError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder} has no readable tokenizer ({_first_line(error)}): export the model again."
        ) from error


def dtype_name(dtype: torch.dtype) -> str:
    """`bf16`, `fp16` or `fp32`."""
    return {"torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float32": "fp32"}[str(dtype)]


def pick_device(device: str = "auto") -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU; a device that is not there is a ModelError."""
    import torch

    if device != "auto":
        try:
            if device == "meta":
                raise RuntimeError("it holds no values")
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"The device {device!r} is not available here: use `cpu` or `auto`.") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(dtype: str, device: torch.device, own: torch.dtype) -> torch.dtype:
    """The dtype to compute in: `auto` is fp32 on a CPU and the model's `own` elsewhere."""
    import torch

    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else own
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]


def free_bytes(device: torch.device) -> int:
    """Memory that an accelerator has left; a careful guess for one that does not tell."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return _UNKNOWN_FREE_BYTES


def _place(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on the device; one too large for it stays in main memory, and each module visits as it is used."""
    needed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if device.type == "cpu" or needed <= _WEIGHTS_SHARE * free_bytes(device):
        return model.to(device)
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device=device)


def _folder(path: Path) -> ModelRef:
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} has no config.json: give the folder that `save_pretrained` wrote.")
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{path} has no .safetensors file; pickled weights are never loaded: convert it to safetensors."
        )
    return ModelRef(source=str(path.resolve()), kind="folder", name=path.resolve().name)


def _gguf(path: Path) -> ModelRef:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
    if magic != _GGUF_MAGIC:
        raise ModelError(f"{path} is not a GGUF file; give a .gguf file or a folder of safetensors.")
    return ModelRef(source=str(path.resolve()), kind="gguf", name=path.stem)


def _safetensors_source(ref: ModelRef, report: Callable[[Progress], None]) -> str:
    if ref.kind == "demo":
        return str(_converted(demo_gguf(report), report))
    if ref.kind == "gguf":
        return str(_converted(Path(ref.source), report))
    return ref.source


def _converted(gguf: Path, report: Callable[[Progress], None]) -> Path:
    """The GGUF model de-quantized to a safetensors folder, converted once: reading GGUF takes 20 s, the copy 0.1 s."""
    state = gguf.stat()
    key = hashlib.sha256(f"{gguf}:{state.st_size}:{state.st_mtime_ns}".encode()).hexdigest()[:16]
    kept = converted_dir() / f"{gguf.stem}-{key}"
    if kept.is_dir():
        return kept
    report(Progress(stage="convert", message=f"Reading {gguf.name}: once, about 20 s for a small model"))
    beside = kept.with_name(f"{kept.name}.{os.getpid()}.part")
    try:
        _convert(gguf, beside)
        beside.rename(kept)
    except OSError as error:
        if kept.is_dir():  # another process was faster
            return kept
        raise ModelError(
            f"{gguf.name} could not be converted below {kept.parent}: {error}. Free some space or set "
            "ADVISOR_MODELS to another folder."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return kept


def _convert(gguf: Path, folder: Path) -> None:
    quiet_libraries()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

    where, name = str(gguf.parent), gguf.name
    try:
        with without_bars(modeling_gguf_pytorch_utils):
            model = AutoModelForCausalLM.from_pretrained(
                where, gguf_file=name, dtype=torch.bfloat16, trust_remote_code=False
            )
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name, trust_remote_code=False)
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"{name} could not be read as a language model: {_first_line(error)}. Use the model's safetensors instead."
        ) from error
    # The weights are plain bf16 now; transformers would refuse to save a model that still says it is quantized.
    del model.config.quantization_config
    model.hf_quantizer = None
    save_model(model, tokenizer, folder)


def _from_pretrained(ref: ModelRef, folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    quiet_libraries()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, safetensors' and hub errors here
        raise _unreadable(ref, error) from error
    return model, tokenizer


def _unreadable(ref: ModelRef, error: Exception) -> ModelError:
    hint = "check the id and the network, or give a local folder" if ref.kind == "hub" else "check the files in it"
    return ModelError(f"{ref.source} could not be loaded: {hint}. ({_first_line(error)})")


def quiet_libraries() -> None:
    """No progress bars or warnings of transformers, its quantizers and the hub: what matters is said in our own words.

    To be called before the first model class is imported: torchao warns at once of kernels for other devices.
    bitsandbytes warns of every product that it computes.
    """
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
