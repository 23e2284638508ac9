"""The clock beside a reward: it is not waited for longer than ``--reward-timeout``."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

GRACE = 5.0
"""Seconds that a reward has for its end once its time is up; then the process is ended."""
EVERY = 1.0
"""Seconds between two interruptions of a reward whose time is up, and two looks at the clock."""
SAVING = 900.0
"""Seconds that saving the state may take, before the process is ended without."""
STDERR = 2


class TimeIsUp(BaseException):
    """Raised in a reward that takes too long; no ``Exception``, which rewards like to catch."""


class Watch:
    """Ends calls that take too long, with what there is to end them.

    A signal interrupts whatever Python runs and most of what waits. Where a reward goes on
    nevertheless, a thread says what the matter is, has the state saved and ends the process. Where
    not even that thread can run, because compiled code never lets go of the interpreter, the
    process ends with a list of what ran.

    Args:
        seconds: that a call may take; 0 for ever.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.last_words: Callable[[str], str] = lambda sentence: sentence
        """From the sentence to what is printed before the process is ended; may save."""
        self.expired = False
        """Whether the last call took too long."""
        self._deadline: float | None = None
        self._sentence: Callable[[], str] = str
        self._lock = threading.RLock()
        self._process = 0  # in which the thread runs

    def begin(self, sentence: Callable[[], str]) -> None:
        """A call follows; `sentence` tells what is the matter if it takes too long."""
        self.expired = False
        if not self.seconds:
            return
        if self._process != os.getpid():
            self._process = os.getpid()
            threading.Thread(target=self._look, daemon=True, name="reward-timeout").start()
        self._sentence = sentence
        self._deadline = time.monotonic() + self.seconds
        faulthandler.dump_traceback_later(self.seconds + 2 * GRACE, exit=True, file=STDERR)
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:
            self._handler = signal.signal(signal.SIGALRM, self._interrupt)
            self._timer = signal.setitimer(signal.ITIMER_REAL, self.seconds, EVERY)

    def end(self) -> None:
        """The call is over."""
        if not self.seconds or self._process != os.getpid():  # a copy, in which no clock runs
            return
        try:
            self._disarm()
        except TimeIsUp:  # in the last moment
            self._disarm()
            raise

    def _disarm(self) -> None:
        with self._lock:  # the thread has it while it ends the process
            self._deadline = None
        if self._in_main:
            signal.setitimer(signal.ITIMER_REAL, *self._timer)
            signal.signal(signal.SIGALRM, self._handler)
        faulthandler.cancel_dump_traceback_later()

    def _interrupt(self, number: int, frame: Any) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.expired = True
            raise TimeIsUp

    def _look(self) -> None:
        while True:
            time.sleep(EVERY)
            with self._lock:
                deadline = self._deadline
                if deadline is not None and time.monotonic() > deadline + GRACE:
                    self._end_process()

    def _end_process(self) -> None:
        # Saving takes its time, but may wait for what the call holds.
        faulthandler.dump_traceback_later(SAVING, exit=True, file=STDERR)
        sentence = self._sentence()
        try:
            sentence = self.last_words(sentence)
        except BaseException as error:
            sentence = f"{sentence}; saving the state failed ({type(error).__name__}: {error})"
        os.write(STDERR, f"{sentence}\n".encode())
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # the reward has closed it
                stream.flush()
        os._exit(1)
