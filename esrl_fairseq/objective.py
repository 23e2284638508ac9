"""From what is known of a batch's rows to the loss of each input (docs/method.md 5).

The loss is linearised at the policy that drew the rows. Its value and its slope on each row come
from what sampling knows of *all* rows; the gradient then needs the log-probabilities of those rows
only that are chosen by their slopes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from esrl_fairseq.core.batch import host_ids
from esrl_fairseq.core.losses import (
    fused_loss,
    importance_weights,
    mrt_loss,
    reinforce_loss,
    rloo_loss,
    segment_mean,
    spread_scale,
)
from esrl_fairseq.core.scores import Scores, Term
from esrl_fairseq.core.selection import select
from esrl_fairseq.options import DEFAULT_RISK_ALPHA
from esrl_fairseq.ppo import Ppo
from esrl_fairseq.state.samples import LinearLoss, Samples

SELECTION = 4
"""Tells these random numbers from others with the same seed and inputs."""


class Objective:
    """``--objective`` with the options of the criterion.

    Args:
        cfg: options of the criterion.
    """

    def __init__(self, cfg: Any):
        self.cfg = cfg
        self.alpha = DEFAULT_RISK_ALPHA if cfg.risk_alpha is None else cfg.risk_alpha
        self.ppo = Ppo(cfg)

    def linearise(self, samples: Samples, seed: int) -> LinearLoss:
        """The loss as a function of what :meth:`actions` gives of each row, and the rows that its
        gradient is made of.

        Args:
            seed: of what is drawn to choose rows.
        """
        actions = self.actions(samples.drawn).detach().requires_grad_()
        with torch.enable_grad():
            losses = self.of_all_rows(actions, samples)
        (slopes,) = torch.autograd.grad(losses.sum(), actions)
        sizes = self.sizes(slopes, samples.drawn)
        if not (losses.isfinite().all() and np.isfinite(samples.rewards).all()):
            # A row that has no part in the loss hides them from the slopes.
            sizes = torch.full_like(sizes, torch.nan)
        return LinearLoss(losses.detach(), -slopes, *self.choose(samples, sizes, seed))

    def of_all_rows(self, actions: Tensor, samples: Samples) -> Tensor:
        """The loss of each input, [inputs], from all of its rows; PPO's begins as REINFORCE."""
        cfg, rows, drawn = self.cfg, samples.rows, samples.drawn
        rewards = torch.as_tensor(samples.rewards)
        group = rows.input_index, samples.inputs, rows.multiplicity
        scale = spread_scale(rewards, *group, cfg.reward_scaling)
        if cfg.reward_baseline == "group":
            mean = segment_mean(rewards, rows.multiplicity, rows.input_index, samples.inputs)
            rewards = rewards - mean[rows.input_index]
        weights = None
        if cfg.temperature_correction == "importance":
            assert drawn.tempered is not None
            weights = importance_weights(drawn.log_probs, drawn.tempered, cfg.importance_clip)
        common = (actions, rewards, rows.input_index, samples.inputs, self.alpha)
        draws = rows.multiplicity if cfg.risk_candidates == "draws" else None
        if cfg.objective == "mrt":
            losses = mrt_loss(*common, weights, draws)
        elif cfg.objective == "rloo":
            losses = rloo_loss(*common, rows.multiplicity, weights)
        elif cfg.objective == "fused":
            losses = fused_loss(*common, samples.baseline, rows.multiplicity, weights, draws)
        else:
            losses = reinforce_loss(*common, samples.baseline, rows.multiplicity, weights)
        return losses * scale

    def sizes(self, slopes: Tensor, drawn: Scores) -> Tensor:
        """|c_j|, how far each row moves its log p, [rows], from slopes by its action."""
        sizes = slopes.abs()
        return sizes / drawn.lengths.clamp(min=1) if self.cfg.length_normalization else sizes

    def choose(self, samples: Samples, sizes: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Places of the rows that stage two takes, and the weight of each.

        Args:
            sizes: ``[rows]``, of :meth:`sizes`.
        """
        ids = host_ids(samples.batch).tolist()
        chosen, weights = select(
            sizes.double().numpy(),
            samples.rows.lengths.numpy(),
            self.cfg.rescored_share,
            self.cfg.selection,
            np.random.default_rng([SELECTION, seed, *ids]),
        )
        return torch.from_numpy(chosen), torch.from_numpy(weights).to(sizes)

    def losses(self, samples: Samples) -> Tensor:
        """The loss of each input, [inputs], without gradient."""
        assert samples.loss is not None
        return self.ppo.losses(samples) if self.cfg.objective == "ppo" else samples.loss.losses

    def term(self, samples: Samples, device: Any) -> Term:
        """What gives a scalar of some rows, whose sum over all rows has the gradient of the loss.

        It takes the places of the chosen rows, and behind them of the references, if their
        likelihood counts, and scores with gradient.
        """
        loss = samples.loss
        assert loss is not None
        slopes, ppo = loss.of_chosen.to(device, non_blocking=True), self.cfg.objective == "ppo"
        of_ppo = self.ppo.term(samples, device) if ppo else None

        def term(places: Tensor, scores: Scores) -> Tensor:
            likelihood: Tensor | float = 0.0
            if self.cfg.mle_weight:
                own = places < len(slopes)
                likelihood = self.likelihood(scores[~own])
                places, scores = places[own], scores[own]
            if of_ppo:
                return of_ppo(places, scores) - likelihood
            return -(slopes[places] * self.actions(scores)).sum() - likelihood

        return term

    def actions(self, scores: Scores) -> Tensor:
        """What the loss is a function of, [rows]: log p, divided by length if that is asked for."""
        log_probs = self.trained(scores)
        if self.cfg.length_normalization:
            log_probs = log_probs / scores.lengths.clamp(min=1)
        return log_probs

    def trained(self, scores: Scores) -> Tensor:
        """log p of the distribution that is trained, [rows]."""
        if self.cfg.temperature_correction == "tempered":
            assert scores.tempered is not None
            return scores.tempered
        return scores.log_probs

    def likelihood(self, references: Scores) -> Tensor:
        """What the loss subtracts for references: its weight depends neither on α nor on whether
        lengths are normalised."""
        log_probs = references.log_probs
        if self.cfg.length_normalization:
            log_probs = log_probs / references.lengths.clamp(min=1)
        return self.cfg.mle_weight * self.alpha * log_probs.sum()
