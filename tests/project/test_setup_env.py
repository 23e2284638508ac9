"""scripts/setup_env.sh: torchaudio stays where it loads, and elsewhere something stands in for it.

pip is a stand-in here, too; scripts/test_extras.sh makes real environments.
"""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "setup_env.sh"
PYTHON = """#!/usr/bin/env bash
echo "$*" >>{log}
case "$*" in
    *" show torchaudio") [[ -z "{audio}" ]] || echo "Version: {audio}" ;;
    *"import torchaudio") exit {loads} ;;
    *version_info*) exit {old} ;;
    *" check") echo "{problems}"; exit {check} ;;
    *"--no-deps"*) cat "${{@: -1}}/pyproject.toml" >{project} ;;
    "-m pip "*) ;;
    *) exec {python} "$@" ;;
esac
"""


def set_up(folder, audio="", loads=1, check=0, problems="fine", extras="", old=0, **variables):
    """Run the script with this torchaudio: its result, pip's calls, and the stand-in's project."""
    log, project = folder / "log", folder / "project"
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    text = PYTHON.format(
        **{"log": log, "project": project, "python": sys.executable, "audio": audio},
        **{"loads": loads, "check": check, "problems": problems, "old": old},
    )
    python.write_text(text)
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(SCRIPT), str(folder / "venv")],
        env={
            "PATH": "/usr/bin:/bin",
            "TORCH": "torch==9 --index-url x",
            "EXTRAS": extras,
            **variables,
        },
        capture_output=True,
        text=True,
    )
    return done, log.read_text(), project.read_text() if project.exists() else ""


def test_one_that_does_not_load(tmp_path):
    done, _, project = set_up(tmp_path, audio="2.11.1+cu130")
    assert done.returncode == 0, done.stderr
    assert 'name = "torchaudio"\nversion = "2.11.1+standin"' in project and "Empty" in project
    assert "torchaudio 2.11.1+cu130 does not load beside this torch" in done.stdout
    assert not (tmp_path / "venv" / ".esrl-unfinished").exists()


@pytest.mark.parametrize("audio, loads", [("2.11.1", 0), ("2.11.1+standin", 1), ("", 1)])
def test_one_that_loads_or_was_replaced_or_is_not_there(audio, loads, tmp_path):
    done, calls, project = set_up(tmp_path, audio=audio, loads=loads)
    assert done.returncode == 0, done.stderr
    assert not project and "--no-deps" not in calls and "stand-in" not in done.stdout


def test_what_is_installed(tmp_path):
    """The extras asked for, and nothing that exchanges the chosen torch."""
    _, calls, _ = set_up(tmp_path, extras="comet,hf")
    installs = [line for line in calls.splitlines() if " install " in line]
    assert installs[0].endswith("torch==9 --index-url x")
    assert all(line.split()[-1].startswith("torch==") for line in installs[2:])
    assert "-e .[dev,demo,comet,hf]" in installs[-1]
    (tmp_path / "without").mkdir()
    _, calls, _ = set_up(tmp_path / "without")  # COMET's library, which py3langid does not fit
    assert "-e .[dev,demo,language]" in calls


@pytest.mark.parametrize(
    "given, used",
    [
        ({}, "constraints.txt"),
        ({"CONSTRAINTS": "mine.txt", "extras": "hf"}, "mine.txt"),
        ({"CONSTRAINTS": ""}, None),
        ({"extras": "hf,comet"}, None),
        ({"extras": "peers"}, None),
    ],
)
def test_versions_are_the_tested_ones(given, used, tmp_path):
    """For all but torch, which has a variable of its own; comet and peers want others."""
    _, calls, _ = set_up(tmp_path, **given)
    torch, *others = [line for line in calls.splitlines() if " install " in line]
    assert " -c " not in torch and len(others) == 3
    assert all((f" -c {used} " in line) if used else (" -c " not in line) for line in others)


def test_a_wheel_takes_the_place_of_the_checkout(tmp_path):
    _, calls, _ = set_up(tmp_path, WHEEL="some.whl", extras="hf")
    assert " some.whl[dev,demo,hf,language] torch==" in calls and "-e" not in calls.split()


def test_a_python_that_is_too_old(tmp_path):
    """Before anything is fetched."""
    done, calls, _ = set_up(tmp_path, old=1)
    assert done.returncode == 1 and "is too old, 3.11 is needed" in done.stderr
    assert " install " not in calls


def test_what_does_not_fit_together(tmp_path):
    done, *_ = set_up(tmp_path, check=1, problems="a requires b")
    assert done.returncode == 1 and "inconsistent" in done.stderr and "a requires b" in done.stderr
    assert (tmp_path / "venv" / ".esrl-unfinished").exists()
