"""Threads and processes that a reward starts and leaves: they do not keep the process from ending.

Python waits at its end for threads, for the work of ``concurrent.futures`` and for processes of
``multiprocessing``, for ever if need be. A training that is over would then never end.
"""

from __future__ import annotations

import atexit
import concurrent.futures.process
import concurrent.futures.thread
import multiprocessing
import os
import threading
from multiprocessing.process import BaseProcess

SECONDS = 1.0
"""That processes have for their end before they are killed."""
_children: set[BaseProcess] = set()
_process = 0  # whose children they are


class Leftovers:
    """What runs now; :meth:`look` finds what has come since."""

    def __init__(self) -> None:
        self.threads = set(threading.enumerate())
        self.children = set(multiprocessing.active_children())
        # What a thread starts is what it is itself: Python waits for no daemons.
        self.thread = threading.current_thread()
        self.daemon = getattr(self.thread, "_daemonic", False)
        self.thread._daemonic = True  # type: ignore[attr-defined]

    def look(self) -> None:
        """Let Python's end wait for none of them. (Processes that have ended are cleared away.)"""
        self.thread._daemonic = self.daemon  # type: ignore[attr-defined]
        threads = set(threading.enumerate()) - self.threads
        for waited_for in (
            getattr(concurrent.futures.thread, "_threads_queues", {}),
            getattr(concurrent.futures.process, "_threads_wakeups", {}),
        ):
            for thread in threads:
                waited_for.pop(thread, None)
        children = set(multiprocessing.active_children()) - self.children
        if children:
            _end_at_exit(children)


def _end_at_exit(children: set[BaseProcess]) -> None:
    global _process
    if _process != os.getpid():
        _process = os.getpid()
        _children.clear()
        atexit.register(_end_children)  # comes before multiprocessing's own, which waits
    _children.difference_update([child for child in _children if not child.is_alive()])
    _children.update(children)


def _end_children() -> None:
    if _process != os.getpid():
        return
    left = [child for child in _children if child.is_alive()]
    for child in left:
        child.terminate()
    for child in left:
        child.join(SECONDS)
        if child.is_alive():
            child.kill()
