"""The metric that chooses the best checkpoint, and that --patience waits for."""

from __future__ import annotations

import logging
from typing import Any

from esrl_fairseq.errors import EsrlError

logger = logging.getLogger(__name__)

HIGHER_IS_BETTER = {"reward": True, "bleu": True, "loss": False, "ppl": False}
"""What validation logs and a direction is known of; the others are figures without one."""
OWN = ("fairseq.", "esrl_fairseq.")


def check_best_metric(cfg: Any, task: Any, references: bool) -> None:
    """Refuse a metric that validation does not log, or whose worst value would be kept.

    Args:
        cfg: the whole configuration of the run.
        task: whose validation logs it.
        references: whether the validation set has references.

    Raises:
        EsrlError: naming the metric, and what to give instead.
    """
    if cfg.dataset.disable_validation:
        return
    name, maximize = (
        cfg.checkpoint.best_checkpoint_metric,
        cfg.checkpoint.maximize_best_checkpoint_metric,
    )
    parts = metrics_of_parts(task, references)
    check_logged(name, [*validation_metrics(task, references), *parts], logs_are_known(task))
    higher = (HIGHER_IS_BETTER | parts).get(name)
    used = "the best checkpoint" if cfg.checkpoint.patience <= 0 else "--patience"
    if higher is True and not maximize:
        raise EsrlError(
            f"--best-checkpoint-metric {name} without --maximize-best-checkpoint-metric would take "
            f"the lowest {name} for the best ({used} depends on it): add "
            "--maximize-best-checkpoint-metric"
        )
    if higher is False and maximize:
        raise EsrlError(
            f"--maximize-best-checkpoint-metric would take the highest {name} for the best ({used} "
            "depends on it): leave it out, or choose --best-checkpoint-metric reward"
        )
    if higher is False and references:
        logger.warning(
            "%s is chosen by %s, the likelihood of the references, which training on a reward "
            "often makes worse: give --best-checkpoint-metric reward "
            "--maximize-best-checkpoint-metric",
            used,
            name,
        )


def validation_metrics(task: Any, references: bool) -> list[str]:
    """Names of what validation logs."""
    names = ["loss", "reward"]
    if references:
        names += ["ppl", "length_ratio"]
    if getattr(task.cfg, "eval_bleu", False):
        names.append("bleu")
    return sorted(names)


def metrics_of_parts(task: Any, references: bool) -> dict[str, bool]:
    """Names of what it logs of the rewards that a sum is made of, and whether higher is better."""
    reward = getattr(getattr(task, "scorer", None), "reward", None)
    leaves = () if reward is None or reward.leaves == [reward] else reward.leaves
    return {
        f"reward_{leaf.label}": leaf.higher_is_better
        for leaf in leaves
        if references or not leaf.needs_references
    }


def logs_are_known(task: Any) -> bool:
    """Whether no class of the user's own adds to what validation logs."""
    makers = (kind for kind in type(task).__mro__ if "reduce_metrics" in vars(kind))
    return all(kind.__module__.startswith(OWN) for kind in makers)


def check_logged(name: str, logged: list[str], complete: bool = True) -> None:
    """Refuse the metric `name` if validation does not log it.

    Args:
        logged: names of what it logs.
        complete: whether these are all.

    Raises:
        EsrlError: naming those that there are.
    """
    if complete and name not in logged:
        raise EsrlError(
            f"--best-checkpoint-metric is {name!r}, which validation does not log: choose one of "
            f"{', '.join(logged)}"
        )
