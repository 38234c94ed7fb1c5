"""Who may import whom: the road has one direction, and the web process never meets torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each room may import itself, rooms of earlier lines, and nothing else of the project.
_PLANNER = (
    "measures sweep kept groups",
    "knapsack",
    "prediction layer_losses",
    "locks",
    "rule_context",
    "rules solver",
    "case",
    "candidates",
    "regret remedies",
    "reasons prices",
    "refusals",
    "pool",
    "choosing",
    "planning",
    "simple_plans nearest paired remarks",
    "front comparison around",
    "refine",
    "kept_answers",
)
_LEVELS = (
    "nouns errors",
    "types",
    "paths folders units quiet formats.table sharding stored layer_names",
    "this_machine table_files",
    "knowledge estimates",
    "methods marks role_sensitivity",
    "documents conversations model_card prompts reproduce uploads",
    "demo formats.quantize text_sources matmul weights",
    "structure texts text_quality scoring activations",
    "catalogue",
    "models model_license",
    "profiler memory",
    "latency export_checks export_size",
    "measured_speed",
    *(" ".join(f"planner.{name}" for name in names.split()) for names in _PLANNER),
    "verify guide speed task_files",
    "tasks",
    "apply evaluate answers preferences",
    "export ready_made recover",
    "use_cases",
    "pipeline",
    "processes job_handlers",
    "jobs",
    "cli.errors cli.options cli.output cli.requests",
    "cli.plan_output cli.evaluation",
    "cli.applied",
    "ui",
    "cli.report",
    "cli.commands",
)
_LEVEL = {f"advisor.{name}": level for level, names in enumerate(_LEVELS) for name in names.split()}
_NO_TORCH = (
    "types errors paths documents formats.table sharding this_machine table_files knowledge estimates methods marks "
    "memory latency measured_speed stored verify model_card export_checks export_size planner pipeline processes jobs "
    "cli ui texts text_quality prompts preferences guide reproduce role_sensitivity uploads"
).split()
_HEAVY = {"torch", "transformers", "optimum", "accelerate", "datasets", "safetensors", "gguf"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Every module that the file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str | None:
    """The longest known room that `module` lies in."""
    return next((r for r in sorted(_LEVEL, key=len, reverse=True) if module == r or module.startswith(r + ".")), None)


SOURCES = [p for p in sorted((ROOT / "advisor").rglob("*.py")) if p.stem not in ("__init__", "__main__")]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down_the_road_only(path):
    here = room(module_name(path))
    assert here, f"{module_name(path)} is in no room: add it to docs and to this test"
    for module in imports(path):
        there = room(module)
        if there and there != here:
            assert _LEVEL[there] < _LEVEL[here], f"{here} imports {there}"


@pytest.mark.parametrize(("rooms", "address"), [("nouns", "types"), ("use_cases", "pipeline")])
def test_what_has_one_address_is_entered_by_it_only(rooms, address):
    inside = f"advisor.{rooms}"
    for path in [ROOT / "app.py", *(p for top in ("advisor", "storage", "tests") for p in (ROOT / top).rglob("*.py"))]:
        if module_name(path) != f"advisor.{address}" and room(module_name(path)) != inside:
            assert not any(room(module) == inside for module in imports(path)), path


def test_storage_knows_the_nouns_and_sqlalchemy_only():
    for path in (ROOT / "storage").rglob("*.py"):
        ours = {module for module in imports(path) if module.split(".")[0] == "advisor"}
        assert {".".join(m.split(".")[:2]) for m in ours} <= {"advisor.types", "advisor.errors"}, path


def test_pages_never_import_sqlalchemy():
    for path in [ROOT / "app.py", *(ROOT / "advisor" / "ui").rglob("*.py")]:
        assert not any(module.split(".")[0] == "sqlalchemy" for module in imports(path)), path


@pytest.mark.parametrize("name", _NO_TORCH)
def test_light_rooms_do_not_load_torch(name):
    package = ROOT / "advisor" / name
    modules = [module_name(path) for path in package.glob("*.py")] if package.is_dir() else [f"advisor.{name}"]
    script = f"import sys\n{chr(10).join('import ' + m for m in modules)}\nprint(*{_HEAVY!r} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_package_files_are_empty_and_nothing_pickled_is_loaded():
    for path in (ROOT / "advisor").rglob("*.py"):
        text = path.read_text()
        assert path.stem != "__init__" or not text.strip(), path
        assert "torch.load(" not in text and "import pickle" not in text and "trust_remote_code=True" not in text, path
