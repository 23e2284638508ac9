"""The fused MRT/REINFORCE loss and its parts (docs/method.md 5), per input over ragged rows.

Notation: ``log_probs`` [rows] are sequence log-probabilities with gradient, ``rewards`` [rows]
constants, ``input_index`` [rows] the input of each row, ``inputs`` their number. Every loss
returns [inputs], so a sum over inputs and a matching sample size make ``--update-freq`` exact.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_sum(values: Tensor, index: Tensor, segments: int) -> Tensor:
    """Sum ``values`` [rows] into ``[segments]`` by ``index`` [rows]; empty segments are 0."""
    return values.new_zeros(segments).index_add(0, index, values)


def segment_mean(values: Tensor, weights: Tensor, index: Tensor, segments: int) -> Tensor:
    """Weighted mean of ``values`` [rows] per segment; empty segments are 0."""
    weights = weights.to(values.dtype)
    total = segment_sum(weights, index, segments).clamp(min=torch.finfo(values.dtype).tiny)
    return segment_sum(values * weights, index, segments) / total


def segment_softmax(scores: Tensor, index: Tensor, segments: int) -> Tensor:
    """Softmax of ``scores`` [rows] within each segment, [rows]."""
    highest = scores.new_full((segments,), -torch.inf)
    highest = highest.scatter_reduce(0, index, scores.detach(), reduce="amax")
    exps = (scores - highest[index]).exp()
    return exps / segment_sum(exps, index, segments)[index]


def mrt_loss(
    log_probs: Tensor, rewards: Tensor, input_index: Tensor, inputs: int, alpha: float
) -> Tensor:
    """Minimum risk training (Shen et al. 2016): L_i = −Σ_j Q_ij r_ij, Q_i = softmax_j(α log p_ij).

    The rows of an input must be distinct (its candidate set); one row alone has no gradient.
    """
    q = segment_softmax(alpha * log_probs, input_index, inputs)
    return -segment_sum(q * rewards, input_index, inputs)


def reinforce_loss(
    log_probs: Tensor,
    rewards: Tensor,
    input_index: Tensor,
    inputs: int,
    alpha: float,
    baseline: float,
    multiplicity: Tensor,
) -> Tensor:
    """REINFORCE (Williams 1992): L_i = −α mean_j (r_ij − b) log p_ij, the mean over draws.

    The factor α puts it on the scale of :func:`mrt_loss`, whose gradient tends to
    −(α/k) Σ_j (r_ij − r̄_i) ∇log p_ij as α → 0.
    """
    terms = (rewards - baseline) * log_probs
    return -alpha * segment_mean(terms, multiplicity, input_index, inputs)


def fused_loss(
    log_probs: Tensor,
    rewards: Tensor,
    input_index: Tensor,
    inputs: int,
    alpha: float,
    baseline: float,
    multiplicity: Tensor,
) -> Tensor:
    """ESRL's loss: MRT where an input has two or more distinct rows, otherwise REINFORCE."""
    distinct = segment_sum(torch.ones_like(rewards), input_index, inputs)
    risk = mrt_loss(log_probs, rewards, input_index, inputs, alpha)
    score_function = reinforce_loss(
        log_probs, rewards, input_index, inputs, alpha, baseline, multiplicity
    )
    return torch.where(distinct >= 2, risk, score_function)
