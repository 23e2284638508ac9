"""A warning of options that were given and change nothing."""

from __future__ import annotations

import logging
from typing import Any

from omegaconf import OmegaConf

from esrl_fairseq.checks.options import COMPARING, RISK, number_or_nan

logger = logging.getLogger(__name__)


def warn_of_idle_options(cfg: Any, options: Any, capability: str, reward: Any) -> None:
    """Name the options whose value is not the default, so that somebody gave it, in vain.

    Args:
        cfg: options of the criterion.
        options: of the task.
        capability: the one that samples or temperatures follow; ``none`` if nothing does.
        reward: what training raises.
    """
    idle = []
    for name, (used, purpose) in _purposes(cfg, options, capability, reward).items():
        owner = cfg if hasattr(cfg, name) else options
        field = getattr(OmegaConf.get_type(owner), "__dataclass_fields__", {}).get(name)
        if used or field is None:  # the task has no such option
            continue
        value = getattr(owner, name)
        if value != field.default:
            flag = "" if value is True else f" {value}"
            idle.append(f"--{name.replace('_', '-')}{flag} (for {purpose})")
    if idle:
        logger.warning("without effect in this run: %s", ", ".join(idle))


def _purposes(cfg: Any, options: Any, capability: str, reward: Any) -> dict[str, tuple[bool, str]]:
    """{option: (whether it changes anything, what it is for)}."""
    based = cfg.objective not in COMPARING
    objectives = f"objectives other than {' and '.join(COMPARING)}"
    varied = (options.capability != "none", "a --capability other than none")
    room = (options.min_samples < options.num_samples, "--num-samples above --min-samples")
    all_drawn = number_or_nan(options.elimination_ratio) == 0
    used, purpose = room if varied[0] else varied
    drops = (used or all_drawn, purpose)  # 0 asks for what happens anyway
    # What an input's samples are compared by has no part in their differences, but in the batch's.
    alone = based and cfg.reward_baseline != "group"
    offset = alone or cfg.reward_scaling == "batch"
    names = [leaf.name for leaf in reward.leaves]
    bleu = ("bleu" in [*names, capability], "the reward bleu")
    words = (bleu[0] or "corpus-bleu" in names, "the rewards bleu and corpus-bleu")
    ppo = (cfg.objective == "ppo", "--objective ppo")
    tempered = cfg.temperature_correction == "importance"
    temperatures = ("sample_temperature", "min_sample_temperature", "max_sample_temperature")
    other = any(getattr(options, name) not in (None, 1) for name in temperatures)
    two_stage = cfg.sampling_mode == "two-stage" or cfg.mle_weight > 0

    def baseline(kind: str) -> tuple[bool, str]:
        used = based and cfg.reward_baseline == kind
        return used, f"--reward-baseline {kind}" if based else objectives

    return {
        "compile_decoding": (cfg.sampling_mode == "two-stage", "--sampling two-stage"),
        "reward_tokenize": words,
        "reward_smoothing": bleu,
        "reward_workers": (
            any(leaf.in_workers for leaf in reward.leaves),
            "rewards without models",
        ),
        "text_language": (cfg.reward_detokenizer is not None, "--reward-detokenizer"),
        "reward_baseline": (based, objectives),
        "input_baseline": (offset, "baselines other than group" if based else objectives),
        "baseline_queue_size": baseline("fifo"),
        "baseline_decay": baseline("ema"),
        "baseline_window": baseline("window"),
        "risk_candidates": (
            cfg.objective in RISK and options.num_samples > 1,
            "the objectives fused and mrt, with --num-samples above 1",
        ),
        "ppo_passes": ppo,
        "ppo_clip": ppo,
        "ppo_clip_high": ppo,
        "selection": (cfg.rescored_share < 1, "a --rescored-share below 1"),
        "ppo_level": ppo,
        "temperature_correction": (other, "temperatures other than 1"),
        "importance_clip": (tempered, "--temperature-correction importance"),
        "max_sampled_tokens": (two_stage, "--sampling two-stage"),
        "min_samples": (not all_drawn, "an --elimination-ratio above 0") if varied[0] else varied,
        "elimination_ratio": drops,
        "capability_noise": (capability != "none", "samples or temperatures by --capability"),
    }
