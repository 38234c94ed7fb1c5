"""Sensitivity scores of other systems on our layers, tokens and quantizer, each in an environment of its own.

    python -m benchmarks.peers modelopt|modelopt_kl|autoround --model FOLDER --tokens windows.npy
        [--formats int8,int4_g64,int3_g64,int2_g64] [--dtype fp32] [--batch-size 8] --out scores.json

Both peers install beside each other; the last two packages are what `advisor.formats` and `advisor.knowledge` need:

    pip install torch==2.13.0 transformers==5.14.1 nvidia-modelopt==0.47.0 auto-round==0.16.1 accelerate==1.15.0
        numpy==2.4.6 pydantic==2.14.3

Each peer runs through its public entry point with its own loss and estimator. What differs from its defaults is said
where it is set. Scores are taken before the peer solves anything; higher is more sensitive. The head and the embedding
are left out: neither peer's score covers a tensor that both share.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import ModuleType
from typing import Any

import numpy
import torch

from advisor.formats.quantize import fake_quantize
from advisor.knowledge import find_format
from advisor.types import Format

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Scores = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=sorted(_PEERS))
    parser.add_argument("--model", required=True, help="folder of safetensors")
    parser.add_argument("--tokens", required=True, help=".npy file of int64 token ids, (sequences, length)")
    parser.add_argument("--formats", default="int8,int4_g64,int3_g64,int2_g64")
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="fp32", help="of weights and computation")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per batch; 8 is AutoScheme's default")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()

    packages, score = _PEERS[args.peer]
    windows = torch.from_numpy(numpy.load(args.tokens)).long()
    model, tokenizer = _load(args.model, _DTYPES[args.dtype])
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    started = time.perf_counter()
    scores, seconds = score(model, tokenizer, windows, _formats(args.formats), args.batch_size)
    result = {
        "peer": args.peer,
        "versions": {name: version(name) for name in (*packages, "torch", "transformers")},
        "seconds": seconds,  # the peer's scoring pass alone
        "seconds_with_setup_and_solving": time.perf_counter() - started,  # its whole call, the model already loaded
        "peak_rss_bytes": _peak_rss_bytes(),
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "tokens": list(windows.shape),
        "batch_size": args.batch_size,
        "scores": sorted(scores, key=lambda score: (order[score["layer"]], score["format"])),
    }
    with open(args.out, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    print(f"{args.peer}: {len(scores)} scores in {seconds:.1f} s -> {args.out}")


# ------------------------------------------------------------------------------------------ ModelOpt


def score_modelopt(
    model, tokenizer, windows: torch.Tensor, formats: list[Format], batch_size: int, method: str = "gradient"
) -> tuple[Scores, float]:
    """ModelOpt's `auto_quantize` scores for `(sequences, length)` windows, and the seconds that they took.

    `gradient`, its default: the sum over tokens and output channels of (dL/dy * (y_quantized - y))^2, where y is the
    layer's output in the unquantized model and L the mean next-token cross-entropy of a batch. `kl_div`: the sum over
    tokens of KL(unquantized || one layer quantized), from a pass through the whole model for each layer and format.

    A format's score is lowered to that of the next smaller format where it is higher: so does the peer.
    """
    import modelopt.torch.quantization as quantization
    from modelopt.torch.quantization.algorithms import AutoQuantizeGradientSearcher, AutoQuantizeKLDivSearcher
    from modelopt.torch.quantization.nn.modules.tensor_quantizer import register_quant_backend

    named = {fmt.name: fmt for fmt in formats}
    register_quant_backend(
        "advisor", lambda weight, quantizer: fake_quantize(weight, named[quantizer.backend_extra_args["format"]])
    )
    batches = [{"input_ids": batch, "labels": batch} for batch in windows.split(batch_size)]
    searcher = AutoQuantizeGradientSearcher if method == "gradient" else AutoQuantizeKLDivSearcher
    # By default q/k/v and gate/up share one score, the sum of theirs: we compare layers.
    with _replaced(searcher, "quant_grouping_rules", []), _timed(searcher, "estimate_sensitivity_scores") as seconds:
        _, state = quantization.auto_quantize(
            model,
            constraints={"effective_bits": 16.0},  # of the solver, whose plan nobody reads
            quantization_formats=[_modelopt_config(fmt) for fmt in formats],
            data_loader=batches,
            forward_step=lambda model, batch: (
                model(**batch, use_cache=False) if method == "gradient" else model(batch["input_ids"]).logits
            ),
            loss_func=(lambda output, batch: output.loss) if method == "gradient" else None,
            disabled_layers=["*lm_head*"],  # as in its own example for language models
            num_calib_steps=1,  # our quantizer needs no calibration
            num_score_steps=len(batches),  # 128 by default: here all the tokens that we give
            method=method,
        )
    return list(_modelopt_scores(state["candidate_stats"])), sum(seconds)


def _modelopt_config(fmt: Format) -> dict[str, Any]:
    weights = {
        "num_bits": fmt.bits,
        "effective_bits": _bits_per_weight(fmt),  # by which it orders the formats
        "backend": "advisor",
        "backend_extra_args": {"format": fmt.name},
    }
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": weights, "enable": True},
        ],
        "algorithm": "max",
    }


def _modelopt_scores(candidates: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, stats in candidates.items():
        for recipe, score in zip(stats["formats"], stats["scores"], strict=True):
            for entry in recipe.config.quant_cfg:
                if entry.get("cfg") is not None:  # the recipe that quantizes nothing has none
                    extra = entry["cfg"]["backend_extra_args"]
                    yield {"layer": name.removesuffix(".quant_recipe"), "format": extra["format"], "score": score}


# ---------------------------------------------------------------------------------------- AutoScheme


def score_autoround(
    model, tokenizer, windows: torch.Tensor, formats: list[Format], batch_size: int
) -> tuple[Scores, float]:
    """AutoRound's AutoScheme delta-loss scores for `(sequences, length)` windows, and the seconds that they took.

    Its only estimator: with every layer quantized to the same format, the sum over batches and weights of
    |dL/dW_quantized * (W - W_quantized)|, where L is the mean next-token cross-entropy of a batch.
    """
    # A cache of scores in the home folder would make a second run look free; tokenizing in a subprocess has no use.
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {"AR_AUTO_SCHEME_CACHE": cache, "AR_DISABLE_DATASET_SUBPROCESS": "1"}
        from auto_round import AutoRound, AutoScheme
        from auto_round.auto_scheme import delta_loss

        _register_autoround_windows(windows)
        schemes = [_register_autoround_format(fmt) for fmt in formats]
        bits = [fmt.bits for fmt in formats]
        passes: list[dict[str, list[float]]] = []
        with _timed(delta_loss, "get_score_for_scheme", passes) as seconds:
            AutoRound(
                model,
                tokenizer,
                scheme=AutoScheme(
                    avg_bits=(min(bits) + max(bits)) / 2,  # of the solver, whose plan nobody reads
                    ignore_scale_zp_bits=True,
                    options=schemes,
                    nsamples=len(windows),
                    seqlen=windows.shape[1],
                    batch_size=batch_size,
                    # It would read every block from disk again for each batch, to save memory that we have.
                    low_cpu_mem_usage=False,
                ),
                dataset="advisor-windows",
                device_map="cpu",
                amp=model.dtype == torch.bfloat16,  # by default it casts to bf16 on a CPU that has it
                iters=0,  # of the tuning after the plan, which is never run
            ).post_init()
    if len(passes) != len(formats):
        raise RuntimeError(f"{len(passes)} scoring passes for {len(formats)} formats: the peer took some for the same")
    return [
        {"layer": layer, "format": fmt.name, "score": score}
        for fmt, layers in zip(formats, passes, strict=True)
        for layer, (_, score) in layers.items()
    ], sum(seconds)


def _register_autoround_windows(windows: torch.Tensor) -> None:
    from auto_round.calib_dataset import register_dataset
    from datasets import Dataset

    most = torch.stack([(window == window[-1]).sum() for window in windows]).max()
    if most > windows.shape[1] // 2:
        raise ValueError("AutoRound leaves out a window that repeats its last token in more than half of its places")
    rows = {"input_ids": windows.tolist(), "attention_mask": torch.ones_like(windows).tolist()}
    register_dataset("advisor-windows")(lambda *args, **kwargs: Dataset.from_dict(rows))


def _register_autoround_format(fmt: Format):
    from auto_round.data_type.register import register_dtype
    from auto_round.schemes import QuantizationScheme

    def quantize(tensor: torch.Tensor, **unused) -> tuple[torch.Tensor, float, None]:
        return fake_quantize(tensor, fmt), 1.0, None

    register_dtype(f"int_advisor_{fmt.name}")(quantize)
    return QuantizationScheme(
        bits=fmt.bits,
        group_size=fmt.group_size or -1,
        sym=fmt.symmetric,
        data_type=f"int_advisor_{fmt.name}",
        act_bits=16,
    )


# -------------------------------------------------------------------------------------------- shared


def _load(folder: str, dtype: torch.dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _formats(names: str) -> list[Format]:
    return [find_format(name) for name in names.split(",")]


def _bits_per_weight(fmt: Format) -> float:
    # A scale per output channel costs next to nothing.
    return fmt.bits + ((fmt.scale_bits + fmt.zero_point_bits) / fmt.group_size if fmt.group_size else 0)


def _peak_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def _replaced(owner: type | ModuleType, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def _timed(owner: type | ModuleType, name: str, results: list | None = None) -> Iterator[list[float]]:
    """Collect the seconds of every call of `owner.name`, and in `results` what it returned."""
    original: Callable = getattr(owner, name)
    seconds: list[float] = []

    def call(*args, **kwargs):
        started = time.perf_counter()
        result = original(*args, **kwargs)
        seconds.append(time.perf_counter() - started)
        if results is not None:
            results.append(result)
        return result

    with _replaced(owner, name, call):
        yield seconds


def _modelopt_kl(*args) -> tuple[Scores, float]:
    return score_modelopt(*args, method="kl_div")


_PEERS: dict[str, tuple[Iterable[str], Callable[..., tuple[Scores, float]]]] = {
    "modelopt": (("nvidia-modelopt",), score_modelopt),
    "modelopt_kl": (("nvidia-modelopt",), _modelopt_kl),
    "autoround": (("auto-round",), score_autoround),
}

if __name__ == "__main__":
    main()
