"""Where and with what something was measured, for scripts that need not import torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch fairseq-fixed fairseq numpy sacrebleu transformers trl ctranslate2 "
    "sentence-transformers bert-score unbabel-comet"
).split()

Row = dict[str, Any]


def about(gpu: str = "") -> Row:
    """Machine, commit and versions.

    Args:
        gpu: name of the GPU that is used, if one is.
    """
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "machine": _machine(gpu),
        "commit": _commit(),
        "versions": {"python": platform.python_version()}
        | {name: version for name, version in versions.items() if version},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine(gpu: str) -> str:
    name = first_match("/proc/cpuinfo", r"model name\s*:\s*(.*)") or platform.processor()
    memory = int(first_match("/proc/meminfo", r"MemTotal:\s*(\d+)") or 0)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{name or platform.machine()}, {cpus} CPUs, {memory / 1e6:.0f} GB, {platform.system()}"
    return text + (f", {gpu}" if gpu else "")


def first_match(path: str, pattern: str) -> str | None:
    """The group of the pattern's first match in a file; None without one, or without the file."""
    try:
        found = re.search(pattern, Path(path).read_text())
    except OSError:
        return None
    return found and found[1].strip()


def _commit() -> str:
    """The checkout's commit; ``+changes`` when code of package or benchmarks differs from it."""
    code = ("esrl_fairseq", "benchmarks", ":!benchmarks/study/*.json")
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", *code)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
