"""The start model is validated before the first update: nothing good comes of a bad one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.start.source import NONE, Start

logger = logging.getLogger(__name__)

STOP, WARN, OFF = "stop", "warn", "off"
NEAR_ZERO = 0.01
"""Reward in [0, 1], compared with references, of a model that has learned nothing of the task."""
WEAK = 0.03
"""Below it hardly any sample is better than another."""


def validate_now(trainer: Any, epoch_itr: Any) -> float | None:
    """fairseq's own validation, logged as the current update's; the best checkpoint's metric."""
    from fairseq_cli.train import validate  # imports the training script: only where one runs

    subsets = trainer.cfg.dataset.valid_subset.split(",")
    found: list[float | None] = validate(trainer.cfg, trainer, trainer.task, epoch_itr, subsets)
    return found[0]


def check_counts(missing: list[str]) -> None:
    """Refuse rewards that begin with the counts of a validation, where there is none.

    Args:
        missing: those without any counts.

    Raises:
        EsrlError: there are such.
    """
    if missing:
        raise EsrlError(
            f"--reward {missing[0]} begins with the counts of a validation, but there is none with "
            "--disable-validation: leave it out (--validate-interval 1000 makes validations few)"
        )


def judge_start(
    start: Start,
    stats: Mapping[str, Any],
    words: int,
    comparable: bool,
    severity: str,
    post_process: str,
) -> None:
    """Refuse, or warn of, a start model that is not what it should be.

    Args:
        start: where the model comes from.
        stats: what its validation logged.
        words: of the vocabulary; a model that knows nothing has a perplexity of that.
        comparable: whether 0 is the reward of texts that have nothing of their references.
        severity: STOP or WARN.
        post_process: ``--reward-post-process``, for the message.

    Raises:
        EsrlError: the model is no start, and ``severity`` is STOP.
    """
    reward, ppl = float(stats.get("reward", 1.0)), float(stats.get("ppl", 0.0))
    name = start.path or "a model with random weights"
    found = f"the start model ({name}) has a validation reward of {reward:.4f}" + (
        f" and a perplexity of {ppl:,.0f}" if ppl else ""
    )
    if start.kind == NONE:
        mend = "give a trained one with --finetune-from-model"
    else:
        mend = (
            "is it the right model, its dictionary that of the data, and --reward-post-process "
            f"({post_process}) the way in which these join sub-words?"
        )
    # Where validation has no reference, there is no perplexity.
    if not ppl <= words:  # NaN, too
        what = f"{found}, more than the {words:,} words of the vocabulary, as if it knew nothing"
    elif comparable and reward < NEAR_ZERO:
        what = f"{found}, which leaves nothing to learn from"
    else:
        if comparable and reward < WEAK:
            logger.warning("%s, which is very low: %s", found, mend)
        return
    if severity == STOP:
        raise EsrlError(f"{what}: {mend} (--check-start warn trains nevertheless)")
    logger.warning("%s: %s", what, mend)
