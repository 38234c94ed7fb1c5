"""Exports in a new Python process that knows nothing of the advisor: what its libraries compute is what was planned."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from advisor import models, pipeline
from advisor.apply import simulated
from advisor.model_card import model_card
from advisor.types import ExportRecord
from tests.test_apply import a_plan, loaded_in_own_dtype, tokens
from tests.tiny_models import tiny_folder

_UNPACKING = """
from types import SimpleNamespace
import torch
from optimum.quanto.library.extensions.extension import get_extension

def unpack(packed, bits):
    return torch.cat([packed >> shift & 2**bits - 1 for shift in range(0, 8, bits)])

# Instead of the same in C++, which quanto would compile for a minute.
get_extension("quanto_cpp")._lib = SimpleNamespace(unpack=unpack)
"""
_PROGRAM = f"""
import sys
{_UNPACKING}
from optimum.quanto import QuantizedModelForCausalLM
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

ids = torch.randint(3, 256, (2, 20), generator=torch.Generator().manual_seed(3))
found = {{}}
for name in sys.argv[1:]:
    loader = QuantizedModelForCausalLM if name == "quanto" else AutoModelForCausalLM
    with torch.no_grad():
        found[name] = loader.from_pretrained(name)(ids).logits.float()
strangers = [module for module in sys.modules if module.split(".")[0] in ("advisor", "storage", "tests")]
assert not strangers, strangers
save_file(found, "logits.safetensors")
"""


class Case(NamedTuple):
    """An export, the formats that take turns over the layers, and how far logits may be from the simulated plan's."""

    module: str
    formats: tuple[str, ...]
    tolerance: float
    dtype: torch.dtype = torch.bfloat16


# Files of BF16 models compute in BF16, and the simulated plan here in FP32. quanto's product of INT8 weights with BF16
# inputs ends the process on some CPUs (torch's _weight_int8pack_mm), so its model is FP32.
CASES = {
    "torchao": Case("torchao", ("int8", "int4_g64", "int3_g64", None), 0.03),
    "bitsandbytes-nf4": Case("bitsandbytes", ("nf4_g64", None), 0.03),
    # It also rounds what INT8 weights multiply, which is more than INT8 weights do.
    "bitsandbytes-int8": Case("bitsandbytes", ("int8", None), 0.05),
    "quanto": Case("quanto", ("int8", "int4_g64", None), 1e-5, torch.float32),
    "simulated": Case("simulated", ("int3_g64", "int8", None), 1e-5, torch.float32),
}


@pytest.fixture(scope="module")
def logits(tmp_path_factory):
    """Case -> logits of the original, of the simulated plan, and of the new process, all `(2, 20, vocabulary)`."""
    folder = tmp_path_factory.mktemp("fresh")
    found = {}
    for name, case in CASES.items():
        original = folder / str(case.dtype)
        if not original.exists():
            # Of rows of 320 quanto's loader takes groups to be of 64, which it tells from a layer's width alone.
            tiny_folder(original, dtype=case.dtype, hidden_size=320, intermediate_size=320, num_hidden_layers=1)
        found[name] = exported(case, original, folder / name)
    ran = subprocess.run([sys.executable, "-c", _PROGRAM, *CASES], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    fresh = load_file(folder / "logits.safetensors")
    return {name: (*planned, fresh[name]) for name, planned in found.items()}


def exported(case, original, to):
    """Write the folder; returns the original's logits and those of the simulated plan, both in FP32."""
    loaded = loaded_in_own_dtype(original)
    layers = [layer for layer in loaded.catalogue.quantizable if layer.block is not None]
    chosen = {layer.name: case.formats[i % len(case.formats)] for i, layer in enumerate(layers)}
    plan = a_plan(loaded.catalogue, {name: fmt for name, fmt in chosen.items() if fmt})
    export = importlib.import_module(f"advisor.export.{case.module}").export
    assert export(loaded.model, loaded.tokenizer, loaded.catalogue, plan, to) == {}
    model = models.load(str(original), lambda progress: None, dtype="fp32").model
    with torch.no_grad():
        own = model(tokens()).logits
        with simulated(model, loaded.catalogue, plan.assignments):
            return own, model(tokens()).logits


@pytest.mark.parametrize("name", CASES)
def test_its_libraries_alone_compute_what_was_planned(name, logits):
    original, planned, found = logits[name]
    tolerance = CASES[name].tolerance
    assert (found - planned).abs().max() < tolerance
    if name != "bitsandbytes-int8":
        assert (original - planned).abs().max() > 5 * tolerance  # so much that the tolerance tells them apart


def test_the_card_of_a_quanto_folder_loads_it_without_this_product(tmp_path):
    # Of rows of 192 quanto's loader takes groups to be of 96; files of BF16 hold INT8 that some CPUs cannot multiply.
    original = tiny_folder(tmp_path / "original", hidden_size=192, intermediate_size=192, num_hidden_layers=1)
    case = Case("quanto", ("int8", "int4_g64", "int4_g32", None), 1e-5)
    _, planned = exported(case, original, tmp_path / "out")
    plan = pipeline.plan_in(tmp_path / "out")
    card = model_card(plan, loaded_in_own_dtype(original).catalogue, ExportRecord(target="quanto"))
    snippet = card.split("In Python, with optimum-quanto and transformers alone:\n\n```python\n")[1].split("```")[0]
    saving = f"ids = torch.tensor({tokens().tolist()})\ntorch.save(model(ids).logits.detach(), 'logits.pt')\n"
    saving += "import sys\nassert not {'advisor', 'storage', 'tests'} & sys.modules.keys()"
    program = "\n".join([_UNPACKING, snippet, saving])
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "out", capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.startswith("The capital of France is")
    found = torch.load(tmp_path / "out" / "logits.pt", weights_only=True)
    assert (found - planned).abs().max() < case.tolerance
