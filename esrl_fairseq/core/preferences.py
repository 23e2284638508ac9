"""What a reward model learns from: human ratings and preferences (docs/rewards.md)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bradley_terry_loss(preferred: Tensor, other: Tensor) -> Tensor:
    """-log P(the preferred output wins), P = sigmoid(preferred - other).

    Bradley and Terry 1952; as the loss of a reward model: Stiennon et al. 2020, equation 1.

    Args:
        preferred: float ``[pairs]``, scores of the outputs that people preferred.
        other: float ``[pairs]``, scores of those that they were compared with.

    Returns:
        float ``[pairs]``, with gradient.
    """
    return torch.nn.functional.softplus(other - preferred)


def rating_loss(scores: Tensor, ratings: Tensor) -> Tensor:
    """(score - rating)^2 of each rated output, ``[rated]``."""
    return (scores - ratings) ** 2


def wins(preferred: Tensor, other: Tensor) -> Tensor:
    """1 where the preferred output scores higher, 1/2 for equal scores, else 0; ``[pairs]``."""
    return (preferred > other).float() + (preferred == other).float() / 2


def correlation(x: float, y: float, xx: float, yy: float, xy: float) -> float:
    """Pearson's correlation from the means of x, y, x², y² and x·y; NaN where one is constant."""
    variances = (xx - x * x) * (yy - y * y)
    return (xy - x * y) / math.sqrt(variances) if variances > 0 else math.nan
