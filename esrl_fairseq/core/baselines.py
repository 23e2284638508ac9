"""Reward baselines b of REINFORCE (docs/method.md 5): one number an update, from past rewards.

Within an update a baseline is only read: rewards are pushed when the update is over, so that b
never depends on the samples that it is subtracted from, and several batches of one update
(``--update-freq``) see the same value. :class:`BatchBaseline` is the exception, and biased for it.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

State = dict[str, NDArray[Any]]


class Baseline(abc.ABC):
    """What every kind has; without any state by default."""

    kind: ClassVar[str]

    @abc.abstractmethod
    def value(self, batch_rewards: ArrayLike) -> float:
        """b for a batch whose own rewards are ``batch_rewards`` [draws]."""

    def push(self, rewards: ArrayLike) -> None:  # noqa: B027 (some kinds remember nothing)
        """An update is over; ``rewards`` are those of all its draws, over all ranks."""

    def state(self) -> State:
        """What a checkpoint has to keep, as arrays by name."""
        return {}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from :meth:`state`, bit by bit.

        Raises:
            ValueError: it is not the state of a baseline of this kind.
        """
        own = self.state()
        if state.keys() != own.keys():
            raise ValueError(f"it holds {sorted(state)}, not {sorted(own)}")
        for name, values in state.items():
            if values.dtype != own[name].dtype or values.ndim != own[name].ndim:
                raise ValueError(f"{name!r} is {values.ndim}-dimensional {values.dtype}")
            if not np.isfinite(values).all():
                raise ValueError(f"{name!r} holds numbers that are not finite")
        self._restore({name: values.copy() for name, values in state.items()})

    def _restore(self, state: State) -> None:  # noqa: B027
        """Take over a state that has the right names, types and dimensions."""


class FifoBaseline(Baseline):
    """Mean of the last ``size`` rewards, first in, first out; oldest first."""

    kind = "fifo"

    def __init__(self, size: int):
        if size < 1:
            raise ValueError(f"the queue size must be at least 1, not {size}")
        self.size = size
        self.rewards: NDArray[np.float32] = np.zeros(0, dtype=np.float32)

    def value(self, batch_rewards: ArrayLike) -> float:
        """b: the queue's mean, or the mean of ``batch_rewards`` while the queue is empty."""
        return _mean(self.rewards) if len(self.rewards) else _mean(batch_rewards)

    def push(self, rewards: ArrayLike) -> None:
        """Append ``rewards`` in order; the oldest beyond ``size`` leave."""
        added = np.asarray(rewards, dtype=np.float32).ravel()
        self.rewards = np.concatenate([self.rewards, added])[-self.size :]

    def state(self) -> State:
        return {"rewards": self.rewards.copy()}

    def _restore(self, state: State) -> None:
        self.rewards = state["rewards"][-self.size :]


class EmaBaseline(Baseline):
    """Exponential moving average of the updates' mean rewards R_t, without bias to its start.

    m_t = d·m_{t−1} + (1 − d)·R_t, b = m_t / (1 − d^t) (Kingma & Ba 2015, section 3). The divisor is
    kept as the sum of the weights in m_t, so that it stays right when a run is resumed with
    another d. Every update weighs the same, however many draws it had.
    """

    kind = "ema"

    def __init__(self, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"the decay must be from 0 to below 1, not {decay}")
        self.decay = decay
        self.sum = self.weight = 0.0

    def value(self, batch_rewards: ArrayLike) -> float:
        """b: the corrected average, or the mean of ``batch_rewards`` before the first update."""
        return self.sum / self.weight if self.weight else _mean(batch_rewards)

    def push(self, rewards: ArrayLike) -> None:
        """Count an update; one without any draw leaves no trace."""
        if np.size(rewards):
            self.sum = self.decay * self.sum + (1 - self.decay) * _mean(rewards)
            self.weight = self.decay * self.weight + (1 - self.decay)

    def state(self) -> State:
        return {"sum": np.array(self.sum), "weight": np.array(self.weight)}

    def _restore(self, state: State) -> None:
        sum_, weight = float(state["sum"]), float(state["weight"])
        if not 0 <= weight <= 1 or (weight == 0 and sum_ != 0):
            raise ValueError(f"the weight is {weight}")
        self.sum, self.weight = sum_, weight


class WindowBaseline(Baseline):
    """Mean of all rewards of the last ``updates`` updates.

    It forgets by updates, the queue by rewards: a queue reaches fewer updates back the larger the
    batch is, and where an update has more draws than the queue has places, it holds those of the
    last batches and ranks only. A window holds whole updates, with any number of draws.
    """

    kind = "window"

    def __init__(self, updates: int):
        if updates < 1:
            raise ValueError(f"the window must be of at least 1 update, not {updates}")
        self.updates = updates
        self.sums: NDArray[np.float64] = np.zeros(0, dtype=np.float64)  # one an update
        self.counts: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def value(self, batch_rewards: ArrayLike) -> float:
        """b: the window's mean, or the mean of ``batch_rewards`` before the first update."""
        if not len(self.counts):
            return _mean(batch_rewards)
        return float(self.sums.sum() / self.counts.sum())

    def push(self, rewards: ArrayLike) -> None:
        """Count an update; one without any draw leaves no trace."""
        if np.size(rewards):
            total = np.sum(rewards, dtype=np.float64)
            self.sums = np.append(self.sums, total)[-self.updates :]
            self.counts = np.append(self.counts, np.size(rewards))[-self.updates :]

    def state(self) -> State:
        return {"sums": self.sums.copy(), "counts": self.counts.copy()}

    def _restore(self, state: State) -> None:
        if len(state["sums"]) != len(state["counts"]) or (state["counts"] < 1).any():
            raise ValueError("sums and counts do not belong together")
        self.sums = state["sums"][-self.updates :]
        self.counts = state["counts"][-self.updates :]


class BatchBaseline(Baseline):
    """Mean of the rewards of the very batch.

    Each of n draws then is a part of its own baseline: the expected gradient is 1 − 1/n of that
    with a constant b. Batches of one update, and ranks, each have their own.
    """

    kind = "batch"

    def value(self, batch_rewards: ArrayLike) -> float:
        """b: the mean of ``batch_rewards``."""
        return _mean(batch_rewards)


class NoBaseline(Baseline):
    """b = 0."""

    kind = "none"

    def value(self, batch_rewards: ArrayLike) -> float:
        """0."""
        return 0.0


class GroupBaseline(NoBaseline):
    """Mean of the rewards of the input's own draws (GRPO, Shao et al. 2024).

    The objective takes it from the rewards, so that what is left has mean 0. Each of n draws is a
    part of its own baseline: the expected gradient is (n − 1)/n of that with a constant b, or with
    the mean of the other draws.
    """

    kind = "group"


KINDS = ("fifo", "ema", "window", "batch", "group", "none")


def build_baseline(kind: str, queue_size: int, decay: float, window: int) -> Baseline:
    """The baseline ``kind``, one of :data:`KINDS`; each takes the setting that it needs."""
    if kind == "fifo":
        return FifoBaseline(queue_size)
    if kind == "ema":
        return EmaBaseline(decay)
    if kind == "window":
        return WindowBaseline(window)
    simple: dict[str, type[BatchBaseline] | type[NoBaseline]] = {
        "batch": BatchBaseline,
        "group": GroupBaseline,
        "none": NoBaseline,
    }
    return simple[kind]()


def _mean(rewards: ArrayLike) -> float:
    rewards = np.asarray(rewards)
    return float(np.mean(rewards, dtype=np.float64)) if rewards.size else 0.0
