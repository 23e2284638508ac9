"""Asks a process of its own to import things, and takes down what came of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROBE = Path(__file__).with_name("probe.py")
TIMEOUT = 300
"""Seconds for all of them together; from a slow network drive an import may take a minute."""

Answers = dict[str, dict[str, Any]]
"""Of each thing: its version, place and so on; ``error`` where it cannot be imported."""


def ask(names: Sequence[str]) -> Answers:
    """What :mod:`~esrl_fairseq.doctor.probe` says of each name; where one takes the process with
    it, another process is asked about those that follow."""
    found: Answers = {}
    left = list(names)
    while left:
        answers, begun, why = ask_once(left)
        found.update(answers)
        if begun and begun not in found:
            found[begun] = {"error": why}
        after = left.index(begun) + 1 if begun else len(left)
        for name in left[:after]:
            found.setdefault(name, {"error": why})
        left = left[after:]
    return found


def ask_once(names: Sequence[str]) -> tuple[Answers, str, str]:
    """Answers of one process, the name that it began last, and how it ended."""
    given = json.dumps({"path": sys.path, "names": list(names)})
    command = [sys.executable, str(PROBE), given]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        out, err, code = done.stdout, done.stderr, done.returncode
        why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except subprocess.TimeoutExpired as late:
        out, err = map(as_text, (late.stdout, late.stderr))
        why = f"not over after {TIMEOUT} seconds"
    said = [json.loads(line) for line in out.splitlines() if line.endswith("}")]
    begun = next((line["begun"] for line in reversed(said) if "begun" in line), "")
    answers = {line.pop("name"): line for line in said if "name" in line}
    last = (err.strip().splitlines() or [""])[-1]
    return answers, begun, f"Python itself ends there ({why}{': ' if last else ''}{last[:200]})"


def as_text(output: str | bytes | None) -> str:
    """What a process that did not end has written."""
    return output.decode("utf-8", "replace") if isinstance(output, bytes) else output or ""
