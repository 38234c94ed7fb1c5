"""llama.cpp itself, from the xllamacpp wheel, each time in a process of its own: what it makes of a GGUF file.

Run as a module it is that process, or a program llama-quantize that calls the quantizer of llama.cpp's library, which
the npm package of node-llama-cpp carries.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = ("@node-llama-cpp/linux-x64", "3.22.1")
SHA_256 = "0d953e1503d5ab4608d8ed5b739132308c81ac05ffeb760d2a7f30e08a9f90e0"

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp, which holds llama.cpp, is not installed"
)


def ask(path: Path, prompts: list[list[int]] = (), texts: list[str] = ()) -> dict[str, list]:
    """`log_probs`: of all tokens after each prompt, by their ids; `tokens`: the ids of each text."""
    asked = json.dumps({"path": str(path), "prompts": prompts, "texts": texts})
    command = [sys.executable, "-m", "tests.llama_cpp", "run"]
    ran = subprocess.run(command, cwd=REPOSITORY, input=asked, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout.strip().splitlines()[-1])


def quantize_program(folder: Path) -> Path:
    """An executable that takes llama-quantize's arguments; skips the test where its library cannot be fetched."""
    try:
        _library()
    except OSError as error:
        pytest.skip(f"llama.cpp's quantizer cannot be fetched by npm: {error}")
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


def _library() -> Path:
    """The folder of llama.cpp's shared libraries, fetched once; the wheel's one has no quantizer to call."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise OSError("its package is for Linux on x86-64")
    folder = REPOSITORY / "build" / f"llama.cpp-{PACKAGE[1]}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as beside:
            command = ["npm", "pack", "@".join(PACKAGE), "--pack-destination", beside]
            ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if ran.returncode:
                raise OSError(ran.stderr[-500:])
            [packed] = Path(beside).glob("*.tgz")
            assert hashlib.sha256(packed.read_bytes()).hexdigest() == SHA_256, "another package than was tried"
            part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
            with tarfile.open(packed) as archive:
                archive.extractall(part, filter="data")
            with contextlib.suppress(OSError):  # another process was faster
                part.rename(folder)
            shutil.rmtree(part, ignore_errors=True)
    return folder / "package" / "bins" / "linux-x64"


class _Override(ctypes.Structure):
    """`llama_model_tensor_override` of llama.h; a list of them ends with an empty one."""

    _fields_ = (("pattern", ctypes.c_char_p), ("type", ctypes.c_int))


class _Params(ctypes.Structure):
    """`llama_model_quantize_params` of llama.h."""

    _fields_ = (
        ("threads", ctypes.c_int32),
        *((name, ctypes.c_int) for name in ("file_type", "output_type", "embedding_type")),
        ("flags", ctypes.c_bool * 8),
        *((name, ctypes.c_void_p) for name in ("imatrix", "metadata", "types", "pruned")),
    )


def _quantize(arguments: list[str]) -> int:
    """`--tensor-type-file FILE SOURCE RESULT Q8_0`: but for reading the file of types, all of it is llama.cpp."""
    option, types, source, result, default = arguments
    assert (option, default) == ("--tensor-type-file", "Q8_0")  # the library's own default, too
    folder = _library()
    llama = ctypes.CDLL(str(folder / "libllama.v0.5.0.so"), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(folder / "libggml.v0.5.0.so")).ggml_backend_load_all_from_path(str(folder).encode())
    name_of = ctypes.CDLL(str(folder / "libggml-base.so")).ggml_type_name
    name_of.restype, llama.llama_model_quantize_default_params.restype = ctypes.c_char_p, _Params
    params = llama.llama_model_quantize_default_params()
    # One number beyond the last type is the default of those that were not named.
    by_name = {(name_of(kind) or b"").decode().lower(): kind for kind in range(params.output_type)}
    rules = [line.lower().split("=") for line in Path(types).read_text().split()]
    overrides = (_Override * (len(rules) + 1))(*((pattern.encode(), by_name[kind]) for pattern, kind in rules))
    params.threads, params.types = 1, ctypes.addressof(overrides)
    return llama.llama_model_quantize(source.encode(), result.encode(), ctypes.byref(params))


if __name__ == "__main__":
    if sys.argv[1] == "run":
        print(json.dumps(_run(json.load(sys.stdin))), flush=True)
        os._exit(0)  # the server's threads wait seconds before they end
    sys.exit(_quantize(sys.argv[2:]))
