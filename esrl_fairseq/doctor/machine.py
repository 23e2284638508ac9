"""The machine: GPUs, processors, memory, disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from esrl_fairseq.doctor.asking import Answers
from esrl_fairseq.doctor.findings import OK, WARNING, WRONG, Finding

LITTLE_MEMORY, LITTLE_DISK, NO_DISK = 2e9, 5e9, 1e8
"""Bytes below which there is a warning; without NO_DISK hardly any checkpoint can be saved."""
BUSY = 0.5
"""Share of a GPU's memory that is free; below it somebody else is there."""
GROUP = Path("/sys/fs/cgroup")
"""Where Linux tells the limits of a container."""


def gpus(answers: Answers) -> list[Finding]:
    """Those that torch can use, or why it cannot."""
    torch, answer = answers["torch"], answers["gpus"]
    if "error" in torch:
        return []
    if "error" in answer:
        mend = "nvidia-smi says what the driver knows; --cpu trains without a GPU"
        return [Finding("GPU", WRONG, f"cannot be used: {answer['error']}", mend)]
    found = []
    for number, gpu in enumerate(answer["gpus"]):
        free, total = gpu["memory"]
        says = f"{gpu['name']}, {free / 1e9:.1f} of {total / 1e9:.1f} GB are free"
        what = f"GPU {number}"
        if free < BUSY * total:
            mend = "another process uses it (nvidia-smi): choose another by CUDA_VISIBLE_DEVICES"
            found.append(Finding(what, WARNING, says, mend))
        else:
            found.append(Finding(what, OK, says))
    return found or [no_gpu(torch, answer["said"])]


def no_gpu(torch: dict[str, Any], said: list[str]) -> Finding:
    """Why torch finds none."""
    hidden, driver = os.environ.get("CUDA_VISIBLE_DEVICES"), has_driver()
    if not torch["cuda"]:
        if driver:
            says = f"there is a GPU's driver, but torch {torch['version']} was built without CUDA"
            return Finding("GPU", WARNING, says, "install a torch with CUDA: pytorch.org says how")
        return Finding("GPU", OK, "none, and torch was built without CUDA: training is on the CPU")
    if hidden is not None and hidden.strip() in ("", "-1", "NoDevFiles"):
        says = f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}: training is on the CPU"
        return Finding("GPU", OK, says)
    why = f" ({' '.join(said[0].split())})" if said else ""
    says = f"torch was built for CUDA {torch['cuda']}, but finds none{why}: training is on the CPU"
    mend = "nvidia-smi says whether the driver sees one, and which CUDA it is for"
    return Finding("GPU", WARNING, says, mend)


def has_driver() -> bool:
    """Whether there is NVIDIA's driver."""
    return bool(shutil.which("nvidia-smi")) or os.path.exists("/proc/driver/nvidia/version")


def cores() -> int:
    """Processors that this process may use."""
    try:
        number = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        number = os.cpu_count() or 1
    try:
        quota, period = (GROUP / "cpu.max").read_text().split()
        return max(1, min(number, round(int(quota) / int(period))))
    except (OSError, ValueError):  # none, or no limit
        return number


def processors(torch: dict[str, Any]) -> Finding:
    """Whether torch has as many threads as there are processors."""
    number, threads = cores(), torch.get("threads")
    if threads is None:
        return Finding("processors", OK, str(number))
    says = f"{number}, and torch uses {threads} thread{'s' if threads > 1 else ''}"
    if threads > number:
        mend = f"set OMP_NUM_THREADS={number}: more threads than processors wait for each other"
        return Finding("processors", WARNING, says, mend)
    return Finding("processors", OK, says)


def free_memory() -> float | None:
    """Bytes that can still be had; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        values = {line.split(":")[0]: float(line.split()[1]) * 1024 for line in lines}
        free = values["MemAvailable"]
    except (OSError, ValueError, IndexError, KeyError):
        return None
    try:
        limit = float((GROUP / "memory.max").read_text())
        used = float((GROUP / "memory.current").read_text())
        stat = (line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
        cached = sum(float(value) for name, value in stat if name == "inactive_file")
        return min(free, limit - used + cached)
    except (OSError, ValueError):  # none, or no limit
        return free


def memory() -> Finding:
    """The machine's."""
    free = free_memory()
    if free is None:
        return Finding("memory", OK, "the system does not say how much is free")
    says = f"{free / 1e9:.1f} GB are free"
    if free < LITTLE_MEMORY:
        return Finding("memory", WARNING, says, "end what else runs here")
    return Finding("memory", OK, says)


def existing(folder: str) -> str:
    """The folder, or the nearest one above that there is."""
    path = os.path.abspath(folder)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def disk(folder: str) -> Finding:
    """Room for checkpoints."""
    place = existing(folder)
    free = shutil.disk_usage(place).free
    says = f"{free / 1e9:.1f} GB are free in {place}"
    if free < LITTLE_DISK:
        level = WRONG if free < NO_DISK else WARNING
        return Finding("disk", level, says, "make room, or save on another disk (--save-dir)")
    return Finding("disk", OK, says)
