"""Refusals of the criterion's options, one sentence each."""

from __future__ import annotations

import math
from typing import Any

from fairseq.dataclass.configs import CheckpointConfig

from esrl_fairseq.checkpoints.configuration import refuse_withheld
from esrl_fairseq.checks.options import (
    RISK,
    check_baseline_options,
    check_controls,
    check_kl_options,
    check_post_process,
    check_ppo_options,
    check_rescored_share,
    check_timeout,
)
from esrl_fairseq.errors import EsrlError


def kl_reference_file(cfg: Any) -> str:
    """The checkpoint of the frozen model: what is asked for, or what fairseq starts the run from.

    Empty where there is none: by default ``--restore-file`` is a run's own last checkpoint.
    """
    restored = cfg.restore_file if cfg.restore_file != CheckpointConfig.restore_file else ""
    return cfg.kl_reference or cfg.finetune_from_model or restored


def check_criterion_options(cfg: Any, pretrained: str = "") -> None:
    """Refuse options that cannot work.

    Args:
        pretrained: what the model was before any training, if it can be had again.

    Raises:
        EsrlError: naming the option, its value and what is allowed.
    """
    refuse_withheld(cfg.reward)
    if cfg.risk_alpha is not None and not 0 < cfg.risk_alpha < math.inf:
        raise EsrlError(f"--risk-alpha is {cfg.risk_alpha}, but must be a positive number")
    sharp = cfg.objective in RISK  # to the others α is a scale alone
    if cfg.length_normalization and cfg.risk_alpha is None and sharp:
        raise EsrlError(
            f"--length-normalization with --objective {cfg.objective} needs a --risk-alpha of its "
            "own: the default is made for log-probabilities summed over a sentence (try 0.1)"
        )
    check_baseline_options(cfg)
    check_ppo_options(cfg)
    check_timeout(cfg.reward_timeout)
    for name, least in (
        ("valid_beam", 0),
        ("max_sampled_tokens", 0),
        ("reward_workers", 0),
        ("show_samples", 0),
    ):
        if getattr(cfg, name) < least:
            option = "--" + name.replace("_", "-")
            raise EsrlError(f"{option} is {getattr(cfg, name)}, but must be at least {least}")
    check_rescored_share(cfg)
    if not cfg.importance_clip > 0:
        raise EsrlError(f"--importance-clip is {cfg.importance_clip}, but must be above 0")
    if not 0 <= cfg.mle_weight < math.inf:
        raise EsrlError(f"--mle-weight is {cfg.mle_weight}, but must be 0 or more")
    start = kl_reference_file(cfg) or pretrained
    check_kl_options(cfg.kl_weight, cfg.kl_target, start, cfg.kl_reference)
    check_post_process(cfg.reward_post_process)
    check_controls(cfg)
