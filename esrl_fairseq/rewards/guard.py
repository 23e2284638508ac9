"""A reward is somebody's code in the middle of training: what it changes is put back after it.

One context manager, :class:`Guard`, stands around every call. It costs some 0.2 ms a batch.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import torch

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.leftovers import Leftovers
from esrl_fairseq.rewards.states import STATES
from esrl_fairseq.rewards.streams import Streams

logger = logging.getLogger(__name__)

SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM")
    if hasattr(signal, name)
]
"""What schedulers and people end a run with, and the clock. (SIGCHLD is torch's data loader's.)"""
MANY = 100
"""Threads or processes left behind by a reward that are worth a warning."""
_said: set[tuple[str, str]] = set()
"""Rewards and what they were warned of; once each."""
_at_first: dict[str, dict[str, int]] = {}
"""Threads and processes that ran before a reward was first asked, by its name."""


class Guard:
    """Around a call of a reward, or of what builds one.

    Put back afterwards are `STATES`, signal handlers, what the process prints to and, with a
    `seed`, all generators of random numbers. A warning says so, once for each reward and change.
    What the call starts and leaves, threads or processes, does not keep the process from ending. A
    copy of the process that the call makes (``os.fork``) ends with the call.

    Args:
        name: of the reward, for messages.
        seed: what its random numbers are made of, so that they depend on nothing that was drawn
            before; None leaves all generators as they are.
    """

    def __init__(self, name: str, seed: str | None = None):
        self.name, self.seed = name, seed
        self.not_its_own: BaseException | None = None

    def __enter__(self) -> Guard:
        self.process = os.getpid()
        if self.name not in _at_first:
            _at_first[self.name] = _running()
        self.states = [state.get() for state in STATES]
        self.streams = Streams()
        self.leftovers = Leftovers()
        self.inference_mode = torch.is_inference_mode_enabled()
        self.generators = None if self.seed is None else _seeded(self.seed)
        self.handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.getsignal(number) for number in SIGNALS}
            self.timer = signal.getitimer(signal.ITIMER_REAL)
            self.wakes = signal.set_wakeup_fd(-1)
            signal.set_wakeup_fd(self.wakes, warn_on_full_buffer=False)
            self.wrapped = {
                number: self._wrap(number, handler)
                for number, handler in self.handlers.items()
                if callable(handler)
            }
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if os.getpid() != self.process:
            self._end_copy(error)
        changed = self._put_signals_back()
        if self.generators is not None:
            _put_generators(self.generators)
        self._look_after_leftovers()
        lasting = ""
        for state, before in zip(STATES, self.states):
            if before is None or state.same(before, state.get()):
                continue
            try:
                state.put(before)
                changed.append(state.name)
            except Exception as why:
                lasting = f"changed {state.name}, and it cannot be put back ({why})"
        changed += self.streams.put_back()  # knows what log handlers write to, once they are back
        for what in changed:
            self._warn(what, f"changed {what}, which is put back after every call of a reward")
        if torch.is_inference_mode_enabled() and not self.inference_mode:
            lasting = (
                "left torch's inference mode switched on, in which nothing can be trained: use it "
                "as 'with torch.inference_mode():'"
            )
        if lasting:
            self.not_its_own = EsrlError(f"reward {self.name!r} {lasting}")
            raise self.not_its_own

    def came_from_outside(self, error: BaseException) -> bool:
        """Whether a signal's handler or this guard raised it, and not the reward."""
        return error is self.not_its_own

    def _wrap(self, number: int, handler: Callable[[int, FrameType | None], Any]) -> Any:
        """Let an exception of a handler be told from the reward's own."""

        def call(signal_number: int, frame: FrameType | None) -> Any:
            try:
                return handler(signal_number, frame)
            except BaseException as error:
                self.not_its_own = error
                raise

        signal.signal(number, call)
        return call

    def _put_signals_back(self) -> list[str]:
        changed = []
        for number, handler in self.handlers.items():
            now = signal.getsignal(number)
            if now is not self.wrapped.get(number, handler) and now != handler:
                changed.append(f"the handler of {signal.Signals(number).name}")
            if now is not handler and handler is not None:  # None: not installed from Python
                signal.signal(number, handler)
        if self.handlers and self.timer[0] == 0 and signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, 0)
            changed.append("the alarm clock")
        if (
            self.handlers
            and signal.set_wakeup_fd(self.wakes, warn_on_full_buffer=False) != self.wakes
        ):
            changed.append("what signals wake up")
        return changed

    def _look_after_leftovers(self) -> None:
        self.leftovers.look()
        for kind, number in _running().items():
            if number - _at_first[self.name][kind] > MANY:
                self._warn(
                    kind,
                    f"was called, and now {number} {kind} run: if it starts some in each call, "
                    "let it end them, too",
                )

    def _end_copy(self, error: BaseException | None) -> None:
        """In a copy of the process: nothing after the call is its business."""
        code = error.code if isinstance(error, SystemExit) else 1
        if error is None:
            os.write(
                2,
                f"reward {self.name!r} called os.fork() and returned twice: the copy of the "
                "process was ended; let it call os._exit() where its work is done\n".encode(),
            )
        os._exit(code if isinstance(code, int) else int(code is not None))

    def _warn(self, what: str, sentence: str) -> None:
        if (self.name, what) not in _said:
            _said.add((self.name, what))
            logger.warning("reward %r %s", self.name, sentence)


def _running() -> dict[str, int]:
    """How many threads and processes of their own the process has."""
    return {
        "threads": threading.active_count(),
        "processes": len(multiprocessing.active_children()),
    }


def _seeded(seed: str) -> tuple[Any, ...]:
    """Seed all generators; what they were before."""
    cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    before = (
        random.getstate(),
        np.random.get_state(),
        torch.get_rng_state(),
        [(generator, generator.get_state()) for generator in cuda],
    )
    number = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=4).digest(), "big")
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)
    for generator in cuda:
        generator.manual_seed(number)
    return before


def _put_generators(before: tuple[Any, ...]) -> None:
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])
    for generator, state in before[3]:
        generator.set_state(state)
