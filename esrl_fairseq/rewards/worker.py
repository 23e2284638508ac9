"""The processes of ``--reward-workers``: they make rewards and are asked by the trainer.

They end with the trainer, however that ends, and not by the signals that end the trainer: these go
to all processes of a terminal or a job, and the trainer has its update to finish.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NoReturn

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.answers import as_scores
from esrl_fairseq.rewards.base import Reward
from esrl_fairseq.rewards.build import build_reward
from esrl_fairseq.rewards.guard import Guard
from esrl_fairseq.rewards.messages import READY, Question, Raised, Said, Spec

IGNORED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
WHEN_PARENT_DIES = 1
"""PR_SET_PDEATHSIG of Linux."""
LOOK_EVERY = 1.0
"""Seconds between two looks whether the parent is still there, where Linux does not tell."""
CHILDREN_EVERY = 0.1
"""Seconds between two looks at which workers have ended."""


def main(trainer: int, in_main_thread: bool, reports: int, descriptors: Sequence[int]) -> None:
    """Start a worker for each descriptor, once all is imported, and tell of their ends.

    This process has no thread and no reward, so that copies of it are whole.

    Args:
        trainer: its process id.
        in_main_thread: whether it started this process there: Linux takes the end of another thread
            for the end of the trainer.
        reports: descriptor of the connection that takes (number of a worker, status of its end).
        descriptors: of the workers' connections.
    """
    if in_main_thread:
        _end_with(trainer)
    for name in IGNORED:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    gc.freeze()  # what is imported is then shared
    numbers: dict[int, int] = {}
    nursery = os.getpid()
    for number, descriptor in enumerate(descriptors):
        pid = os.fork()
        if not pid:
            for other in (reports, *descriptors):
                if other != descriptor:
                    os.close(other)
            if number:  # one warning of all will do
                logging.root.setLevel(logging.ERROR)
            _work(descriptor, nursery)
        numbers[pid] = number
    for descriptor in descriptors:
        os.close(descriptor)
    connection = Connection(reports)
    with contextlib.suppress(OSError):  # the trainer is gone
        while numbers and os.getppid() == trainer:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in numbers:
                connection.send((numbers.pop(pid), os.waitstatus_to_exitcode(status)))
            else:
                time.sleep(CHILDREN_EVERY)
    os._exit(0)


def _work(descriptor: int, parent: int) -> NoReturn:
    """Answer questions until the trainer is gone."""
    _end_with(parent)
    threading.Thread(target=_look_after, args=(parent,), daemon=True, name="look-after").start()
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):
        rewards = _made(connection.recv())
        connection.send(READY)
        while True:
            connection.send(_answer(rewards, connection.recv()))
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # the reward has closed it
                    stream.flush()
    os._exit(0)  # whatever a reward has left behind


def _end_with(parent: int) -> None:
    """Be killed when the parent ends, also in the middle of a call."""
    with contextlib.suppress(AttributeError, OSError):  # no Linux
        ctypes.CDLL(None).prctl(WHEN_PARENT_DIES, signal.SIGKILL)
    if os.getppid() != parent:  # it was sooner
        os._exit(0)


def _look_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os._exit(0)


def _made(specs: Sequence[Spec]) -> dict[str, Reward | Raised]:
    """The rewards by their names, or what making one raised, which its first question tells."""
    rewards: dict[str, Reward | Raised] = {}
    for spec in specs:
        try:
            importlib.import_module(spec.module)
            rewards[spec.name] = build_reward(spec.name, {spec.name: spec.options})
        except BaseException as error:
            rewards[spec.name] = _raised(error)
    return rewards


def _answer(rewards: dict[str, Reward | Raised], question: Question) -> Said | Raised:
    reward = rewards[question.name]
    if isinstance(reward, Raised):
        return reward
    rows = len(question.row_input)  # the lists are the reward's own, which it may change
    try:
        with Guard(question.name, question.seed):
            scores, counts = reward.answer(
                question.sources, question.references, question.hypotheses, question.row_input
            )
            return Said(as_scores(scores, rows), counts)
    except BaseException as error:
        return _raised(error)


def _raised(error: BaseException) -> Raised:
    return Raised(
        type(error).__name__,
        str(error),
        "".join(traceback.format_exception(type(error), error, error.__traceback__)),
        isinstance(error, EsrlError),
    )
