"""From what stage two knows of a batch's rows to the loss of each input (docs/method.md 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from esrl_fairseq.core.losses import (
    fused_loss,
    importance_weights,
    mrt_loss,
    reinforce_loss,
    rloo_loss,
)
from esrl_fairseq.core.scores import Scores
from esrl_fairseq.options import DEFAULT_RISK_ALPHA
from esrl_fairseq.ppo import Ppo
from esrl_fairseq.state.samples import Samples


class Objective:
    """``--objective`` with the options of the criterion.

    Args:
        cfg: options of the criterion.
    """

    def __init__(self, cfg: Any):
        self.cfg = cfg
        self.alpha = DEFAULT_RISK_ALPHA if cfg.risk_alpha is None else cfg.risk_alpha
        self.ppo = Ppo(cfg, self.alpha)

    def losses(self, samples: Samples) -> Tensor:
        """The loss of each input, [inputs]."""
        cfg, rows, scores = self.cfg, samples.rows, samples.scores
        assert scores is not None
        rewards = torch.as_tensor(samples.rewards, device=rows.tokens.device)
        if cfg.objective == "ppo":
            return self.ppo.loss(samples, scores, rewards)
        log_probs, weights = self.trained(scores), None
        if scores.tempered is not None and cfg.temperature_correction == "importance":
            weights = importance_weights(log_probs, scores.tempered, cfg.importance_clip)
        if cfg.length_normalization:
            log_probs = log_probs / scores.lengths.clamp(min=1)
        common = (log_probs, rewards, rows.input_index, samples.inputs, self.alpha)
        if cfg.objective == "mrt":
            return mrt_loss(*common, weights)
        if cfg.objective == "rloo":
            return rloo_loss(*common, rows.multiplicity, weights)
        loss = fused_loss if cfg.objective == "fused" else reinforce_loss
        return loss(*common, samples.baseline, rows.multiplicity, weights)

    def trained(self, scores: Scores) -> Tensor:
        """log p of the distribution that is trained, [rows]."""
        if scores.tempered is not None and self.cfg.temperature_correction == "tempered":
            return scores.tempered
        return scores.log_probs

    def likelihood(self, log_probs: Tensor, references: Tensor, pad: int) -> Tensor:
        """Of all references, on the scale of the losses: its weight depends neither on α nor on
        whether lengths are normalised.

        Args:
            log_probs: ``[inputs]``, of the references.
            references: int64 ``[inputs, length]``, their tokens, right-padded.
        """
        if self.cfg.length_normalization:
            log_probs = log_probs / (references != pad).sum(dim=1).clamp(min=1)
        return self.alpha * log_probs.sum()
