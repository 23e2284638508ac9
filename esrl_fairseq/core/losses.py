"""The fused MRT/REINFORCE loss and its parts (docs/method.md 5), per input over ragged rows.

Notation: ``log_probs`` [rows] are sequence log-probabilities with gradient, ``rewards`` [rows]
constants, ``input_index`` [rows] the input of each row, ``inputs`` their number. Every loss
returns [inputs], so a sum over inputs and a matching sample size make ``--update-freq`` exact.
``weights`` [rows] are constants too, see :func:`importance_weights`; None is 1 everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Largest difference of log-probabilities that PPO tells apart."""
SMALLEST_SPREAD = 1e-4
"""Added to standard deviations that rewards are divided by, as common implementations do."""
NO_SPREAD = 1e-6
"""Standard deviations up to this share of the largest reward are 0 but for rounding."""


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
    log_probs: Tensor,
    rewards: Tensor,
    input_index: Tensor,
    inputs: int,
    alpha: float,
    weights: Tensor | None = None,
    draws: Tensor | None = None,
) -> Tensor:
    """Minimum risk training (Shen et al. 2016): L_i = −Σ_j Q_ij r_ij, Q_i = softmax_j(α log p_ij).

    The rows of an input must be distinct (its candidate set); one row alone has no gradient.
    With weights w, Q_ij ∝ w_ij p_ij^α: self-normalised importance sampling in the limit α → 0.
    With ``draws`` m [rows], how often each row was drawn, Q_ij ∝ m_ij p_ij^α: as if equal rows
    were candidates of their own. As α → 0 that is (n − 1)/n of :func:`rloo_loss` for n draws;
    without it rare rows weigh as much as those that come often.
    """
    scores = alpha * log_probs
    for factor in (weights, draws):
        if factor is not None:
            scores = scores + factor.to(scores.dtype).log()
    q = segment_softmax(scores, input_index, inputs)
    return -segment_sum(q * rewards, input_index, inputs)


def reinforce_loss(
    log_probs: Tensor,
    rewards: Tensor,
    input_index: Tensor,
    inputs: int,
    alpha: float,
    baseline: float,
    multiplicity: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """REINFORCE (Williams 1992): L_i = −α mean_j w_ij (r_ij − b) log p_ij, the mean over draws.

    The factor α puts it on the scale of :func:`mrt_loss`, whose gradient tends to
    −(α/k) Σ_j (r_ij − r̄_i) ∇log p_ij as α → 0.
    """
    advantage = _weighted(rewards - baseline, weights)
    return -alpha * segment_mean(advantage * log_probs, multiplicity, input_index, inputs)


def rloo_loss(
    log_probs: Tensor,
    rewards: Tensor,
    input_index: Tensor,
    inputs: int,
    alpha: float,
    multiplicity: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024).

    L_i = −α mean_j w_ij (r_ij − b_ij) log p_ij, the mean over the n_i draws of input i, and b_ij
    the mean reward of its n_i − 1 other draws:

        b_ij = (Σ_k r_ik − r_ij) / (n_i − 1)

    A row with multiplicity m is m draws. b_ij does not depend on draw j, so that the gradient is
    that of the expected reward, without bias. An input with one draw has no others to compare it
    with and no loss, as in both papers.
    """
    draws = segment_sum(multiplicity.to(rewards.dtype), input_index, inputs)[input_index]
    total = segment_sum(rewards * multiplicity, input_index, inputs)[input_index]
    others = (total - rewards) / (draws - 1).clamp(min=1)
    advantage = _weighted(torch.where(draws > 1, rewards - others, 0.0), weights)
    return -alpha * segment_mean(advantage * log_probs, multiplicity, input_index, inputs)


def fused_loss(
    log_probs: Tensor,
    rewards: Tensor,
    input_index: Tensor,
    inputs: int,
    alpha: float,
    baseline: float,
    multiplicity: Tensor,
    weights: Tensor | None = None,
    draws: Tensor | None = None,
) -> Tensor:
    """ESRL's loss: MRT where an input has two or more distinct rows, otherwise REINFORCE."""
    distinct = segment_sum(torch.ones_like(rewards), input_index, inputs)
    risk = mrt_loss(log_probs, rewards, input_index, inputs, alpha, weights, draws)
    score_function = reinforce_loss(
        log_probs, rewards, input_index, inputs, alpha, baseline, multiplicity, weights
    )
    return torch.where(distinct >= 2, risk, score_function)


def ppo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor | None,
    coefficients: Tensor,
    input_index: Tensor,
    inputs: int,
    clip: tuple[float, float],
    counts: Tensor,
) -> Tensor:
    """Proximal policy optimization's clipped surrogate (Schulman et al. 2017, equation 7).

        L_i = −Σ_j Σ_t n_jt min(ρ_jt c_j, clip(ρ_jt, 1 − ε, 1 + ε′) c_j)

    ρ_jt = p(action jt) / p_old(action jt), an action being a whole sequence or one of its tokens,
    and c_j the advantage of row j with all that it is multiplied by. At ρ = 1 the gradient is
    −Σ_j c_j ∇log p_j.

    Args:
        log_probs: ``[rows, actions]`` with gradient.
        old_log_probs: ``[rows, actions]`` constants, of the policy that drew the rows; None if
            that is still the policy.
        coefficients: ``[rows]``, c_j.
        clip: ε and ε′, positive; the paper has one number for both, DAPO (arXiv 2503.14476) a
            larger ε′.
        counts: ``[rows, actions]``, n_jt: how much an action counts; 0 where there is none.
    """
    ratio, slope = _ratio(log_probs, old_log_probs), coefficients.unsqueeze(1)
    surrogate = torch.minimum(ratio * slope, ratio.clamp(1 - clip[0], 1 + clip[1]) * slope)
    return -segment_sum((counts * surrogate).sum(1), input_index, inputs)


def ppo_statistics(
    log_probs: Tensor,
    old_log_probs: Tensor | None,
    coefficients: Tensor,
    multiplicity: Tensor,
    clip: tuple[float, float],
    counts: Tensor,
) -> dict[str, Tensor]:
    """Sums over the actions of all draws of the rows, by name; the arguments are
    :func:`ppo_loss`'s.

    ``actions``: their number. ``clipped``: those without a gradient because the clip is active.
    ``ratio``: ρ. ``kl``: ρ − 1 − log ρ, whose mean estimates KL(p_old‖p) from draws of p_old
    (Schulman 2020), without bias and never below 0.
    """
    ratio, slope = _ratio(log_probs, old_log_probs), coefficients.unsqueeze(1)
    raised = (slope > 0) & (ratio > 1 + clip[1])
    lowered = (slope < 0) & (ratio < 1 - clip[0])
    draws = (counts > 0) * multiplicity.unsqueeze(1)
    values = {
        "actions": torch.ones_like(ratio),
        "clipped": (raised | lowered).to(ratio.dtype),
        "ratio": ratio,
        "kl": ratio - 1 - ratio.log(),
    }
    return {name: (draws * value).sum() for name, value in values.items()}


def spread_scale(
    rewards: Tensor, input_index: Tensor, inputs: int, multiplicity: Tensor, scaling: str
) -> Tensor:
    """What a loss is multiplied by so that its advantages are in standard deviations, [inputs].

    1/(σ + 10⁻⁴), σ² being the variance (divisor n − 1) of the rewards of the input's draws
    (``input``, as GRPO, Shao et al. 2024, arXiv 2402.03300) or of all draws (``batch``). An input
    with one draw has no σ of its own and takes that of all. Where rewards do not differ it is 0:
    a baseline that is not their own mean would leave something of them, which 1/10⁻⁴ would blow up.

    Args:
        scaling: ``none``, ``input`` or ``batch``.
    """
    if scaling == "none":
        return rewards.new_ones(inputs)
    every = _over_spread(rewards, torch.zeros_like(input_index), 1, multiplicity).expand(inputs)
    if scaling == "batch":
        return every
    own = _over_spread(rewards, input_index, inputs, multiplicity)
    return torch.where(segment_sum(multiplicity, input_index, inputs) > 1, own, every)


def _over_spread(rewards: Tensor, index: Tensor, segments: int, multiplicity: Tensor) -> Tensor:
    """1/(σ + 10⁻⁴) of each segment, 0 where σ is 0 but for rounding, NaN where it is NaN."""
    spread = _deviation(rewards.double(), index, segments, multiplicity)  # of many draws, too
    largest = rewards.new_zeros(segments).scatter_reduce(0, index, rewards.abs(), reduce="amax")
    scale = torch.where(spread <= NO_SPREAD * largest, 0.0, 1 / (spread + SMALLEST_SPREAD))
    return scale.to(rewards.dtype)


def _deviation(rewards: Tensor, index: Tensor, segments: int, multiplicity: Tensor) -> Tensor:
    draws = segment_sum(multiplicity.to(rewards.dtype), index, segments)
    mean = segment_mean(rewards, multiplicity, index, segments)
    squares = segment_sum((rewards - mean[index]) ** 2 * multiplicity, index, segments)
    return (squares / (draws - 1).clamp(min=1)).sqrt()


def importance_weights(log_probs: Tensor, tempered: Tensor, clip: float) -> Tensor:
    """w = min(p/q, clip) [rows] without gradient, for rows drawn from q instead of p.

    Truncated importance sampling (Ionides 2008): without ``clip`` (infinity) the weighted gradient
    is that of E_p[r]; with it the variance is bounded, at the price of a bias towards q.

    Args:
        log_probs: log p, of the policy that is trained.
        tempered: log q, of the rows under the distribution that they were drawn from.
        clip: largest weight, positive.
    """
    # Above 0 and finite, so that a weight's logarithm is, too.
    log_weights = (log_probs - tempered).detach()
    limits = torch.finfo(log_weights.dtype)
    return log_weights.exp().clamp(limits.tiny, min(clip, limits.max))


def _weighted(advantage: Tensor, weights: Tensor | None) -> Tensor:
    return advantage if weights is None else weights * advantage


def _ratio(log_probs: Tensor, old_log_probs: Tensor | None) -> Tensor:
    """ρ = p/p_old, limited so that it and its gradient stay finite."""
    if old_log_probs is None:
        old_log_probs = log_probs.detach()
    return (log_probs - old_log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
