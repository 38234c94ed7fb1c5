"""llama.cpp itself, from the xllamacpp wheel, each time in a process of its own: what it makes of a GGUF file.

Run as a module it is that process, or a stand-in for the program llama-quantize around llama.cpp's own encoders.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

REPOSITORY = Path(__file__).parents[1]

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


def _quantize(arguments: list[str]) -> None:
    """`--tensor-type-file FILE SOURCE RESULT TYPE`: the first pattern that is found in a tensor's name decides."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
    from gguf.quants import dequantize

    option, types, source, result, default = arguments
    assert option == "--tensor-type-file"
    rules = [line.rsplit("=", 1) for line in Path(types).read_text().split()]
    reader = GGUFReader(source)
    writer = GGUFWriter(result, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), *field.types[:2])
    for tensor in reader.tensors:
        wanted = next((kind for pattern, kind in rules if re.search(pattern, tensor.name)), default).upper()
        if tensor.data.ndim == 1 or wanted == tensor.tensor_type.name:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        else:
            encoded = encode(dequantize(tensor.data, tensor.tensor_type), wanted)
            writer.add_tensor(tensor.name, encoded, raw_dtype=GGMLQuantizationType[wanted])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if sys.argv[1] == "run":
        print(json.dumps(_run(json.load(sys.stdin))), flush=True)
        os._exit(0)  # the server's threads wait seconds before they end
    _quantize(sys.argv[2:])
