"""Mean counts of the rewards that follow the counts of a whole corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from esrl_fairseq.core.losses import segment_sum
from esrl_fairseq.rewards.base import Reward
from esrl_fairseq.rewards.counted import MovingCounts
from esrl_fairseq.state.samples import Samples


class CorpusCounts:
    """The moving counts of a reward and its parts, by their names; most rewards have none.

    Args:
        reward: what training raises; None: nothing.
    """

    def __init__(self, reward: Reward | None = None):
        counted = reward.counted if reward is not None else ()
        self.moving: dict[str, MovingCounts] = {part.name: part.moving for part, _ in counted}

    @property
    def missing(self) -> list[str]:
        """The rewards that no counts are known for yet."""
        return [name for name, moving in self.moving.items() if moving.mean is None]

    def commit(self, visits: Sequence[Mapping[str, NDArray[np.float64]]], inputs: int) -> None:
        """The update is over, whose batches, of all ranks, showed these sums over inputs."""
        for name, moving in self.moving.items():
            if inputs:
                moving.sampled(np.sum([counts[name] for counts in visits], axis=0) / inputs)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and strings only, so the safe loader reads it."""
        return {
            name: {"kind": moving.kind, "mean": torch.from_numpy(moving.mean.copy())}
            for name, moving in self.moving.items()
            if moving.mean is not None
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; of rewards that this run does not have nothing is taken.

        Raises:
            EsrlError: the counts of a reward are none.
        """
        for name, moving in self.moving.items():
            if name in state:
                moving.restore(state[name]["kind"], state[name]["mean"].numpy().copy())


def counts_of_inputs(samples: Samples) -> dict[str, NDArray[np.float64]]:
    """Of each reward's counts the means over an input's draws, summed over inputs: [counts]."""
    rows, counts = samples.rows, samples.scored.counts
    if not counts:
        return {}
    index, draws = rows.input_index, rows.multiplicity.double()
    weights = (draws / segment_sum(draws, index, samples.inputs)[index]).numpy()
    return {name: (weights[:, None] * values).sum(axis=0) for name, values in counts.items()}
