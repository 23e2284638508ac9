"""Intervals of the recipes' figures."""

import numpy as np

RESAMPLES = 2000
SEED = 1


def interval(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """The middle 95% of the mean of values [n] over resampled groups.

    Args:
        groups: ``[n]`` names; values of one group depend on each other and are drawn together.
    """
    names, index = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    drawn = np.random.default_rng(SEED).integers(len(names), size=(RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
