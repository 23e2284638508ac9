"""Refusals of options that cannot work, and warnings of some that may not."""

from __future__ import annotations

import logging
import math
from typing import Any

from fairseq.data import data_utils

from esrl_fairseq.core.controls import PERMUTED
from esrl_fairseq.core.suggest import did_you_mean
from esrl_fairseq.data.subwords import VALUES
from esrl_fairseq.errors import EsrlError

logger = logging.getLogger(__name__)


def check_baseline_options(cfg: Any) -> None:
    """Refuse settings of the reward baseline that cannot work.

    Raises:
        EsrlError: naming the option, its value and what is allowed.
    """
    for name in ("baseline_queue_size", "baseline_window"):
        if getattr(cfg, name) < 1:
            option = "--" + name.replace("_", "-")
            raise EsrlError(f"{option} is {getattr(cfg, name)}, but must be at least 1")
    if not 0 <= cfg.baseline_decay < 1:
        raise EsrlError(f"--baseline-decay is {cfg.baseline_decay}, but must be from 0 to below 1")


RISK = ("fused", "mrt")
"""Objectives with MRT in them."""
COMPARING = ("rloo", "mrt")
"""Objectives that compare an input's samples with each other, and with nothing else."""


def check_comparison(cfg: Any, num_samples: int, fewest_samples: int) -> None:
    """Some objectives, and a baseline, need two samples of an input; refuse or warn where there may
    be one.

    Args:
        cfg: options of the criterion.
        num_samples: the most samples of an input.
        fewest_samples: the fewest that dynamic sampling can give it.

    Raises:
        EsrlError: no input would ever have two.
    """
    if cfg.objective in COMPARING:
        option = f"--objective {cfg.objective}"
    elif cfg.reward_baseline == "group":
        option = "--reward-baseline group"
    else:
        return
    if num_samples < 2:
        raise EsrlError(
            f"{option} compares an input's samples with each other, but --num-samples is "
            f"{num_samples}: it must be at least 2"
        )
    if fewest_samples < 2:
        logger.warning(
            "%s learns nothing from an input with one sample, which dynamic sampling gives to "
            "some: --min-samples 2 gives all of them two at least",
            option,
        )


def check_rescored_share(cfg: Any) -> None:
    """Refuse a share that is none, and warn where a part of the rows costs as much as all of them.

    Raises:
        EsrlError: telling what is allowed.
    """
    if not 0 < cfg.rescored_share <= 1:
        raise EsrlError(
            f"--rescored-share is {cfg.rescored_share}, but must be above 0 and at most 1: it is "
            "the share of the sampled tokens that the gradient is made of"
        )
    if cfg.rescored_share < 1 and cfg.sampling_mode != "two-stage":
        logger.warning(
            "--rescored-share %s saves nothing with --sampling %s, which has scored all samples "
            "with gradient before some are chosen: leave it out, or choose --sampling two-stage",
            cfg.rescored_share,
            cfg.sampling_mode,
        )


def check_dropout(cfg: Any, one_sample: bool) -> None:
    """Warn where dropout in stage two can drive the policy away from the one that samples.

    Samples come from the policy without dropout. With one baseline for all inputs, REINFORCE moves
    the policy with dropout away from it on inputs whose rewards are below the baseline, ever faster
    (docs/method.md 4); the other losses compare an input's samples with each other, and are safe.
    """
    alone = cfg.objective == "reinforce" or (cfg.objective == "fused" and one_sample)
    if alone and cfg.rescoring_dropout and cfg.sampling_mode == "two-stage":
        logger.warning(
            "--rescoring-dropout with REINFORCE on two-stage samples can fall apart after some 100 "
            "updates: choose --objective rloo or fused with --num-samples 3 or more, or leave out "
            "--rescoring-dropout"
        )


def check_kl_options(
    weight: float, target: float | None, reference: str, named: str | None = None
) -> None:
    """Refuse settings of the KL penalty that cannot work.

    Args:
        reference: where the frozen model is, empty if none is known.
        named: ``--kl-reference``.

    Raises:
        EsrlError: naming the option, its value and what is allowed.
    """
    if not 0 <= weight < math.inf:
        raise EsrlError(f"--kl-weight is {weight}, but must be 0 or more")
    if target is not None and not 0 < target < math.inf:
        raise EsrlError(f"--kl-target is {target}, but must be a positive number")
    if target is not None and weight == 0:
        raise EsrlError(
            "--kl-target adapts --kl-weight, which is 0: give it a positive one to start from "
            "(try 0.01)"
        )
    if named and weight == 0:
        raise EsrlError(
            f"--kl-reference is {named}, but --kl-weight is 0, which measures nothing from it: "
            "give --kl-weight a positive number (try 0.01), or leave --kl-reference out"
        )
    if weight > 0 and not reference:
        raise EsrlError(
            f"--kl-weight is {weight}, but no frozen model is known: give its checkpoint with "
            "--kl-reference, or start from it with --finetune-from-model"
        )


def check_ppo_options(cfg: Any) -> None:
    """Refuse settings of PPO that cannot work, and warn of one that makes it noisy.

    Raises:
        EsrlError: naming the option, its value and what is allowed.
    """
    if cfg.ppo_passes < 1:
        raise EsrlError(f"--ppo-passes is {cfg.ppo_passes}, but must be at least 1")
    if not 0 < cfg.ppo_clip < math.inf:
        raise EsrlError(f"--ppo-clip is {cfg.ppo_clip}, but must be a positive number")
    if cfg.ppo_clip_high is not None and not cfg.ppo_clip <= cfg.ppo_clip_high < math.inf:
        raise EsrlError(
            f"--ppo-clip-high is {cfg.ppo_clip_high}, but must be a number from --ppo-clip "
            f"({cfg.ppo_clip}) upwards"
        )
    if cfg.objective != "ppo":
        return
    if cfg.sampling_mode != "two-stage":
        raise EsrlError(
            f"--sampling {cfg.sampling_mode} does not go with --objective ppo, whose later "
            "passes score samples that an earlier one drew: choose two-stage"
        )
    if cfg.temperature_correction == "importance":
        raise EsrlError(
            "--temperature-correction importance does not go with --objective ppo, which weighs "
            "samples by ratios of its own: choose tempered or none"
        )
    if cfg.temperature_correction == "tempered" and cfg.ppo_level == "token":
        raise EsrlError(
            "--temperature-correction tempered does not go with --ppo-level token: choose "
            "--ppo-level sequence, or no correction"
        )
    if cfg.rescoring_dropout and cfg.ppo_passes > 1:
        logger.warning(
            "--rescoring-dropout with --objective ppo: each pass draws another dropout, so that "
            "probabilities differ from those at the time of sampling even without an update, and "
            "some are clipped for that alone"
        )


def check_post_process(name: str) -> None:
    """Refuse a way to join sub-words that fairseq does not know.

    Raises:
        EsrlError: naming some that it does.
    """
    try:
        data_utils.post_process("", name)
    except NotImplementedError as error:
        raise EsrlError(
            f"--reward-post-process is {name!r}{did_you_mean(name, (*VALUES, 'none'))}, but must "
            f"be one of those of fairseq-generate's --post-process: {', '.join(VALUES)}, …, or none"
        ) from error


def check_reward(reward: Any, capability: str) -> None:
    """Refuse a reward that training cannot raise, or cannot take for a capability.

    Args:
        capability: the one that samples or temperatures follow; ``none`` if nothing does.

    Raises:
        EsrlError: naming the reward and what to choose.
    """
    if not reward.higher_is_better:
        raise EsrlError(
            f"training raises the reward, but lower is better for {reward.name!r}: give it a "
            f"negative weight, --reward {reward.name}:-1"
        )
    if capability == "reward" and not reward.in_unit_interval:
        raise EsrlError(
            f"--capability reward needs a reward in [0, 1], {reward.name!r} lies in "
            f"{reward.range} (a function says where it lies by its attribute range): choose "
            "--capability entropy, bleu or none, or --elimination-ratio auto and one temperature"
        )


def check_controls(cfg: Any) -> None:
    """Refuse controls that cannot work, and warn of those that are on.

    Raises:
        EsrlError: naming the option, its value and what is allowed.
    """
    if cfg.reward_control != "none":
        logger.warning(
            "--reward-control %s: the loss gets %s rewards instead of the true ones, so that this "
            "run cannot learn from them; it is a control for studies",
            cfg.reward_control,
            cfg.reward_control,
        )
        if cfg.input_baseline:
            raise EsrlError(
                "--input-baseline comes from the true rewards of earlier visits, which "
                f"--reward-control {cfg.reward_control} keeps from the loss: leave one of them out"
            )
    if cfg.capability_noise is None:
        return
    if cfg.capability_noise != PERMUTED and not 0 <= number_or_nan(cfg.capability_noise) < math.inf:
        raise EsrlError(
            f"--capability-noise is {cfg.capability_noise!r}, but must be {PERMUTED} or a standard "
            "deviation, 0 or more"
        )
    logger.warning(
        "--capability-noise %s: the stored capabilities are wrong on purpose; it is a control for "
        "studies of temperatures, and of the counts of an --elimination-ratio other than auto",
        cfg.capability_noise,
    )


def number_or_nan(text: str) -> float:
    """The number that ``text`` writes, NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


LONGEST_TIMEOUT = 1_000_000
"""Seconds; the clocks of some systems cannot be set to much more."""


def check_timeout(seconds: float) -> None:
    """Refuse a ``--reward-timeout`` that no clock can be set to.

    Raises:
        EsrlError: telling what is allowed.
    """
    if not 0 <= seconds <= LONGEST_TIMEOUT:
        raise EsrlError(
            f"--reward-timeout is {seconds}, but must be a number of seconds from 0 (no limit) to "
            f"{LONGEST_TIMEOUT:,}"
        )
