"""The documents say what is so: commands in them parse, names in them exist, files they point to are there."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from advisor import knowledge
from advisor.cli.commands import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
TEXTS = {path.name if path.parent == ROOT else str(path.relative_to(ROOT)): path.read_text() for path in DOCUMENTS}


def commands() -> list[str]:
    """Every `python -m advisor ...` in the documents, continuation lines joined."""
    found = []
    for text in TEXTS.values():
        found += re.findall(r"python -m (advisor [^\n`]+)", text.replace("\\\n", " "))
    return sorted(set(found))


@pytest.mark.parametrize("line", commands())
def test_commands_in_the_documents_parse(line):
    name, *arguments = shlex.split(line, comments=True)[1:]
    command = get_command(app).commands[name]
    command.make_context(name, arguments)  # raises a usage error for a wrong option, value or count


def test_the_two_set_up_commands_are_in_the_readme():
    assert "pip install -r requirements.txt && streamlit run app.py" in TEXTS["README.md"]
    assert "pip install -r tests/requirements.txt && pytest" in TEXTS["README.md"]


def test_devices_engines_and_formats_in_the_readme_exist():
    readme = TEXTS["README.md"].replace("\\\n", " ")
    assert set(re.findall(r"--hardware ([a-z0-9.-]+)", readme)) <= set(knowledge.hardware())
    assert set(re.findall(r"--engine ([a-z0-9.-]+)", readme)) <= set(knowledge.engines())
    for names in re.findall(r"--formats ([a-z0-9_,]+)", readme):
        assert set(names.split(",")) <= set(knowledge.formats())


@pytest.mark.parametrize("document", TEXTS)
def test_files_that_the_documents_point_to_are_there(document):
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#]+)\)", TEXTS[document]):
        assert "://" in target or (folder / target).exists(), target


@pytest.mark.parametrize("document", TEXTS)
def test_nothing_is_left_to_fill_in_and_benchmarks_exist(document):
    assert "@@" not in TEXTS[document]
    for module in re.findall(r"python -m (benchmarks\.\w+)", TEXTS[document]):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_every_room_is_in_the_architecture():
    text = TEXTS["docs/architecture.md"]
    files = [path for folder in ("advisor", "advisor/planner") for path in (ROOT / folder).glob("*.py")]
    rooms = {path.name for path in files if not path.stem.startswith("__")}
    assert {room for room in rooms if f"`{room}`" not in text and f"/{room}`" not in text} == set()
