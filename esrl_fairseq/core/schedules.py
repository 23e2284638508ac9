"""Dynamic sampling: how many samples an input gets, and at which temperature (docs/method.md 1).

Both depend on the input's capability only through its quantile ``u`` among the known
capabilities, so neither the estimator's scale nor the batch matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

REFERENCE_POINTS = 4096
"""Most points that an empirical CDF is stored with; more would not change a sample count."""


@dataclass
class Plan:
    """How a batch is sampled.

    Attributes:
        counts: int64 ``[inputs]``, samples of each input.
        temperature: float32 ``[inputs]``.
        capability: float32 ``[inputs]`` before this visit, NaN where unknown.
    """

    counts: NDArray[np.int64]
    temperature: NDArray[np.float32]
    capability: NDArray[np.float32]


def cdf_reference(capability: ArrayLike, points: int = REFERENCE_POINTS) -> NDArray[np.float32]:
    """Compress known capabilities into a sorted reference for :func:`quantile`.

    Args:
        capability: known capabilities, any shape; NaN marks an unknown one and is dropped.
        points: most values to keep; they are the mid-quantiles of all values.

    Returns:
        float32 ``[min(known, points)]``, ascending; empty when nothing is known.
    """
    values = np.asarray(capability, dtype=np.float32).ravel()
    values = np.sort(values[~np.isnan(values)])
    if len(values) <= points:
        return values
    middle = (np.arange(points) + 0.5) / points * len(values)
    return values[middle.astype(np.int64)]


def quantile(capability: ArrayLike, reference: NDArray[np.float32]) -> NDArray[np.float64]:
    """Empirical CDF of ``reference`` at ``capability``, mid-rank for ties.

    Args:
        capability: ``[inputs]``; NaN marks an unknown input.
        reference: from :func:`cdf_reference`.

    Returns:
        ``[inputs]`` in [0, 1]; NaN for an unknown input, or for all when ``reference`` is empty.
    """
    values = np.asarray(capability, dtype=np.float32)
    if len(reference) == 0:
        return np.full(values.shape, np.nan)
    below = np.searchsorted(reference, values, side="left")
    upto = np.searchsorted(reference, values, side="right")
    ranks = (below + upto) / (2.0 * len(reference))
    return np.where(np.isnan(values), np.nan, ranks)


def kept_share(u: ArrayLike, elimination_ratio: float) -> NDArray[np.float64]:
    """g_β(u): the share of the optional budget that an input at quantile ``u`` keeps.

    Decreases from 1 to 0 with mean 1 − β over uniform ``u``. For β ≤ ½ it is 1 up to
    u = 1 − 2β, then linear down to 0 at u = 1; for β > ½ it is 2(1 − β)(1 − u).

    Args:
        u: quantiles in [0, 1].
        elimination_ratio: β in [0, 1].
    """
    u = np.asarray(u, dtype=np.float64)
    beta = elimination_ratio
    if beta == 0:
        return np.ones_like(u)
    if beta <= 0.5:
        return np.clip((1 - u) / (2 * beta), 0.0, 1.0)
    return 2 * (1 - beta) * (1 - u)


def sample_counts(
    u: ArrayLike, max_samples: int, min_samples: int, elimination_ratio: float
) -> NDArray[np.int64]:
    """k_i = k_min + round((K − k_min) g_β(u_i)); an unknown input (NaN) gets K."""
    u = np.asarray(u, dtype=np.float64)
    unknown = np.isnan(u)
    share = kept_share(np.where(unknown, 0.0, u), elimination_ratio)
    optional = np.floor((max_samples - min_samples) * share + 0.5).astype(np.int64)
    return np.where(unknown, max_samples, min_samples + optional)


def temperatures(u: ArrayLike, low: float, high: float, base: float) -> NDArray[np.float32]:
    """τ_i = τ_min + (τ_max − τ_min)(1 − u_i): explore where the model is weak.

    An unknown input (NaN) gets ``base``.
    """
    u = np.asarray(u, dtype=np.float64)
    tau = low + (high - low) * (1 - u)
    return np.where(np.isnan(u), base, tau).astype(np.float32)
