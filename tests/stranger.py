"""transformers alone, in a process that knows nothing of the advisor, started once for folders one after another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

_PROGRAM = """
import json, sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

for line in sys.stdin:
    folder, dtype, ids = json.loads(line)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype if dtype == "auto" else getattr(torch, dtype))
        with torch.no_grad():
            save_file({"logits": model(torch.tensor(ids)).logits.float()}, f"{folder}/logits")
        strangers = {name.split(".")[0] for name in sys.modules} & {"advisor", "storage", "tests"}
        print(json.dumps(sorted(strangers)), flush=True)
    except Exception as error:
        print(json.dumps(repr(error)), flush=True)
"""


class Stranger:
    """The process; closed with the block that it is used in."""

    def __init__(self, folder: Path):
        self._log = (folder / "stranger.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._log.close()

    def logits(self, folder: Path, ids: torch.Tensor, dtype: str = "float32") -> torch.Tensor:
        """Logits `(batch, tokens, vocabulary)` in FP32 of the model in a folder, which is loaded in this dtype."""
        self._process.stdin.write(json.dumps([str(folder), dtype, ids.tolist()]) + "\n")
        self._process.stdin.flush()
        said = self._process.stdout.readline()
        assert said == "[]\n", said or Path(self._log.name).read_text()[-2000:]
        return load_file(folder / "logits")["logits"]
