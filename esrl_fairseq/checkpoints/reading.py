"""Nothing of a checkpoint is trusted before all of it was read and compared with its checksums.

A run's own last checkpoint that is damaged is replaced by the newest whole one beside it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re

import torch
from fairseq.file_io import PathManager

from esrl_fairseq.checkpoints.archive import Damaged, check_archive
from esrl_fairseq.errors import EsrlError

logger = logging.getLogger(__name__)

ANOTHER = "give a checkpoint of fairseq-train, such as checkpoint_best.pt in its --save-dir"


def check_file(path: str, named: str = "the checkpoint", mend: str = ANOTHER) -> None:
    """Refuse what is no whole checkpoint, before any of it is used.

    A pickle, as torch before 1.6 wrote them, has no checksums.

    Args:
        named: what names the file, for messages: an option, or what it is for.
        mend: what to do where it is none.

    Raises:
        EsrlError: it is missing, empty, cut off, damaged or no checkpoint.
    """
    problem = problem_of(PathManager.get_local_path(path))
    if problem:
        raise EsrlError(f"{named} {path} {problem}: {mend}")


def problem_of(path: str) -> str:
    """Why a local file is no whole checkpoint, to follow its name; empty if it is one."""
    problem = look_at(path)
    try:
        if problem or not is_archive(path):
            return problem
        stat = os.stat(path)
        return damage(path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


@functools.lru_cache(maxsize=256)
def damage(path: str, *version: int) -> str:
    """What is damaged in an archive, read once for each version of the file; empty if nothing."""
    try:
        check_archive(path)
    except Damaged as found:
        return str(found)
    return ""


def sha256(path: str) -> str:
    """Of a file; empty where it cannot be read, such as a model of the hub."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


def is_archive(path: str) -> bool:
    """Whether it begins as one, and not as a pickle."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def look_at(path: str) -> str:
    """What the file is if it cannot be a checkpoint; empty if it can."""
    if not os.path.exists(path):
        return "does not exist"
    if os.path.isdir(path):
        return "is a folder" + inside(path)
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not head:
        return "is empty"
    if head.startswith((b"PK", b"\x80")):  # an archive; a pickle, as torch before 1.6 wrote them
        return ""
    if head.startswith(b"GGUF") or head[8:9] == b"{":
        return "holds weights alone (a model of Hugging Face is for --hf-model)"
    printable = all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)
    return "is a text file" if printable else "is no checkpoint"


def inside(folder: str) -> str:
    """What a folder holds that may be meant, in brackets."""
    found = sorted(name for name in os.listdir(folder) if name.endswith(".pt"))
    if "checkpoint_best.pt" in found:
        found = ["checkpoint_best.pt"]
    if found:
        return f" (with {found[0]})"
    if os.path.exists(os.path.join(folder, "config.json")):
        return " (a model of Hugging Face is for --hf-model)"
    return ""


def why_not_loaded(error: Exception) -> str:
    """What ``torch.load`` said, in a few words."""
    forbidden = re.search(r"GLOBAL (\S+)|class (\S+) was not an allowed", str(error))
    if forbidden:
        name = forbidden[1] or forbidden[2]
        return f"wants to run {name}, which torch's safe loader refused; nothing of it was executed"
    return f"is cut off, damaged or no checkpoint ({type(error).__name__})"


def not_loaded(path: str, error: Exception) -> EsrlError:
    """The sentence for a file that passed :func:`check_file` and yet cannot be loaded."""
    if isinstance(error, EsrlError):
        return error
    return EsrlError(f"the checkpoint {path} {why_not_loaded(error)}: {ANOTHER}")


def own_last(folder: str, suffix: str = "") -> str:
    """The file that a run goes on from: its last checkpoint, or the newest whole one instead.

    Args:
        folder: ``--save-dir``.
        suffix: of this rank's checkpoint files.

    Returns:
        Empty where the run has no last checkpoint.

    Raises:
        EsrlError: the last checkpoint is damaged, and there is no whole one beside it; or it is a
            link to nowhere, or on a disk that does not answer.
    """
    last = os.path.join(folder, f"checkpoint_last{suffix}.pt")
    try:
        os.stat(last)
    except OSError as error:
        absent = isinstance(error, (FileNotFoundError, NotADirectoryError))
        if absent and not os.path.islink(last):
            return ""
        raise EsrlError(
            f"the last checkpoint of this run, {last}, is there but cannot be read "
            f"({error.strerror}): mount its disk, or move it away to start anew"
        ) from error
    problem = problem_of(last)
    if not problem:
        return last
    stat = os.stat(last)
    return instead_of(last, problem, suffix, stat.st_ino, stat.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def instead_of(last: str, problem: str, suffix: str, *version: int) -> str:
    """The newest whole checkpoint beside ``last``, with a warning, once for each version of it.

    Raises:
        EsrlError: there is none.
    """
    folder = os.path.dirname(last)
    name = re.compile(rf"checkpoint(\d+|_\d+_\d+|_best|\.best_.+)?{re.escape(suffix)}\.pt")
    others = [os.path.join(folder, file) for file in os.listdir(folder) if name.fullmatch(file)]
    others = [path for path in others if updates_of(path) >= 0]
    for path in sorted(others, key=lambda path: (updates_of(path), path), reverse=True):
        if not problem_of(path):
            logger.warning(
                "the last checkpoint of this run, %s %s: it goes on from the newest whole one, %s "
                "(after update %d)",
                *(last, problem, path, updates_of(path)),
            )
            return path
    raise EsrlError(
        f"the last checkpoint of this run, {last} {problem}, and no other one in {folder} is "
        "whole: put a copy of one there, move it away to start anew, or choose another --save-dir"
    )


def updates_of(path: str) -> int:
    """After how many updates a checkpoint was saved; -1 where it cannot be told."""
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return int(state["optimizer_history"][-1]["num_updates"])
    except Exception:  # whatever a damaged file leads to
        return -1
