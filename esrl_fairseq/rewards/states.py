"""What of the whole process a reward can change, and how it is put back (see guard.py)."""

from __future__ import annotations

import gc
import logging
import operator
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

AS_MADE = False, logging.NOTSET, True, ()
"""A logger's settings that nobody has changed."""


class State(NamedTuple):
    """Something of the whole process that a reward can change."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], Any]
    same: Callable[[Any, Any], bool] = operator.eq
    """Whether it needs no putting back: what it was before, what it is now."""


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _cuda_device() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None


def _put_log(state: tuple[int, int, tuple[logging.Handler, ...]]) -> None:
    logging.disable(state[0])
    logging.root.setLevel(state[1])
    logging.root.handlers[:] = state[2]


def _put_cudnn(switches: tuple[bool, bool]) -> None:
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = switches


Loggers = dict[str, tuple[bool, int, bool, tuple[logging.Handler, ...]]]


def _loggers() -> Loggers:
    """What is set of fairseq's loggers and ours. Configuring the log switches off those that the
    configuration does not name."""
    found = {}
    for name, one in list(logging.root.manager.loggerDict.items()):
        if isinstance(one, logging.Logger) and name.startswith(("fairseq", "esrl_fairseq")):
            settings = one.disabled, one.level, one.propagate, tuple(one.handlers)
            if settings != AS_MADE:
                found[name] = settings
    return found


def _put_loggers(before: Loggers) -> None:
    for name in {*before, *_loggers()}:
        one = logging.getLogger(name)
        one.disabled, level, one.propagate, handlers = before.get(name, AS_MADE)
        one.setLevel(level)
        one.handlers[:] = handlers


def _raising() -> list[Any]:
    """Filters that make errors of warnings."""
    return [kind for kind in warnings.filters if kind[0] == "error"]


def _put_raising(before: list[Any]) -> None:
    kept = [kind for kind in warnings.filters if kind[0] != "error" or kind in before]
    warnings.filters[:] = kept  # type: ignore[index]
    with warnings.catch_warnings():  # lets what is cached of them be forgotten
        pass


def _put_path(before: list[str]) -> None:
    sys.path[:] = [*before, *(folder for folder in sys.path if folder not in before)]


STATES = (
    State("torch's gradient mode", torch.is_grad_enabled, torch.set_grad_enabled),
    State("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    State(
        "torch's default device",
        lambda: torch.get_default_device(),
        # Without one, torch is faster than with the CPU as one.
        lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    ),
    State("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    State(
        "torch's deterministic algorithms",
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        lambda both: torch.use_deterministic_algorithms(both[0], warn_only=both[1]),
    ),
    State(
        "cuDNN's switches",
        lambda: (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        _put_cudnn,
    ),
    State(
        "torch's autocast",
        lambda: (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        lambda both: (
            torch.set_autocast_enabled("cpu", both[0]),
            torch.set_autocast_enabled("cuda", both[1]),
        ),
    ),
    State(
        "the current CUDA device",
        _cuda_device,
        lambda device: None if device is None else torch.cuda.set_device(device),
    ),
    State("numpy's handling of errors", np.geterr, lambda state: np.seterr(**state)),
    State(
        "the working directory",
        _folder,
        lambda folder: None if folder is None else os.chdir(folder),
    ),
    State(
        "the level or the handlers of the log",
        lambda: (logging.root.manager.disable, logging.root.level, tuple(logging.root.handlers)),
        _put_log,
    ),
    State("fairseq's loggers", _loggers, _put_loggers),
    State("warnings into errors", _raising, _put_raising),
    State(
        "where Python looks for modules",
        lambda: list(sys.path),
        _put_path,
        lambda before, now: set(before) <= set(now),  # a reward may add folders of its own
    ),
    State(
        "torch's precision of matrix products",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    State(
        "torch's search for anomalies",
        torch.is_anomaly_enabled,
        torch.autograd.set_detect_anomaly,
    ),
    State(
        "garbage collection", gc.isenabled, lambda enabled: gc.enable() if enabled else gc.disable()
    ),
)
