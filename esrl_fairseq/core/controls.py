"""Controls for studies: training is given something else than the truth (docs/method.md 8).

What is drawn is a function of seed and sample ids alone. fairseq's seed is that of the run plus the
update, so that a resumed run draws the same, while batches of an update and ranks differ.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

CONSTANT = 1.0
"""Exact in every mean, so that rewards equal to their baseline leave exactly no advantage."""
PERMUTED = "permuted"
_SHUFFLE, _NOISE, _PERMUTE = 1, 2, 3  # independent streams, of what stage one draws too


def control_rewards(
    rewards: NDArray[np.float32], control: str, seed: int, ids: Iterable[int]
) -> NDArray[np.float32]:
    """The rewards that training sees.

    Args:
        rewards: ``[rows]`` of a batch.
        control: ``constant`` makes all of them 1; ``shuffled`` permutes them over the rows, those
            of other inputs included; ``none`` leaves them.
        ids: sample ids of the batch's inputs.
    """
    if control == "constant":
        return np.full_like(rewards, CONSTANT)
    if control == "shuffled":
        return _generator(_SHUFFLE, seed, ids).permutation(rewards)
    return rewards


def perturb_capability(
    capability: NDArray[np.float64], noise: str, seed: int, ids: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Capabilities [inputs] as an estimator that errs would give them.

    Args:
        noise: standard deviation of Gaussian noise on each (then limited to [0, 1]), or
            :data:`PERMUTED`: each input gets that of another input of the batch.
        ids: ``[inputs]`` sample ids; an input's noise depends on its own alone.
    """
    if noise == PERMUTED:
        return _generator(_PERMUTE, seed, ids).permutation(capability)
    errors = [_generator(_NOISE, seed, [i]).standard_normal() for i in ids]
    return np.clip(capability + float(noise) * np.array(errors), 0, 1)


def _generator(stream: int, seed: int, ids: Iterable[int]) -> np.random.Generator:
    return np.random.default_rng([stream, seed, *(int(i) for i in ids)])
