"""The process that starts the ranks of its GPUs. It trains nothing, and ends when they have."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any

from torch.multiprocessing.spawn import ProcessExitedException

from esrl_fairseq.processes.running import MARGIN
from esrl_fairseq.processes.watch import GRACE, limit_of
from esrl_fairseq.signals import SIGNALS

logger = logging.getLogger(__name__)


def start_ranks(start: Callable[..., Any], rank: Any, args: tuple[Any, ...], number: int) -> None:
    """Start the ranks, pass signals on to them, and wait until all have ended.

    torch ends the others as soon as one has failed, and kills them after 30 seconds. Ranks of ours
    end by themselves: they save first, and a rank that hears of nothing has the watch's limit.

    Args:
        start: torch's ``spawn``.
        rank, args: what a rank runs, and with what: fairseq's main, its configuration, more.
        number: of ranks.

    Raises:
        SystemExit: a rank has failed, or a signal has ended the run, with its exit code.
    """
    processes: list[Any] = []
    with passing_on(processes) as heard:
        context = start(rank, args=args, nprocs=number, join=False)
        processes += context.processes
        for signal_number in heard:
            send(processes, signal_number)
        wait_for(processes, limit_of(args[1].distributed_training) + MARGIN + GRACE)
        try:
            while not context.join():
                pass
        except ProcessExitedException as error:  # it said why
            raise SystemExit(exit_code(error.exit_code)) from error


@contextlib.contextmanager
def passing_on(processes: list[Any]) -> Iterator[list[int]]:
    """While it lasts, signals go on to the processes, which end by them; those that came."""
    heard: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        heard.append(number)
        send(processes, number)

    own = (signal.SIG_DFL, signal.default_int_handler)
    before = {s: signal.getsignal(s) for s in SIGNALS if signal.getsignal(s) in own}
    for number in before:
        signal.signal(number, pass_on)
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def send(processes: list[Any], number: int) -> None:
    """To those that have not ended."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def wait_for(processes: list[Any], limit: float) -> None:
    """Until all have ended, or the limit after the first that failed is over.

    Args:
        limit: seconds.
    """
    until = None
    while running := [process.sentinel for process in processes if process.exitcode is None]:
        if until is None and any(process.exitcode for process in processes):
            until = time.monotonic() + limit
        left = None if until is None else until - time.monotonic()
        if left is not None and left < 0:
            logger.warning("%d ranks do not end, and are ended", len(running))
            return
        wait(running, left)


def exit_code(code: int) -> int:
    """As a shell's: that of a process ended by a signal is 128 and the signal's number."""
    return code if code > 0 else 128 - code
