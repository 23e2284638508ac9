"""KL penalty to a frozen model, inside the reward (docs/method.md 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GAIN = 0.1
"""K_β of Ziegler et al. 2019."""
LARGEST_ERROR = 0.2


def penalised_rewards(
    rewards: NDArray[np.float32], log_ratio: NDArray[np.float32], weight: float
) -> NDArray[np.float32]:
    """r_ij − λ·(log p_ij − log p_ref,ij) (Ziegler et al. 2019; Stiennon et al. 2020).

    The mean log-ratio of samples is the sequence KL(p ‖ p_ref). As a constant in REINFORCE or RLOO
    it has the whole gradient of that KL: what is left out, E[∇ log p], is 0.

    Args:
        rewards: ``[rows]``.
        log_ratio: ``[rows]`` in nats, sums over a row's chosen tokens, without gradient.
        weight: λ, reward per nat.
    """
    return rewards - weight * log_ratio


def adapted_weight(weight: float, kl: float, target: float) -> float:
    """λ of the next update (Ziegler et al. 2019, section 2.2): at most 2% up or down.

    λ ← λ·(1 + K_β·clip(KL/target − 1, −0.2, 0.2)), K_β = 0.1

    Args:
        weight: λ so far.
        kl: mean log-ratio of the update's samples, nats a sequence; below 0 by chance at times.
        target: nats a sequence, positive.
    """
    error = min(max(kl / target - 1, -LARGEST_ERROR), LARGEST_ERROR)
    return weight * (1 + GAIN * error)
