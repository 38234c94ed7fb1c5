"""llama.cpp itself, each time in a process of its own: what it makes of a GGUF file.

The xllamacpp wheel runs files and encodes rows; what quantizes whole files comes as an npm package. Run as a module it
is that process, or the program llama-quantize: its arguments around llama.cpp's own `llama_model_quantize`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

REPOSITORY = Path(__file__).parents[1]
# Where `npm install --prefix` of the environment's own folder puts it.
NPM_PACKAGE = Path(sys.prefix) / "node_modules" / "@node-llama-cpp" / "linux-x64"

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp, which holds llama.cpp, is not installed"
)

needs_llama_quantize = pytest.mark.skipif(
    not NPM_PACKAGE.is_dir(), reason="@node-llama-cpp/linux-x64, which holds llama_model_quantize, is not installed"
)


def ask(path: Path, prompts: list[list[int]] = (), texts: list[str] = ()) -> dict[str, list]:
    """`log_probs`: of all tokens after each prompt, by their ids; `tokens`: the ids of each text."""
    asked = json.dumps({"path": str(path), "prompts": prompts, "texts": texts})
    command = [sys.executable, "-m", "tests.llama_cpp", "run"]
    ran = subprocess.run(command, cwd=REPOSITORY, input=asked, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout.strip().splitlines()[-1])


def quantize_program(folder: Path) -> Path:
    """An executable that takes llama-quantize's arguments."""
    program = folder / "llama-quantize"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={REPOSITORY}:"$PYTHONPATH" exec {sys.executable} -m tests.llama_cpp quantize "$@"\n'
    )
    program.chmod(0o755)
    return program


def encode(values, kind):
    """Rows of fp32 values in any GGUF type, by llama.cpp's own code, as bytes `(rows, bytes)`."""
    import numpy as np
    import xllamacpp
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    chunk = ctypes.CDLL(xllamacpp.xllamacpp.__file__).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    values = np.ascontiguousarray(values, np.float32)
    found = np.zeros(quant_shape_to_byte_shape(values.shape, GGMLQuantizationType[kind]), np.uint8)
    size = chunk(GGMLQuantizationType[kind], values.ctypes.data, found.ctypes.data, 0, *values.shape, None)
    assert size == found.nbytes
    return found


def _run(asked: dict) -> dict[str, list]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = asked["path"], 256, 1, False
    params.n_gpu_layers, params.cpuparams.n_threads = 0, 1
    server = xllamacpp.Server(params)

    def post(route: str, body: dict) -> dict:
        request = Request(
            server.listening_address + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urlopen(request) as answer:
            return json.load(answer)

    def log_probs(prompt: list[int]) -> list[float]:
        # It reports nothing of an end of the text and of half a character, so it is made to choose another token; the
        # probabilities are those without that.
        body = {"prompt": prompt, "n_predict": 1, "n_probs": 1_000_000, "logit_bias": [["a", 1000]]}
        found = post("/completion", body)["completion_probabilities"][0]["top_logprobs"]
        return [token["logprob"] for token in sorted(found, key=lambda token: token["id"])]

    tokens = [post("/tokenize", {"content": text, "add_special": True})["tokens"] for text in asked["texts"]]
    return {"log_probs": [log_probs(prompt) for prompt in asked["prompts"]], "tokens": tokens}


class _Override(ctypes.Structure):
    """`llama_model_tensor_override`; the last of an array has no pattern."""

    _fields_ = (("pattern", ctypes.c_char_p), ("type", ctypes.c_int))


class _Params(ctypes.Structure):
    """`llama_model_quantize_params` as llama.cpp v0.4.0 lays it out, which the pinned npm package is built from."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("nthread", "ftype", "output_tensor_type", "token_embedding_type")),
        *((name, ctypes.c_bool) for name in ("allow_requantize", "quantize_output_tensor", "only_copy")),
        *((name, ctypes.c_bool) for name in ("pure", "keep_split", "dry_run")),
        *((name, ctypes.c_void_p) for name in ("imatrix", "kv_overrides")),
        ("tt_overrides", ctypes.POINTER(_Override)),
        ("prune_layers", ctypes.c_void_p),
        ("max_buf_size", ctypes.c_size_t),
    )


def _quantize(arguments: list[str]) -> None:
    """`--tensor-type-file FILE SOURCE RESULT TYPE`, the file read as llama-quantize reads it: `pattern=type` words."""
    from gguf import GGMLQuantizationType, LlamaFileType

    option, types, source, result, default = arguments
    assert option == "--tensor-type-file"
    (library,) = NPM_PACKAGE.glob("bins/*/libllama.*so")
    llama = ctypes.CDLL(library)
    llama.llama_model_quantize_default_params.restype = _Params
    llama.llama_model_quantize.restype = ctypes.c_uint32
    params = llama.llama_model_quantize_default_params()
    assert params.max_buf_size and not params.prune_layers, "this llama.cpp lays its parameters out another way"
    rules = [word.split("=", 1) for word in Path(types).read_text().split()]
    overrides = [_Override(pattern.lower().encode(), GGMLQuantizationType[kind.upper()]) for pattern, kind in rules]
    params.tt_overrides = (_Override * (len(rules) + 1))(*overrides)
    params.nthread, params.ftype = 1, LlamaFileType[f"MOSTLY_{default}"]
    if llama.llama_model_quantize(source.encode(), result.encode(), ctypes.byref(params)):
        sys.exit(f"failed to quantize model from '{source}'")


if __name__ == "__main__":
    if sys.argv[1] == "run":
        print(json.dumps(_run(json.load(sys.stdin))), flush=True)
        os._exit(0)  # the server's threads wait seconds before they end
    _quantize(sys.argv[2:])
