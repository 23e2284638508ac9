"""The environments that the doctor is made for, made up or broken on purpose."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from esrl_fairseq.doctor import environment, machine, packages
from esrl_fairseq.doctor.asking import ask
from esrl_fairseq.doctor.findings import OK, WARNING, WRONG, Finding, shown, verdict

ROOT = Path(__file__).resolve().parents[2]
FILE = "/env/fairseq/__init__.py"


@pytest.fixture
def healthy():
    """What a healthy environment answers."""
    answers = {name: {"version": "1", "file": "/x"} for name in environment.EXTENSIONS}
    answers["fairseq"] = {"version": "0.12.3.1", "file": FILE}
    answers["esrl_fairseq"] = {"version": "0.1.0", "file": "/y"}
    answers["torch"] = {"version": "2.13.0", "file": "/t", "cuda": None, "threads": 1}
    answers["numpy"] = {"version": "2.4.6", "file": "/n"}
    answers["numpy in torch"] = {}
    answers["gpus"] = {"gpus": [], "said": []}
    return answers


@pytest.fixture
def installed(monkeypatch):
    """Makes up what is installed: {distribution: version}, and where modules are."""

    def call(versions, places=(("fairseq", FILE),), owned=True):
        monkeypatch.setattr(packages, "version_of", lambda name: versions.get(name, ""))
        monkeypatch.setattr(packages, "place_of", dict(places).get)
        monkeypatch.setattr(packages, "owns", lambda *_: owned)

    return call


MUTABLE = "ValueError: mutable default <class 'x'> for field common is not allowed"


@pytest.mark.parametrize(
    "versions, places, error, level, says, mend",
    [
        ({}, {}, "", WRONG, "fairseq is not installed", "pip install fairseq-fixed"),
        ({"fairseq2": "0.4"}, {}, "", WRONG, "fairseq2 0.4 is another library", "fairseq-fixed"),
        ({}, {"fairseq2": "/f2"}, "", WRONG, "fairseq2 2 is another library", "fairseq-fixed"),
        ({"fairseq-fixed": "0.12.3"}, {}, "", WRONG, "its files are gone", "--force-reinstall"),
        ({"fairseq": "0.12.2"}, {"fairseq": FILE}, MUTABLE, WRONG, "0.12.2", "Python before 3.11"),
        (
            {"fairseq-fixed": "0.12.3"},
            {"fairseq": FILE},
            "ModuleNotFoundError: No module named 'hydra.core'",
            WRONG,
            "cannot be imported",
            "pip install hydra",
        ),
        (
            {"fairseq": "0.12.2"},
            {"fairseq": FILE},
            "AttributeError: module 'numpy' has no attribute 'float'",
            WRONG,
            "no attribute 'float'",
            "numpy<1.24",
        ),
        ({"fairseq": "0.10.2"}, {"fairseq": FILE}, "", WRONG, "0.10.2 is too old", "pip install"),
        ({}, {"fairseq": FILE}, "", WARNING, "neither fairseq-fixed nor a release", "tested is"),
        ({}, {"fairseq": str(ROOT)}, "", WRONG, "is no package", "another folder"),
        (
            {"fairseq-fixed": "0.12.3", "fairseq": "0.12.2"},
            {"fairseq": FILE},
            "",
            WARNING,
            "have written over each other's files",
            "pip uninstall -y fairseq fairseq-fixed",
        ),
        ({"fairseq-fixed": "0.12.3"}, {"fairseq": FILE}, "", OK, "fairseq-fixed 0.12.3", ""),
    ],
)
def test_flavours_of_fairseq(versions, places, error, level, says, mend, installed, healthy):
    installed(versions, places)
    version = versions.get("fairseq", "0.12.3")
    healthy["fairseq"] = {"error": error} if error else {"version": version, "file": FILE}
    found = environment.fairseq(healthy)
    assert level in {finding.level for finding in found}
    assert {finding.what for finding in found} == {"fairseq"}
    text = " ".join(f"{finding.says} {finding.mend}" for finding in found)
    assert says in text and mend in text, text


def test_a_fairseq_that_hides_the_installed_one(installed, healthy):
    installed({"fairseq-fixed": "0.12.3"}, owned=False)
    (finding,) = environment.fairseq(healthy)
    assert finding.level == WARNING and "is imported instead of fairseq-fixed" in finding.says


@pytest.mark.parametrize(
    "name, answer, versions, level, words",
    [
        ("torch", {"error": "ModuleNotFoundError: No module"}, {}, WRONG, "torch is not installed"),
        ("torch", {"error": "OSError: libcudart"}, {"torch": "2.9"}, WRONG, "libcudart"),
        ("torch", {"version": "2.4.1+cu121"}, {}, WRONG, "too old, at least 2.5"),
        ("torch", {"version": "2.13.0+cpu"}, {"torch": "2.13.0+cpu"}, OK, "2.13.0+cpu"),
        ("numpy", {"version": "1.19.5"}, {}, WRONG, "too old"),
        ("numpy", {"version": "1.26.0"}, {"fairseq": "0.12.2"}, WRONG, "too new for fairseq 0.12"),
        ("numpy", {"version": "3.0.0"}, {"fairseq-fixed": "0.12.3"}, WARNING, "newer than any"),
        ("numpy", {"version": "2.4.6"}, {"fairseq-fixed": "0.12.3"}, OK, "2.4.6"),
        ("numpy", {"version": "1.25.0", "file": "/n"}, {"numpy": "2.4"}, WARNING, "2.4 is inst"),
        ("sacrebleu", {"version": "2.3.1"}, {}, WRONG, "at least 2.4"),
    ],
)
def test_libraries(name, answer, versions, level, words, installed, healthy):
    installed(versions, {})
    (finding,) = environment.library(name, {**healthy, name: answer})
    assert finding.level == level and words in finding.says
    assert bool(finding.mend) == (level != OK)


@pytest.mark.parametrize(
    "change, level, words",
    [
        ({"torchaudio": None}, OK, "not installed"),
        ({"torchaudio": {"error": "OSError: undefined symbol"}}, WARNING, "undefined symbol"),
        (
            {"torchaudio": {"error": "x"}, "fairseq": {"error": "ImportError: torchaudio"}},
            WRONG,
            "does not load beside torch 2.13.0",
        ),
        ({"torchaudio": {"version": "2.11"}}, OK, "2.11"),
    ],
)
def test_torchaudio(change, level, words, installed, healthy):
    installed({"torchaudio": "2.11"})
    found = environment.torchaudio({**healthy, **change})
    assert found.level == level and words in found.says


def test_extensions_that_are_missing(healthy):
    assert environment.extensions(healthy).level == OK
    healthy["fairseq.libbleu"] = {"error": "ImportError: cannot import name"}
    assert environment.extensions(healthy).level == WARNING
    healthy["fairseq.data.data_utils_fast"] = {"error": "ImportError: no"}
    found = environment.extensions(healthy)
    assert found.level == WRONG and "no batches" in found.says and "compiler" in found.mend


@pytest.mark.parametrize(
    "torch, answer, variables, driver, level, words",
    [
        ({"cuda": "12.8"}, {"gpus": []}, {}, False, WARNING, "built for CUDA 12.8, but finds none"),
        ({"cuda": "12.8"}, {"gpus": []}, {"CUDA_VISIBLE_DEVICES": ""}, False, OK, "hidden by"),
        ({"cuda": None}, {"gpus": []}, {}, True, WARNING, "was built without CUDA"),
        ({"cuda": None}, {"gpus": []}, {}, False, OK, "on the CPU"),
        ({}, {"error": "RuntimeError: busy"}, {}, True, WRONG, "busy"),
        ({}, {"gpus": [{"name": "A", "memory": [9e9, 1e10]}]}, {}, True, OK, "9.0 of 10.0 GB"),
        ({}, {"gpus": [{"name": "A", "memory": [1e9, 1e10]}]}, {}, True, WARNING, "1.0 of 10.0"),
    ],
)
def test_gpus(torch, answer, variables, driver, level, words, healthy, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(machine, "has_driver", lambda: driver)
    healthy["torch"].update(torch)
    (found,) = machine.gpus({**healthy, "gpus": {"said": [], **answer}})
    assert found.level == level and words in found.says


def test_threads_and_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert machine.processors({"threads": 2}).level == OK
    found = machine.processors({"threads": 64})
    assert found.level == WARNING and "OMP_NUM_THREADS=2" in found.mend
    for free, level in ((1e11, OK), (1e9, WARNING), (1e6, WRONG)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _, usage=usage: usage)
        assert machine.disk(str(tmp_path / "not" / "yet")).level == level


def test_requirements(monkeypatch):
    """Those of what is installed are compared, with the extras that are there."""
    wants = {"esrl-fairseq": ["torch>=99", "gone", "peft>=9; extra == 'lora'", "x; extra == 'hf'"]}
    monkeypatch.setattr(packages, "ROOTS", ("esrl-fairseq",))
    there = {"esrl-fairseq": "0.1", "torch": "2.13.0+cpu", "peft": "0.2"}
    monkeypatch.setattr(packages, "version_of", lambda name: there.get(name, ""))
    monkeypatch.setattr(packages.metadata, "requires", wants.get)
    found = [(wanted, version) for _, wanted, version in packages.conflicts()]
    assert found == [("torch>=99", "2.13.0+cpu"), ("gone", ""), ("peft>=9", "0.2")]
    assert environment.versions().level == WARNING


def test_tables_are_those_of_the_setup():
    """Extras for users, and the oldest versions."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    known = set(re.findall(r'^    "(\w+)": ', text, re.MULTILINE))
    assert set(packages.EXTRAS) <= known
    for names, _ in packages.EXTRAS.values():
        assert all(f'"{name}' in text for name in names)
    for name in ("torch", "sacrebleu"):
        assert f'"{name}>={environment.OLDEST[name]}' in text


def test_what_takes_a_process_with_it(tmp_path, monkeypatch):
    """Each is asked about nevertheless."""
    (tmp_path / "dies.py").write_text("import os\nos.abort()")
    (tmp_path / "exits.py").write_text("raise SystemExit(3)")
    (tmp_path / "prints.py").write_text("print('{}')\n__version__ = 2")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = ask(["dies", "exits", "prints", "nowhere"])
    assert "SIGABRT" in found["dies"]["error"] and found["exits"]["error"] == "SystemExit: 3"
    assert found["prints"]["version"] == "2"
    assert found["nowhere"]["error"] == "ModuleNotFoundError: No module named 'nowhere'"


def python(*words, path):
    """Run Python with more on its path."""
    env = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", "COLUMNS": "500"}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=path, timeout=170)


@pytest.fixture
def broken(tmp_path):
    """An environment whose fairseq and torchaudio cannot be imported."""
    (tmp_path / "fairseq").mkdir()
    (tmp_path / "fairseq" / "__init__.py").write_text("import no_such_library")
    (tmp_path / "torchaudio.py").write_text("raise OSError('undefined symbol: _ZN3c10')")
    return tmp_path


@pytest.mark.slow
def test_command_line_in_a_broken_environment(broken):
    """All that is wrong is listed at once, with a training behind it, too."""
    words = ["fairseq-train", "data-bin", "--criterion", "esrl"]
    done = python("-m", "esrl_fairseq.doctor", *words, path=broken)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    said = " ".join(done.stdout.split())  # lines break where paths are long
    assert re.search("fairseq wrong .*No module named 'no_such_library'", said)
    assert "→ pip install no_such_library" in said and f"{broken}/fairseq/__init__.py" in said
    assert re.search("torchaudio warning .*undefined symbol", said), said
    assert "training wrong not looked at" in said, said


@pytest.mark.slow
def test_command_line_in_a_whole_environment(tmp_path):
    done = python("-m", "esrl_fairseq.doctor", path=tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == int(" wrong " in done.stdout), done.stdout + done.stderr
    for what in ("Python", "fairseq", "torch", "numpy", "C extensions", "sacrebleu"):
        assert any(re.match(rf"{what} +ok ", line) for line in lines), done.stdout
    assert not list(tmp_path.iterdir())


def test_other_commands_end_in_a_sentence(broken):
    done = python("-m", "esrl_fairseq.report", "nowhere", path=broken)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("fairseq cannot be used here (ModuleNotFoundError: No module")
    assert "python -m esrl_fairseq.doctor" in done.stderr


def test_the_table(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    found = [Finding("one", OK, "fine"), Finding("the other", WRONG, "words " * 30, "pip install")]
    lines = shown(found).splitlines()
    assert lines[0].split() == ["one", "ok", "fine"] and max(map(len, lines)) <= 80
    assert lines[1].startswith("the other  wrong    words") and lines[-1].strip() == "→ pip install"
    assert lines[0].index("fine") == lines[1].index("words") == lines[-1].index("→")
    assert verdict(found) == "1 thing is wrong, no warnings"
