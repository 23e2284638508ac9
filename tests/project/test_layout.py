"""docs/architecture.md says who may import whom, and files stay small."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "esrl_fairseq"
FILES = sorted(PACKAGE.rglob("*.py"))
OPEN = {"errors", "core"}
LONGEST = 300
REASON = "Longer than 300 lines because"


def allowed():
    """{room: rooms that it may import}, from the table."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|$", page, re.MULTILINE)
    return {room: set(re.findall(r"\w+", others)) for room, others in rows}


def room(parts):
    """The folder, or the module beside the folders, that a module's path leads to."""
    return parts[0] if parts else "__init__"


def imported(file):
    """Rooms that a file imports, its own left out."""
    own = file.relative_to(PACKAGE).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            # `import esrl_fairseq`, to have things registered, is not an import of a room.
            if package == "esrl_fairseq" and parts:
                found.add(room(parts))
    return found - {room(own)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_are_those_of_the_table(file):
    own = room(file.relative_to(PACKAGE).with_suffix("").parts)
    rules = allowed()
    assert own in rules, f"docs/architecture.md has no row for {own}"
    assert imported(file) <= rules[own] | OPEN


def test_table_has_no_stale_row():
    rooms = {room(file.relative_to(PACKAGE).with_suffix("").parts) for file in FILES}
    assert set(allowed()) == rooms
    used = {name: set() for name in rooms}
    for file in FILES:
        used[room(file.relative_to(PACKAGE).with_suffix("").parts)] |= imported(file)
    unused = {name: others - used[name] for name, others in allowed().items()}
    assert not {name: others for name, others in unused.items() if others}


def test_imports_run_in_no_circle():
    rules = {name: others - {"core", "errors"} for name, others in allowed().items()}
    while rules:
        ground = [name for name, others in rules.items() if not others & rules.keys()]
        assert ground, f"a circle among {sorted(rules)}"
        for name in ground:
            del rules[name]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_are_small_or_say_why_not(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST or any(REASON in line for line in lines[:20])
