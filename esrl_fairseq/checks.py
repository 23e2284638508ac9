"""Checks of options, data and checkpoints that fairseq does not make, with one sentence each."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
from fairseq.data import data_utils
from torch import nn

from esrl_fairseq.core.controls import PERMUTED
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


COMPARING = ("rloo", "mrt")
"""Objectives that compare an input's samples with each other, and with nothing else."""


def check_comparison(objective: str, num_samples: int, fewest_samples: int) -> None:
    """Some objectives need two samples of an input; refuse or warn where there may be one.

    Args:
        objective: ``--objective``; those not in :data:`COMPARING` pass.
        num_samples: the most samples of an input.
        fewest_samples: the fewest that dynamic sampling can give it.

    Raises:
        EsrlError: no input would ever have two.
    """
    if objective not in COMPARING:
        return
    if num_samples < 2:
        raise EsrlError(
            f"--objective {objective} compares an input's samples with each other, but "
            f"--num-samples is {num_samples}: it must be at least 2"
        )
    if fewest_samples < 2:
        logger.warning(
            "--objective %s learns nothing from an input with one sample, which dynamic sampling "
            "gives to some: --min-samples 2 gives all of them two at least",
            objective,
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
            f"--reward-post-process is {name!r}, but must be one of those of fairseq-generate's "
            "--post-process: subword_nmt, sentencepiece, wordpiece, …, or none"
        ) from error


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


WITH_TARGETS = "run fairseq-preprocess without --only-source"
"""How data get references."""


WITHOUT_EMPTY_LINES = "remove them from both sides and run fairseq-preprocess again"
"""What to do about empty lines."""


def check_training_data(
    dataset: Any,
    split: str,
    references_for: str,
    mend: str = WITH_TARGETS,
    mend_empty: str = WITHOUT_EMPTY_LINES,
) -> None:
    """Refuse data with an empty line; it holds nothing to learn from.

    Args:
        dataset: a fairseq ``LanguagePairDataset``.
        references_for: the option that needs target lines, too; empty if none does.
        mend: see :func:`check_target_side`.
        mend_empty: see :func:`refuse_empty_lines`.

    Raises:
        EsrlError: naming the first such line (counted from 1) and their number.
    """
    refuse_empty_lines(
        dataset.src, dataset.src_sizes, dataset.src_dict, f"source side of {split}", mend_empty
    )
    if not references_for:
        return
    check_target_side(dataset, split, references_for, mend)
    refuse_empty_lines(
        dataset.tgt,
        dataset.tgt_sizes,
        dataset.tgt_dict,
        f"target side (the references) of {split}",
        mend_empty,
    )


WITHOUT_REFERENCES = {
    "--reward": "choose a reward that needs none",
    "--capability": "choose --capability entropy, reward or none",
    "--mle-weight": "leave it out",
    "--eval-bleu": "leave it out",
}
"""What to do about an option that needs references."""


def check_target_side(
    dataset: Any, split: str, references_for: str, mend: str = WITH_TARGETS
) -> None:
    """Refuse data without a target side where an option needs one.

    Args:
        dataset: a fairseq ``LanguagePairDataset``.
        references_for: the option with its value; empty if none needs references.
        mend: how to bring references, for the message.

    Raises:
        EsrlError: naming the option and what to choose instead.
    """
    if references_for and dataset.tgt is None:
        raise EsrlError(
            f"{split!r} has no target side, but {references_for} needs references: "
            f"{WITHOUT_REFERENCES[references_for.split()[0]]}, or {mend}"
        )


def refuse_empty_lines(
    lines: Any, sizes: Any, dictionary: Any, name: str, mend: str = WITHOUT_EMPTY_LINES
) -> None:
    """Refuse one side of a data set if it has an empty line; ``mend`` says what to do about it.

    Raises:
        EsrlError: naming the first such line (counted from 1) and their number.
    """
    special = {dictionary.pad(), dictionary.eos(), dictionary.bos()}
    candidates = np.flatnonzero(np.asarray(sizes) <= 2)
    empty = [i for i in candidates.tolist() if set(lines[i].tolist()) <= special]
    if empty:
        raise EsrlError(
            f"the {name} has {len(empty)} empty line(s), the first is line {empty[0] + 1}: {mend}"
        )


def check_vocabulary_on_load(model: nn.Module, src_dict: Any, tgt_dict: Any) -> None:
    """Have ``model`` refuse a checkpoint whose vocabulary has another size than the data's.

    It is a plain ``SystemExit``: fairseq replaces any ``Exception`` in loading by its own, which
    names neither vocabularies nor sizes.
    """

    def check(state: dict[str, Any], *_: Any) -> None:
        for side, dictionary in (("encoder", src_dict), ("decoder", tgt_dict)):
            weight = state.get(f"{side}.embed_tokens.weight")
            if weight is not None and len(weight) != len(dictionary):
                raise SystemExit(
                    f"the checkpoint was trained with another vocabulary: its {side} has "
                    f"{len(weight)} words, the data's dictionary has {len(dictionary)}; binarize "
                    "the data with the checkpoint's dictionary (fairseq-preprocess "
                    "--srcdict/--tgtdict), or choose another checkpoint"
                )

    model.register_load_state_dict_pre_hook(lambda _module, state, *args: check(state))
