"""The reward baseline: mean of a first-in-first-out queue of past rewards (docs/method.md 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


class FifoBaseline:
    """The last ``size`` rewards over all ranks, oldest first.

    Within an update it is only read: rewards are pushed when the update is over, so the baseline
    never depends on the samples that it is subtracted from, and several batches of one update
    (``--update-freq``) see the same value.
    """

    def __init__(self, size: int):
        if size < 1:
            raise ValueError(f"the queue size must be at least 1, not {size}")
        self.size = size
        self.rewards: NDArray[np.float32] = np.zeros(0, dtype=np.float32)

    def value(self, batch_rewards: ArrayLike) -> float:
        """b: the queue's mean, or the mean of ``batch_rewards`` while the queue is empty."""
        rewards = self.rewards if len(self.rewards) else np.asarray(batch_rewards)
        return float(np.mean(rewards, dtype=np.float64)) if len(rewards) else 0.0

    def push(self, rewards: ArrayLike) -> None:
        """Append ``rewards`` in order; the oldest beyond ``size`` leave."""
        added = np.asarray(rewards, dtype=np.float32).ravel()
        self.rewards = np.concatenate([self.rewards, added])[-self.size :]
