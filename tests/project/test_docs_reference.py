"""The reference is what the code says: options, logged figures, equations."""

import ast
import importlib
import inspect
import re
import runpy

import pages
import pytest
from pages import ROOT

from esrl_fairseq.monitoring.logs import BRANCHES

REFERENCE = ROOT / "docs" / "reference"
PACKAGE = ROOT / "esrl_fairseq"
MATHEMATICS = "losses baselines expectations schedules kl selection preferences controls".split()
"""Modules of core/ whose public functions and classes are all on the page of equations."""
NOT_EQUATIONS = {"Baseline", "build_baseline", "Plan", "Inputs"}


def test_options_are_those_of_the_code():
    write = runpy.run_path(str(ROOT / "scripts" / "write_reference.py"))
    page = (REFERENCE / "options.md").read_text(encoding="utf-8")
    assert page == write["page"](), "run python scripts/write_reference.py"


def test_options_have_words_and_stand_once_a_section():
    page = (REFERENCE / "options.md").read_text(encoding="utf-8")
    for section in page.split("\n## ")[1:]:
        if "```text" in section:  # the help text of a command without a list of options
            continue
        names = re.findall(r"^- (`[^:(]*?`)(?: \(|:|$)", section, re.M)
        assert names and len(names) == len(set(names)), section[:60]
    for option in ("--num-samples", "--reward", "--lora-rank", "--evaluate", "--by-line"):
        assert f"- `{option}`" in page


def logged_names():
    """What the code logs: ``{name or pattern}``, a pattern where a name is put together."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = called or (node.func.id if isinstance(node.func, ast.Name) else "")
            if called in ("log_scalar", "log_derived"):
                found |= names_in(node.args[0])
            elif called == "_mean" and path.name == "logs.py":
                found |= names_in(node.args[1])
            elif called == "_log" and path.name == "parts.py":
                found |= names_in(node.args[0])
    return {name for name in found if not name.startswith("_")}


def names_in(node):
    """A string, or one with holes in it."""
    if isinstance(node, ast.Constant):
        return {node.value}
    if not isinstance(node, ast.JoinedStr):
        return set()  # a variable: named where it is called
    parts = [part.value if isinstance(part, ast.Constant) else "\\w+" for part in node.values]
    return {"".join(parts)} - {"\\w+_std"}


def documented():
    """First cells of the tables of logged figures."""
    prose = pages.read(REFERENCE / "logged.md")[1].split("\n## Warnings")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", prose, re.M)
    return {name for cell in cells for name in pages.spans(cell)}


def test_all_logged_figures_are_explained():
    names = documented()
    for pattern in logged_names():
        assert any(re.fullmatch(pattern, name) for name in names), f"{pattern} is not on the page"
    assert {f"loss_{branch}" for branch in BRANCHES} <= names


def test_only_logged_figures_are_explained():
    patterns = logged_names() | {r"reward_NAME(_std)?", "reward_std"}
    for name in documented():
        assert any(re.fullmatch(pattern, name) for pattern in patterns), f"{name} is not logged"


def named_functions():
    """``core.losses.mrt_loss`` and so on."""
    prose = pages.read(REFERENCE / "equations.md")[1]
    return {span for span in pages.spans(prose) if re.match(r"^(core|rewards)\.\w+\.", span)}


@pytest.mark.parametrize("name", sorted(named_functions()))
def test_functions_beside_equations_are_there(name):
    package, module, *rest = name.split(".")
    found = importlib.import_module(f"esrl_fairseq.{package}.{module}")
    for part in rest:
        found = getattr(found, part)
    assert callable(found) and found.__doc__


@pytest.mark.parametrize("module", MATHEMATICS)
def test_all_equations_are_there(module):
    code = importlib.import_module(f"esrl_fairseq.core.{module}")
    own = {
        name
        for name, what in vars(code).items()
        if (inspect.isfunction(what) or inspect.isclass(what))
        and what.__module__ == code.__name__
        and not name.startswith("_")
    }
    named = {span.split(".")[2] for span in named_functions() if span.startswith(f"core.{module}.")}
    assert own - NOT_EQUATIONS <= named


OF_OTHERS = ("invalid choice", "FileNotFoundError", "Weights only", "Could not load", "CUDA out")
"""Messages of Python, torch and fairseq."""
PUT_IN = r"…|\b\d[\d.]*\b|\bvalid\.en\b|\breward\b|\brank \d of \d\b|'"
"""What stands where a message has something of the run."""


def test_messages_that_are_explained_are_said():
    """Parts of two words and more, as they stand in the code."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # strings over several lines
    prose = pages.read(ROOT / "docs" / "troubleshooting.md")[1]
    for cell in re.findall(r"^\| ([^|]*`[^|]*) \|", prose, re.M):
        for message in pages.spans(cell):
            if not message.startswith(OF_OTHERS):
                parts = [part.strip(" ,") for part in re.split(PUT_IN, message)]
                for part in parts:
                    assert " " not in part or part in code, f"nothing says {part!r}"
