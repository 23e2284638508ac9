"""Log-probability of given tokens and the entropy beside it (docs/method.md 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FORBIDDEN = -1e30
"""Score of a token that is never drawn; finite, so that 0 · log 0 stays 0 in the entropy."""


def token_scores(
    scores: Tensor, targets: Tensor, pad: int, eos: int, no_eos: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution.

    The distribution is the softmax over all words but ``pad``, and but ``eos`` where ``no_eos``.

    Args:
        scores: ``[positions, words]`` unnormalised, with gradient; overwritten.
        targets: int64 ``[positions]``.
        no_eos: bool ``[positions]``.

    Returns:
        float32 ``[positions]`` each; only the first carries gradient. Entropy is in nats.
    """
    return _TokenScores.apply(scores, targets, pad, eos, no_eos)


def tempered_scores(
    scores: Tensor,
    targets: Tensor,
    pad: int,
    eos: int,
    no_eos: Tensor,
    temperature: Tensor | None,
) -> tuple[Tensor, ...]:
    """:func:`token_scores`, with a second log-probability where ``temperature`` is given.

    Args:
        temperature: ``[positions]``, positive.

    Returns:
        float32 ``[positions]`` each: log-probability, that at the temperature if there is one, and
        entropy; all but the last carry gradient.
    """
    # Divided first, since token_scores overwrites what it is given.
    tempered = None if temperature is None else scores.float() / temperature.unsqueeze(1)
    log_probs, entropy = token_scores(scores, targets, pad, eos, no_eos)
    if tempered is None:
        return log_probs, entropy
    return log_probs, token_scores(tempered, targets, pad, eos, no_eos)[0], entropy


class _TokenScores(torch.autograd.Function):
    """Keeps one ``[positions, words]`` tensor for backward, where log_softmax and gather keep two.

    d log p_target / d score_v = [v = target] − p_v.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, targets: Tensor, pad: int, eos: int, no_eos: Tensor
    ) -> tuple[Tensor, Tensor]:
        kind = scores.dtype
        scores = scores.float()
        scores[:, pad] = FORBIDDEN
        scores[:, eos] = scores[:, eos].masked_fill(no_eos, FORBIDDEN)
        # --amp would take the product in half precision, in which FORBIDDEN is −∞.
        with torch.autocast(scores.device.type, enabled=False):
            probs = scores.softmax(dim=-1)
            # log Z from the likeliest word, p = exp(score − log Z): log_softmax would cost a second
            # exponential of every score.
            log_z = scores.amax(dim=-1) - probs.amax(dim=-1).log()
            log_probs = scores.gather(1, targets.unsqueeze(1)).squeeze(1) - log_z
            # H = log Z − Σ_v p_v score_v
            entropy = log_z - torch.linalg.vecdot(probs, scores)
        ctx.save_for_backward(probs, targets)
        ctx.kind = kind
        ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        probs, targets = ctx.saved_tensors
        slope = probs * -grad.unsqueeze(1)
        slope.scatter_add_(1, targets.unsqueeze(1), grad.unsqueeze(1))
        return slope.to(ctx.kind), None, None, None, None
