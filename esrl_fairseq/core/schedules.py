"""Dynamic sampling: how many samples an input gets, and at which temperature (docs/method.md 1).

Capability matters only through its quantile ``u`` among the known capabilities, and the variance
of an input's rewards only relative to the mean variance, so neither scale nor batch matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

REFERENCE_POINTS = 4096
"""Most points that an empirical CDF is stored with; more would not change a sample count."""
PRIOR_FREEDOM = 4.0
"""ν, the degrees of freedom that the mean variance counts as beside an input's own.

With normal rewards, the linear estimate of σ_i² with the least error has ν = 2 (1 + 1/c²), c being
the coefficient of variation of σ_i² over the inputs: 4 where variances vary as much as their mean
(c = 1), 10 for c = ½, 2.5 for c = 2.
"""
ROUNDING = 1e-6
"""Relative error of a variance; standard deviations are stored in float32."""


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


def mean_variance(std: ArrayLike, samples: ArrayLike) -> float:
    """σ̄² = Σ n_i s_i² / Σ (n_i − 1): the pooled, unbiased variance of an input's rewards.

    Args:
        std: s_i ``[inputs]``, standard deviation with divisor n_i; ignored where n_i < 2.
        samples: n_i ``[inputs]``.

    Returns:
        σ̄², NaN when no input has two samples.
    """
    n = np.asarray(samples, dtype=np.float64)
    s = np.asarray(std, dtype=np.float64)[n >= 2]
    n = n[n >= 2]
    return float((n * s**2).sum() / (n - 1).sum()) if len(n) else float("nan")


def shrunk_variance(std: ArrayLike, samples: ArrayLike, mean: float) -> NDArray[np.float64]:
    """σ̂_i² = (ν σ̄² + n_i s_i²)/(ν + n_i − 1), an input's variance drawn to the mean variance.

    The mean of σ̄² and the unbiased n_i s_i²/(n_i − 1), weighed by degrees of freedom, which are
    ν = ``PRIOR_FREEDOM`` and n_i − 1 (Smyth 2004, "Linear models and empirical Bayes methods for
    assessing differential expression"). One sample says nothing about a variance and gives σ̄².

    Args:
        std: s_i ``[inputs]``, standard deviation with divisor n_i, so n_i s_i² = Σ_j (r_ij − r̄_i)².
        samples: n_i ``[inputs]``; 0 marks an unknown input.
        mean: σ̄², see :func:`mean_variance`.

    Returns:
        ``[inputs]``; NaN for an unknown input, or for all when ``mean`` is NaN.
    """
    n = np.asarray(samples, dtype=np.float64)
    own = n * np.asarray(std, dtype=np.float64) ** 2
    return np.where(n > 0, (PRIOR_FREEDOM * mean + own) / (PRIOR_FREEDOM + n - 1), np.nan)


def neyman_counts(
    variance: ArrayLike, mean: float, max_samples: int, min_samples: int
) -> NDArray[np.int64]:
    """The largest k_i ≤ K with σ_i²/((k_i − 1) k_i) ≥ σ̄²/((K − 1) K), and at least k_min.

    Neyman allocation (Neyman 1934; Cochran 1977, section 5.5). The gradient of input i estimated
    from k_i samples has variance σ_i² V_i/k_i, V_i = E‖∇log p(y|x_i)‖², at the cost c_i k_i. The
    least Σ_i σ_i² V_i/k_i for a given Σ_i c_i k_i has k_i ∝ σ_i √(V_i/c_i). Tokens' scores are
    martingale differences, so that V_i grows with the length as the cost does: k_i ∝ σ_i. In whole
    samples (Wright 2012, "The equivalence of Neyman optimum allocation for sampling and equal
    proportions for apportionment") the k-th one gains σ_i²/((k − 1) k) per cost, and those with the
    largest gains are drawn. K sets the least gain that is worth it: that of the K-th sample of an
    input of mean variance. So k_i ≈ K σ_i/σ̄, and inputs above σ̄ have K.

    Args:
        variance: σ_i² ``[inputs]``; NaN marks an unknown input, which gets K.
        mean: σ̄²; NaN gives K samples to all, and so does 0, where there is nothing to compare.
        max_samples: K; with 1, all inputs get their one sample.
        min_samples: k_min, at least 1: no gain can be told for the first sample.

    Returns:
        int64 ``[inputs]``.
    """
    variance = np.asarray(variance, dtype=np.float64)
    if not mean > 0:
        return np.full(variance.shape, max_samples)
    known = ~np.isnan(variance)
    ratio = np.where(known, variance / mean, 1.0)
    # (k − 1) k ≤ a is k ≤ (1 + √(1 + 4a))/2.
    a = (max_samples - 1) * max_samples * ratio * (1 + ROUNDING)
    counts = np.floor((1 + np.sqrt(1 + 4 * a)) / 2)
    return np.clip(counts, min_samples, max_samples).astype(np.int64)


def temperatures(u: ArrayLike, low: float, high: float, base: float) -> NDArray[np.float32]:
    """τ_i = τ_min + (τ_max − τ_min)(1 − u_i): explore where the model is weak.

    An unknown input (NaN) gets ``base``.
    """
    u = np.asarray(u, dtype=np.float64)
    tau = low + (high - low) * (1 - u)
    return np.where(np.isnan(u), base, tau).astype(np.float32)
