"""What a batch showed of its inputs, for reward baseline, λ and capability store."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from esrl_fairseq.core.batch import host_ids
from esrl_fairseq.core.controls import perturb_capability
from esrl_fairseq.core.losses import segment_mean, segment_sum
from esrl_fairseq.core.scores import Scores
from esrl_fairseq.core.sequences import Rows
from esrl_fairseq.rewards.base import Reward
from esrl_fairseq.rewards.given import named
from esrl_fairseq.rewards.scorer import Scorer, build_scorer
from esrl_fairseq.state.capability import MOST, RECORD, Records
from esrl_fairseq.state.corpus import counts_of_inputs
from esrl_fairseq.state.rl_state import Visit
from esrl_fairseq.state.samples import Samples


class Observer:
    """Makes a :class:`~esrl_fairseq.state.rl_state.Visit` of each batch that was sampled.

    Args:
        words: in the target dictionary.
        measure: what capability is measured by: ``reward``, ``entropy``, the scorer or ``none``.
        noise: ``--capability-noise``.
    """

    def __init__(self, words: int, measure: str | Scorer, noise: str | None):
        self.words, self.measure, self.noise = words, measure, noise

    def visit(self, samples: Samples) -> Visit:
        """Of the inputs that had samples; the baseline gets the rewards of every draw."""
        ids = host_ids(samples.batch)
        records = input_records(samples.rows, samples.scored.rewards, len(ids))
        records["capability"] = self.capability(samples, records)
        seen = records["samples"] > 0
        ids, records = ids[seen], records[seen]
        if self.noise is not None:
            records["capability"] = perturb_capability(
                records["capability"], self.noise, torch.initial_seed(), ids
            )
        rewards, counts = of_draws(samples.rewards, samples.rows), counts_of_inputs(samples)
        return Visit(ids, records, rewards, samples.kl, counts)

    def capability(self, samples: Samples, records: Records) -> np.ndarray:
        """c_i in [0, 1] of every input, NaN where it is not measured."""
        rows = samples.rows
        if isinstance(self.measure, Scorer):
            given = (samples.batch, rows.tokens.tolist(), rows.input_index.tolist())
            return mean_of_draws(self.measure.score(*given).rewards, rows, len(records))
        if self.measure == "entropy":
            entropy = mean_entropy(rows, samples.drawn, len(records))
            return np.clip(1 - entropy / math.log(self.words), 0, 1)
        if self.measure == "reward":
            return records["reward_mean"]
        return np.full(len(records), np.nan)


def bad_numbers(samples: Samples, visit: Visit) -> str:
    """What of a batch is NaN or infinite, in a sentence; empty if nothing is."""
    drawn = samples.drawn
    found = ~(drawn.log_probs + drawn.entropy).isfinite()
    if found.any():
        which = named(int(host_ids(samples.batch)[samples.rows.input_index[found][0]]))
        return f"the model's log-probabilities are not finite (NaN or infinity), first for {which}"
    if not math.isfinite(visit.kl):
        return f"the KL to the frozen model is {visit.kl} in the batch with {named(visit.ids[0])}"
    if not np.isfinite(visit.rewards).all():
        return (
            "rewards minus the KL penalty (--kl-weight) are not finite in the batch with "
            f"{named(visit.ids[0])}"
        )
    return ""


def build_observer(cfg: Any, task: Any, reward: Reward, deciding: str) -> Observer:
    """The observer of a run.

    What ``--capability`` names is measured where something follows it, and where it is known
    anyway. Otherwise capabilities stay unknown, rather than be those of another estimator.

    Args:
        cfg: options of the criterion.
        reward: what ``cfg.reward`` names.
        deciding: the capability that samples or temperatures follow; ``none`` if nothing does.
    """
    measure: str | Scorer = str(task.options.capability)
    if measure == "bleu":
        if cfg.reward == "bleu" and not task.reference_splits:
            measure = "reward"
        else:  # BLEU grows with the number of references, which inputs can have different ones of
            first = deciding == "bleu"
            measure = build_scorer(cfg, task, "bleu", first_reference=True) if first else "none"
    elif measure == "reward" and not reward.in_unit_interval:
        measure = "none"
    return Observer(len(task.target_dictionary), measure, cfg.capability_noise)


def input_records(rows: Rows, rewards: np.ndarray, inputs: int) -> Records:
    """The store's records [inputs], but capability and epoch, from the inputs' draws.

    Args:
        rewards: float ``[rows]``.
    """
    index, weights = rows.input_index, rows.multiplicity
    rewards = rewards.astype(np.float64)
    mean = mean_of_draws(rewards, rows, inputs)
    spread = mean_of_draws(rewards**2, rows, inputs) - mean**2
    records = np.zeros(inputs, dtype=RECORD)
    records["samples"] = segment_sum(weights.double(), index, inputs).clamp(max=MOST).numpy()
    records["reward_mean"] = mean
    records["reward_std"] = np.sqrt(np.maximum(spread, 0))
    return records


def mean_entropy(rows: Rows, drawn: Scores, inputs: int) -> np.ndarray:
    """Mean token entropy of each input's draws, float64 [inputs], in nats."""
    # A mean over tokens, so sums over tokens are divided, not means of rows averaged.
    tokens = np.maximum(mean_of_draws(drawn.lengths, rows, inputs), 1e-9)
    return mean_of_draws(drawn.entropy, rows, inputs) / tokens


def mean_of_draws(values: Any, rows: Rows, inputs: int) -> np.ndarray:
    """Mean of values [rows] over the draws of each input, float64 [inputs]; 0 without draws."""
    values = torch.as_tensor(values, dtype=torch.float64)
    index, weights = rows.input_index, rows.multiplicity
    return segment_mean(values, weights, index, inputs).numpy()


def of_draws(values: np.ndarray, rows: Rows) -> np.ndarray:
    """Values [rows] of every draw, equal ones included."""
    return np.repeat(values, rows.multiplicity.numpy())
