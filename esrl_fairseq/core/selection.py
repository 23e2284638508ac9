"""Which of a batch's rows stage two takes, under a budget of tokens (docs/method.md 4).

To first order the loss of a batch is −Σ_j c_j log p_j: row j moves the model by its coefficient.
Rows with a small one cost as much as others. Down-sampling of samples by their advantage is due to
Xu et al. 2025 (arXiv 2504.13818); the weights are those of Horvitz and Thompson 1952.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KINDS = ("top", "unbiased", "mixed")
SURE = 0.5
"""Share of the budget that ``mixed`` gives to the largest rows."""

ROUNDING = 1e-6
"""Sizes below this share of the largest are 0 but for rounding."""

Floats = NDArray[np.float64]
Chosen = tuple[NDArray[np.int64], Floats]


def select(
    sizes: Floats, tokens: NDArray[np.int64], share: float, kind: str, random: np.random.Generator
) -> Chosen:
    """Rows under a budget, and the weight of each in the loss.

    Rows of size 0 have no gradient and are never chosen. One row is, whatever the budget, so that
    the model has something to do; its weight is 0 where chance chose none. Where a size is NaN or
    infinite, its weight is NaN: so is the gradient then, and nobody takes it for one.

    Args:
        sizes: ``[rows]``, |c_j|, not negative.
        tokens: ``[rows]``, what each row costs, positive.
        share: of all tokens, in (0, 1].
        kind: ``top`` takes the largest rows, each with weight 1, until one does not fit: the
            gradient of the loss whose smaller coefficients are 0. ``unbiased`` takes each with
            probability π_j = min(1, λ|c_j|) and weight 1/π_j, so that the expected gradient is that
            of all rows. ``mixed`` spends half of the budget as the first, and the rest on the
            other rows as the second, which has no bias either.
        random: what is drawn with; not used by ``top``.

    Returns:
        int64 ``[chosen]``, places in ascending order; float64 ``[chosen]``, weights.
    """
    if not np.isfinite(sizes).all():
        return np.arange(1), np.full(1, np.nan)
    rows = np.flatnonzero(sizes > ROUNDING * sizes.max(initial=0))
    budget = share * tokens.sum()
    if not len(rows):  # nothing to learn; any row will do
        return np.arange(min(len(sizes), 1)), np.ones(min(len(sizes), 1))
    if tokens[rows].sum() <= budget:
        return rows, np.ones(len(rows))
    if kind == "top":
        chosen = _largest(sizes, tokens, rows, max(budget, tokens[rows[sizes[rows].argmax()]]))
        weights = np.ones(len(chosen))
    elif kind == "unbiased":
        chosen, weights = _by_chance(sizes, tokens, rows, budget, random)
    else:
        sure = _largest(sizes, tokens, rows, SURE * budget)
        others = np.setdiff1d(rows, sure)
        left = budget - tokens[sure].sum()
        chosen, weights = _by_chance(sizes, tokens, others, left, random)
        chosen = np.concatenate([sure, chosen])
        weights = np.concatenate([np.ones(len(sure)), weights])
    if not len(chosen):
        return rows[[sizes[rows].argmax()]], np.zeros(1)
    order = chosen.argsort()
    return chosen[order], weights[order]


def inclusion(sizes: Floats, tokens: NDArray[np.int64], budget: float) -> Floats:
    """π_j = min(1, λ·size_j), λ so that Σ_j π_j·tokens_j is the budget, or all 1 where all fit.

    Args:
        sizes: ``[rows]``, positive.
    """
    order = (-sizes).argsort(kind="stable")
    size, cost = sizes[order], tokens[order]
    # With the m largest for sure, λ_m spends what is left on the others.
    left = budget - np.concatenate([[0], cost.cumsum()])
    other = np.concatenate([(size * cost)[::-1].cumsum()[::-1], [0]])
    enough = left[:-1] / other[:-1] * size <= 1
    if not enough.any():
        return np.ones(len(sizes))
    m = enough.argmax()
    return np.minimum(max(left[m], 0) / other[m] * sizes, 1)


def _largest(
    sizes: Floats, tokens: NDArray[np.int64], rows: NDArray[np.int64], budget: float
) -> NDArray[np.int64]:
    """The largest of ``rows`` until one does not fit; of equal ones the first."""
    order = rows[(-sizes[rows]).argsort(kind="stable")]
    return order[: int((tokens[order].cumsum() <= budget).sum())]


def _by_chance(
    sizes: Floats,
    tokens: NDArray[np.int64],
    rows: NDArray[np.int64],
    budget: float,
    random: np.random.Generator,
) -> Chosen:
    """Some of ``rows`` with weights 1/π: systematic sampling in random order, whose number of rows
    hardly varies."""
    rows = random.permutation(rows)
    chance = inclusion(sizes[rows], tokens[rows], budget)
    marks = np.floor(np.concatenate([[0], chance.cumsum()]) - random.random())
    hit = (np.diff(marks) > 0) | (chance >= 1)
    return rows[hit], 1 / chance[hit]
