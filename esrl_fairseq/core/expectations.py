"""What an input's rewards are expected to be, from its last visit (docs/method.md 5).

A linear estimate with two levels: inputs differ by their expected rewards (variance τ²), an input's
samples by chance (variance σ̄²). Efron and Morris 1975, "Data analysis using Stein's estimator and
its generalizations".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Inputs:
    """What is known of the rewards of all inputs.

    Attributes:
        mean: m̄, of the visited inputs' mean rewards; NaN when none was visited.
        between: τ², variance of the inputs' expected rewards.
        within: σ̄², variance of an input's rewards; NaN when no input had two samples.
    """

    mean: float = math.nan
    between: float = math.nan
    within: float = math.nan


def known_inputs(means: ArrayLike, samples: ArrayLike, within: float) -> Inputs:
    """m̄ and τ² of the visited inputs.

    τ² is the variance of the mean rewards less σ̄² · mean(1/n_i), which is what n_i samples add to
    it, and not below 0.

    Args:
        means: ``[inputs]`` mean reward of each one's samples; ignored where it has none.
        samples: ``[inputs]`` n_i, 0 for unknown inputs.
        within: σ̄², see :func:`~esrl_fairseq.core.schedules.mean_variance`; where it is NaN, half of
            the variance counts as chance.
    """
    n = np.asarray(samples, dtype=np.float64)
    m = np.asarray(means, dtype=np.float64)[n > 0]
    n = n[n > 0]
    if len(n) == 0:
        return Inputs()
    variance = float(m.var())
    chance = variance / 2 if math.isnan(within) else within * float((1 / n).mean())
    return Inputs(float(m.mean()), max(variance - chance, 0.0), within)


def offsets(means: ArrayLike, samples: ArrayLike, inputs: Inputs) -> NDArray[np.float32]:
    """o_i = w_i (m_i − m̄): how much more than the average an input's samples are expected to get.

    w_i = τ²/(τ² + σ̄²/n_i) gives the least mean squared error of m̄ + o_i; ½ where σ̄² is unknown.

    Args:
        means: m_i ``[inputs]``, mean reward at the last visit.
        samples: n_i ``[inputs]`` of that visit; 0 marks an unknown input.

    Returns:
        float32 ``[inputs]``; 0 for unknown inputs, and for all when ``inputs`` knows none.
    """
    n = np.asarray(samples, dtype=np.float64)
    known = (n > 0) & (not math.isnan(inputs.mean))
    chance = inputs.between if math.isnan(inputs.within) else inputs.within / np.maximum(n, 1)
    total = inputs.between + chance
    weight = np.divide(inputs.between, total, out=np.zeros_like(n), where=known & (total > 0))
    difference = np.where(known, np.asarray(means, dtype=np.float64) - inputs.mean, 0.0)
    return (weight * difference).astype(np.float32)
