"""Validation's reward where that follows the counts of a whole corpus: the corpus's own score.

Batches log the sums of their counts. These add up over batches and ranks, and the score is that of
the sums.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from fairseq.logging import metrics

from esrl_fairseq.rewards.base import Reward
from esrl_fairseq.rewards.counted import CountedReward
from esrl_fairseq.rewards.ngrams import Floats
from esrl_fairseq.rewards.scorer import Scored

REST = "valid_rest"


def reward_log(scored: Scored) -> dict[str, float]:
    """What a batch of validation logs of its rewards: their sum, or what makes up the score."""
    if not scored.counts:
        return {"valid_reward": float(scored.rewards.sum())}
    assert scored.rest is not None
    log = {REST: float(scored.rest.sum(dtype=np.float64))}
    for name, counts in scored.counts.items():
        totals = counts.sum(axis=0).tolist()
        log.update({key: total for key, total in zip(_keys(name, len(totals)), totals)})
    return log


def reduce(logging_outputs: list[dict[str, Any]], reward: Reward) -> None:
    """Log ``reward`` of what batches logged by `reward_log`; nothing for other rewards."""
    if not logging_outputs or REST not in logging_outputs[0]:
        return
    total = {k: float(sum(log.get(k, 0) for log in logging_outputs)) for k in logging_outputs[0]}
    inputs = total["nsentences"]
    if inputs <= 0:
        return
    metrics.log_scalar(f"_{REST}", total[REST] / inputs, inputs)
    for key in total:
        if key.startswith("valid_counts"):
            metrics.log_scalar(f"_{key}", total[key])
    metrics.log_derived("reward", lambda meters: round(validation_reward(meters, reward), 4))
    for part, _ in reward.counted if reward.parts else ():
        metrics.log_derived(f"reward_{part.label}", functools.partial(_rounded_score, part=part))


def validation_reward(meters: Any, reward: Reward) -> float:
    """Of fairseq's meters: scores of corpora and means of the other parts, weighted."""
    value = float(meters[f"_{REST}"].avg)
    for part, weight in reward.counted:
        value += weight * part.corpus_score(_totals(meters, part))
    return value


def _rounded_score(meters: Any, part: CountedReward) -> float:
    return round(part.corpus_score(_totals(meters, part)), 4)


def mean_counts(meters: Any, part: CountedReward) -> Floats:
    """float64 [counts] a sentence, of a validation's meters; those of all ranks are equal."""
    mean: Floats = _totals(meters, part) / float(meters[f"_{REST}"].count)
    return mean


def _totals(meters: Any, part: CountedReward) -> Floats:
    return np.array([float(meters[f"_{key}"].sum) for key in _keys(part.name, part.number)])


def _keys(name: str, number: int) -> list[str]:
    return [f"valid_counts_{name}_{i}" for i in range(number)]
