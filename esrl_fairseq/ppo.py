"""PPO's part of the criterion: what its ratios are of, its loss and its logs (docs/method.md 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from esrl_fairseq.core.losses import ppo_loss, ppo_statistics
from esrl_fairseq.core.scores import Scores, Term
from esrl_fairseq.core.sequences import Rows
from esrl_fairseq.state.samples import Samples


class Ppo:
    """The clipped surrogate with the criterion's options.

    Args:
        cfg: options of the criterion.
    """

    def __init__(self, cfg: Any):
        self.cfg = cfg
        high = cfg.ppo_clip if cfg.ppo_clip_high is None else cfg.ppo_clip_high
        self.clip = (cfg.ppo_clip, high)

    @property
    def kind(self) -> str:
        """Log-probabilities of other kinds are not comparable."""
        return (
            f"--ppo-level {self.cfg.ppo_level}, "
            f"--temperature-correction {self.cfg.temperature_correction} "
            f"and length normalization {'on' if self.cfg.length_normalization else 'off'}"
        )

    def log_probs(self, scores: Scores, rows: Rows) -> Tensor:
        """Log-probabilities of the actions, [rows, actions]: of sequences or of tokens."""
        if scores.token_log_probs is not None:
            return scores.token_log_probs[:, : rows.tokens.size(1)]  # references may be longer
        log_probs = scores.log_probs if scores.tempered is None else scores.tempered
        if self.cfg.length_normalization:
            log_probs = log_probs / scores.lengths.clamp(min=1)
        return log_probs.unsqueeze(1)

    def counts(self, scores: Scores, rows: Rows) -> Tensor:
        """How much each action counts, float32 [rows, actions]."""
        if scores.token_log_probs is None:
            return torch.ones_like(scores.log_probs).unsqueeze(1)
        counts = rows.scored().to(scores.log_probs.dtype)
        if self.cfg.length_normalization:
            counts = counts / scores.lengths.clamp(min=1).unsqueeze(1)
        return counts

    def losses(self, samples: Samples) -> Tensor:
        """The loss of each input, [inputs], without gradient."""
        assert samples.scores is not None
        return self._parts(samples, "cpu")(slice(None), samples.scores)

    def term(self, samples: Samples, device: Any) -> Term:
        """What some chosen rows add to the loss, by their places and scores."""
        losses = self._parts(samples, device)
        return lambda places, scores: losses(places, scores).sum()

    def _parts(self, samples: Samples, device: Any) -> Callable[[Any, Scores], Tensor]:
        """What some chosen rows add to the loss of each input, [inputs]."""
        assert samples.loss is not None
        rows, old = samples.chosen.to(device), samples.old_log_probs
        old = None if old is None else old.to(device, non_blocking=True)
        slopes = samples.loss.of_chosen.to(device, non_blocking=True)

        def losses(places: Any, scores: Scores) -> Tensor:
            some = rows[places]
            return ppo_loss(
                self.log_probs(scores, some),
                None if old is None else old[places],
                slopes[places],
                some.input_index,
                samples.inputs,
                self.clip,
                self.counts(scores, some),
            )

        return losses

    @torch.no_grad()
    def log(self, samples: Samples, current_pass: int) -> dict[str, Any]:
        """Sums over one batch of what PPO alone logs, of the chosen rows."""
        assert samples.scores is not None and samples.loss is not None
        rows, loss = samples.chosen, samples.loss
        statistics = ppo_statistics(
            self.log_probs(samples.scores, rows),
            samples.old_log_probs,
            loss.coefficients[loss.chosen],
            rows.multiplicity,
            self.clip,
            self.counts(samples.scores, rows),
        )
        log: dict[str, Any] = {f"ppo_{name}": value for name, value in statistics.items()}
        log["ppo_pass"] = current_pass
        if samples.old_log_probs is not None:
            log["sampled_tokens"] = 0  # those of the first pass
        return log
