"""Wheel and sdist are whole, say what is true, and work where no clone is."""

import email
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from command_lines import COMMON, JOINED, MODEL, environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import esrl_fairseq

ROOT = Path(__file__).resolve().parents[2]
BUILD = "import sys; from setuptools import build_meta; build_meta.{}(sys.argv[1])"


def tracked():
    """The repository's files: those of git, and new ones that it does not ignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("not in a clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def build(kind, folder, out):
    code = BUILD.format(f"build_{kind}")
    done = subprocess.run([sys.executable, "-c", code, out], cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the sdist of the tracked files, and the wheel that is built from the sdist."""
    folder = tmp_path_factory.mktemp("package")
    for name in tracked():
        (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "clone" / name)
    # What a working folder has beside them
    (folder / "clone/recipes/__pycache__").mkdir()
    (folder / "clone/recipes/__pycache__/lower.cpython-311.pyc").touch()
    build("sdist", folder / "clone", folder)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        packed.extractall(folder / "unpacked")
    (source,) = (folder / "unpacked").iterdir()
    build("wheel", source, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    """{name: bytes} of its files."""
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def described(wheel, name):
    (found,) = [text for path, text in wheel.items() if path.endswith(f".dist-info/{name}")]
    return found.decode()


def test_the_sdist_has_every_file_that_git_tracks(built):
    with tarfile.open(*built.glob("*.tar.gz")) as packed:
        files = [member.name for member in packed.getmembers() if member.isfile()]
    found = {name.partition("/")[2] for name in files if ".egg-info/" not in name}
    assert found - {"PKG-INFO", "setup.cfg"} == tracked()


def test_the_wheel_has_the_package_with_its_data_and_nothing_else(wheel):
    inside = {name for name in wheel if ".dist-info/" not in name}
    assert inside == {name for name in tracked() if name.startswith("esrl_fairseq/")}
    assert "esrl_fairseq/py.typed" in inside


def test_metadata(wheel):
    about = email.message_from_string(described(wheel, "METADATA"))
    assert about["Name"] == "esrl-fairseq" and about["Version"] == esrl_fairseq.__version__
    assert about["License"] == "MIT" or about["License-Expression"] == "MIT"
    assert about["Summary"] and about["Author"] and about["Keywords"]
    assert about["Description-Content-Type"] == "text/markdown" and len(about.get_payload()) > 1000
    assert any(url.startswith("Paper, https://") for url in about.get_all("Project-URL"))
    classifiers = about.get_all("Classifier")
    assert "Typing :: Typed" in classifiers
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.+)$", citation, re.M)[1] == about["Version"]
    assert f"esrl_fairseq-{about['Version']}-py3" in (ROOT / "docs/install.md").read_text()


def test_pythons_that_are_claimed_were_tried(wheel):
    """Rows of docs/versions.md in which nothing failed; and pip refuses what is older."""
    about = email.message_from_string(described(wheel, "METADATA"))
    classifier = r"Programming Language :: Python :: (3\.\d+)$"
    claimed = [m[1] for text in about.get_all("Classifier") if (m := re.match(classifier, text))]
    row = r"^\| (3\.\d+)\S* \| (\S+) \|.*\| \d+ passed[^|]*\|"
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    tried = [m[1] for m in re.finditer(row, page, re.M) if "failed" not in m[0]]
    assert claimed and set(claimed) <= set(tried)
    assert about["Requires-Python"] == f">={claimed[0]}"
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    assert ruff["target-version"] == f"py{claimed[0].replace('.', '')}"


def test_tested_versions_are_some_that_are_asked_for(wheel):
    about = email.message_from_string(described(wheel, "METADATA"))
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {}
    for requirement in tested:
        (only,) = requirement.specifier
        assert only.operator == "==" and requirement.name not in versions
        versions[requirement.name] = only.version
    assert not {"torch", "torchaudio", "esrl-fairseq"} & versions.keys()
    asked = [Requirement(text) for text in about.get_all("Requires-Dist")]
    for requirement in asked:
        others = re.search(r"extra == .(comet|peers).", str(requirement))
        if requirement.name in versions and not others:
            assert versions[requirement.name] in requirement.specifier, requirement
    assert SpecifierSet("<81").contains(versions["setuptools"])
    plain = {requirement.name for requirement in asked if requirement.marker is None}
    assert plain - {"torch"} <= versions.keys()


def test_console_scripts_lead_to_functions(wheel):
    """All that docs/install.md names."""
    text = described(wheel, "entry_points.txt")
    scripts = dict(re.findall(r"^(esrl-\w+) = (\S+)$", text, re.MULTILINE))
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert set(scripts) == set(re.findall(r"^\| `(esrl-\w+)` \|", page, re.MULTILINE))
    for place in scripts.values():
        module, function = place.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def plain_clone(folder, name):
    """A clone whose package says where it is, and imports nothing."""
    package = folder / name / "esrl_fairseq"
    package.mkdir(parents=True)
    shutil.copy(ROOT / "__init__.py", package.parent)
    shutil.copy(ROOT / "esrl_fairseq" / "errors.py", package)
    (package / "__init__.py").write_text("")
    for module in ("__main__", "part"):
        (package / f"{module}.py").write_text("import esrl_fairseq\nprint(esrl_fairseq.__file__)")
    return package


@pytest.mark.parametrize("started", ["-m esrl_fairseq", "-m esrl_fairseq.part", "-c"])
@pytest.mark.parametrize("where", ["parent", "clone", "package", "other"])
def test_the_clones_name_is_no_trap(where, started, tmp_path):
    """Also where another copy is installed: Python takes what lies in the current folder first."""
    installed = plain_clone(tmp_path, "site")
    own = plain_clone(tmp_path, "esrl_fairseq")
    (tmp_path / "other").mkdir()
    folders = {"parent": tmp_path, "clone": own.parent, "package": own, "other": tmp_path / "other"}
    code = ["from esrl_fairseq import part; import esrl_fairseq.errors"]
    done = subprocess.run(
        [sys.executable, *started.split(), *(code if started == "-c" else [])],
        cwd=folders[where],
        env={"PYTHONPATH": str(installed.parent)},
        capture_output=True,
        text=True,
    )
    expected = own if where in ("parent", "clone") else installed
    assert done.stdout.splitlines() == [str(expected / "__init__.py")], done.stderr


@pytest.fixture(scope="module")
def elsewhere(built, tmp_path_factory):
    """The Python of an environment that has the wheel, and fairseq beside it, as pip leaves them.

    What else they need is that of this environment.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in ("fairseq", "fairseq_cli"):
        (place,) = importlib.import_module(name).__path__
        shutil.copytree(place, site / name, ignore=shutil.ignore_patterns("examples"))
    with zipfile.ZipFile(*built.glob("*.whl")) as packed:
        packed.extractall(site)
    (site / "rest.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
    return folder / "bin" / "python"


def run(python, folder, *words):
    """A program of that environment, from a folder; it has to succeed. What it prints."""
    command = [str(word) for word in (python, *words)]
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def training(data, mle):
    """Words of a command of two updates."""
    words = (
        "--task esrl_translation --criterion esrl --lr 2e-4 --check-start off --max-update 2 "
        f"{COMMON} {MODEL} {JOINED} --finetune-from-model {mle}"
    )
    return [str(data), *words.split()]


def test_an_installed_wheel_is_found_by_its_name(elsewhere, corpus, mle, tmp_path):
    """From a folder that has nothing of it: training, its report, and what prints the folder."""
    train = tmp_path / "fairseq-train"  # as pip writes it
    train.write_text("from fairseq_cli.train import cli_main\ncli_main()\n")
    words = [*training(corpus.data, mle), "--user-dir", "esrl_fairseq", "--save-dir", "run"]
    run(elsewhere, tmp_path, train, *words)
    assert (tmp_path / "run" / "checkpoint_best.pt").exists()
    if importlib.util.find_spec("plotly"):
        run(elsewhere, tmp_path, "-m", "esrl_fairseq.report", "run")
        assert (tmp_path / "run" / "report.html").stat().st_size > 100_000
    printed = run(elsewhere, tmp_path, "-m", "esrl_fairseq", "--user-dir")
    assert Path(printed.strip()).is_relative_to(elsewhere.parents[1])


def blocks(page, heading):
    """Commands under a heading, a string for each indented block."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]
    return re.findall(r"(?:^ {4}.*\n)+", section, re.MULTILINE)


@pytest.mark.long
def test_installing_without_a_clone_to_the_letter(built, corpus, mle, tmp_path):
    """docs/install.md: its commands, then training, translation and a report in another folder."""
    for file in (*built.glob("*.whl"), ROOT / "constraints.txt"):
        shutil.copy(file, tmp_path)
    env = {**environment(), "PATH": f"{sys.base_prefix}/bin:{os.environ['PATH']}"}

    def bash(folder, commands):
        activate = tmp_path / "esrl-env" / "bin" / "activate"
        before = f". {activate}\n" if activate.exists() else ""
        done = subprocess.run(
            ["bash", "-ec", before + commands], cwd=folder, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    install, look = blocks("install.md", "Without a clone")
    bash(tmp_path, install)
    other = tmp_path / "other"
    other.mkdir()
    assert "--reward" in bash(other, look)
    train = " ".join(training(corpus.data, mle))
    generate = f"fairseq-generate {corpus.data} --path run/checkpoint_best.pt --gen-subset valid"
    for user_dir in ("esrl_fairseq", '"$(python -m esrl_fairseq --user-dir)"'):
        bash(other, f"fairseq-train {train} --save-dir run --user-dir {user_dir}")
        assert "BLEU" in bash(other, f"{generate} --user-dir {user_dir}")
        bash(other, "esrl-report run; rm -r run")
    bash(other, "esrl-rewards --help; esrl-doctor --help; pip check")


def test_a_row_takes_its_place_in_the_table_of_versions(tmp_path, monkeypatch):
    """Of an older one of the same Python and torch; other tables of the page are left alone."""
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "scripts" / "version_matrix.py")
    matrix = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(matrix)
    page = tmp_path / "versions.md"
    page.write_text((ROOT / "docs" / "versions.md").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(matrix, "PAGE", page)
    before = page.read_text(encoding="utf-8").splitlines()
    for tests in ("1 failed", "3 passed"):
        matrix.write(["3.9.1", "2.5.1+cu124", "0.12.3.1", "2.0.0", tests, "2026-01-02"])
    after = page.read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in after if line not in before]
    assert row == "| 3.9.1 | 2.5.1+cu124 | 0.12.3.1 | 2.0.0 | 3 passed | 2026-01-02 |"
    assert after[after.index(row) - 1].startswith("|---") and len(after) == len(before) + 1
