"""Around the training of one of several ranks: it joins them, and if one fails, all end."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import urlparse

import torch
import torch.distributed as dist

from esrl_fairseq.compat import ranks_store, take_group
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.processes.connections import Connections, open_sockets
from esrl_fairseq.processes.watch import Watch, limit_of
from esrl_fairseq.signals import STOP

logger = logging.getLogger(__name__)

MARGIN = 30
"""Seconds that torch's own limits are behind ours, which know more."""

JOIN = 150
"""Seconds in which the ranks find each other, where ``--heartbeat-timeout`` gives none."""

current: Watch | None = None
"""Of this process, while it is one of several ranks."""


def join(cfg: Any) -> None:
    """Find the other ranks, and begin to watch them.

    Args:
        cfg: fairseq's.

    Raises:
        EsrlError: they cannot be found.
        SystemExit: it was interrupted; a process that fairseq started would end with exit code 0.
    """
    global current
    ranks, limit = cfg.distributed_training, limit_of(cfg.distributed_training)
    if cfg.common.tpu or dist.is_initialized():
        return
    wait = ranks.heartbeat_timeout if ranks.heartbeat_timeout > 0 else JOIN
    before, method = open_sockets(), ranks.distributed_init_method
    rank, size = ranks.distributed_rank, ranks.distributed_world_size
    logger.info("rank %d of %d waits up to %d seconds for the others: %s", rank, size, wait, method)
    try:
        dist.init_process_group(
            ranks.distributed_backend, method, timedelta(seconds=wait), size, rank
        )
        take_group(timedelta(seconds=limit + MARGIN))
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except (RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise sentence(
            f"rank {rank} of {size} did not find the others by {method} within {wait} seconds "
            f"(--heartbeat-timeout): do all run, each with a --distributed-rank of its own, and is "
            f"the port free? ({why})"
        ) from error
    STOP.listen()
    if dist.get_backend() == "nccl":
        dist.all_reduce(torch.zeros(1).cuda())
    connections = Connections(before, port_of_store(method))
    current = Watch(ranks_store(), dist.get_rank(), size, limit, connections)
    current.start()


def port_of_store(method: str) -> int | None:
    """That which the ranks' store listens on."""
    if method.startswith("env:"):
        return int(os.environ["MASTER_PORT"])
    return urlparse(method).port


def lost(error: BaseException) -> bool:
    """Whether the other ranks, or the way to them, failed a collective operation."""
    if not (dist.is_initialized() and isinstance(error, RuntimeError)):
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in text or "nccl" in text


def step(words: str) -> None:
    """This rank begins what all ranks do."""
    if current is not None:
        current.step(words)


def part(last: bool) -> None:
    """It has finished a part of it, or the last one."""
    if current is not None:
        current.part(last)


def saving() -> None:
    """It saves a checkpoint, as not all ranks do."""
    if current is not None:
        current.saving()


def watched() -> bool:
    """Whether this process is watched."""
    return current is not None


def rescue_by(save: Callable[[], str]) -> None:
    """Have ``save`` keep what there is if the other ranks fail; it says what came of it."""
    if current is not None:
        current.rescue = save


def sentence(text: str) -> SystemExit:
    """The error that ends a rank with a sentence; torch shows any other as a traceback."""
    started_by_fairseq = multiprocessing.parent_process() is not None
    return SystemExit(text) if started_by_fairseq else EsrlError(text)


class Guarded:
    """fairseq's ``main`` of a rank; it can be sent to the processes that fairseq starts.

    Args:
        main: fairseq's.
    """

    def __init__(self, main: Any):
        self.main = main

    def __call__(self, cfg: Any, **keywords: Any) -> None:
        try:
            self.guard(cfg, keywords)
        except EsrlError as error:
            raise sentence(str(error)) from error

    def guard(self, cfg: Any, keywords: dict[str, Any]) -> None:
        """The same; an error ends all ranks."""
        try:
            self.main(cfg, **keywords)
        except BaseException as error:
            if current is not None:
                fail(current, error)
            raise
        finally:
            if current is not None:
                current.end()


def fail(watch: Watch, error: BaseException) -> None:
    """This rank cannot go on: neither can the others, and the first one saves what there is."""
    watch.ending = True
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        raise error  # an end that all ranks agreed on
    if not lost(error):
        watch.publish(f"rank {watch.rank} of {watch.size} failed: {in_words(error)}")
        watch.end()
        watch.wait_for_others()
        raise error
    saved = rescue(watch)
    verdict = watch.find_gone() or f"the connection between the ranks was lost ({in_words(error)})"
    watch.verdict = verdict
    watch.publish(verdict)
    raise SystemExit("; ".join(filter(None, [verdict, saved])))


def rescue(watch: Watch) -> str:
    """Save what there is; what came of it. A launcher that ends all ranks has to wait for it."""
    if watch.rescue is None:
        return ""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN) if in_main else None
    try:
        return watch.rescue()
    except (Exception, SystemExit) as error:
        return f"the last state could not be saved ({in_words(error)})"
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


def in_words(error: BaseException) -> str:
    """The first line of an error, with its kind where that tells something."""
    text = (str(error).splitlines() or [""])[0]
    return text if isinstance(error, SystemExit) else f"{type(error).__name__}: {text}"
