"""What a program prints to, held while a reward is asked, which may close or exchange it."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

STDOUT, STDERR = 1, 2
_copies: dict[int, tuple[tuple[int, int] | None, int]] = {}
"""Of a file descriptor: what it led to, and a copy of it."""


class Streams:
    """``sys.stdout``, ``sys.stderr`` and what file descriptors 1 and 2 lead to, as they are now."""

    def __init__(self) -> None:
        self.stdin, self.stdout, self.stderr = sys.stdin, sys.stdout, sys.stderr
        for descriptor in (STDOUT, STDERR):
            _keep(descriptor)

    def put_back(self) -> list[str]:
        """Undo what has changed; its names."""
        changed = []
        for descriptor, name in ((STDOUT, "standard output"), (STDERR, "standard error")):
            target, copy = _copies.get(descriptor, (None, -1))
            if target is not None and _target(descriptor) != target:
                os.dup2(copy, descriptor)
                changed.append(name)
        for name in ("stdin", "stdout", "stderr"):
            stream = getattr(self, name)
            now = getattr(sys, name)
            if now is not stream:
                setattr(sys, name, stream)
                changed.append(f"sys.{name}")
            del now  # a wrapper of the same buffer, which closes it as it goes
        for name, descriptor in (("stdout", STDOUT), ("stderr", STDERR)):
            stream = getattr(self, name)
            if descriptor in _copies and _is_dead(stream):
                _replace(name, stream, descriptor)
                changed.append(f"sys.{name}")
        return list(dict.fromkeys(changed))


def _is_dead(stream: Any) -> bool:
    """Whether it is closed, or a reward took its buffer from it."""
    try:
        return bool(getattr(stream, "closed", False))
    except ValueError:
        return True


def _of(stream: Any, name: str) -> str | None:
    """An attribute of a stream that may be dead."""
    try:
        found: str | None = getattr(stream, name, None)
    except ValueError:
        return None
    return found


def _keep(descriptor: int) -> None:
    """Have a copy of what the descriptor leads to now, if it is open."""
    target = _target(descriptor)
    known, copy = _copies.get(descriptor, (None, -1))
    if target is None or target == known:
        return
    if copy >= 0:
        os.close(copy)
    _copies[descriptor] = target, os.dup(descriptor)


def _target(descriptor: int) -> tuple[int, int] | None:
    """What tells files, pipes and terminals apart; None of a closed descriptor."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _replace(name: str, closed: Any, descriptor: int) -> None:
    """A new stream instead of a closed one, also for the handlers of the log that write to it."""
    # Open as long as the process: what closes it would be a reward again.
    stream = open(  # noqa: SIM115
        descriptor,
        "w",
        encoding=_of(closed, "encoding"),
        errors=_of(closed, "errors"),
        buffering=1,
        closefd=False,
    )
    setattr(sys, name, stream)
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            if getattr(handler, "stream", None) is closed:
                handler.acquire()
                handler.stream = stream  # setStream would flush the closed one
                handler.release()
