"""Several updates from each batch of samples (docs/method.md 5, PPO)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
import torch
from fairseq import utils
from numpy.typing import NDArray
from torch import Tensor

from esrl_fairseq.core.schedules import Plan
from esrl_fairseq.core.sequences import Rows
from esrl_fairseq.rewards.scorer import Scored
from esrl_fairseq.state.ranks import from_all_ranks, number_of_ranks, own_rank

logger = logging.getLogger(__name__)


@dataclass
class Samples:
    """A batch of inputs with what was drawn for them and what that is worth.

    Attributes:
        batch: fairseq's batch of the inputs.
        plan: how they were sampled.
        rows: what was drawn.
        scored: the rows' true rewards.
        rewards: float32 ``[rows]``, those that the loss gets.
        dummy: whether fairseq made the batch up for a rank that has none left.
        baseline: b, what the loss subtracts from the rewards.
        kl: sum of the draws' log-ratios to the frozen model, 0 without one.
        old_log_probs: float32 ``[rows, actions]`` under the policy that drew them, without
            gradient; None in the update that draws them, whose own they are.
    """

    batch: dict[str, Any]
    plan: Plan
    rows: Rows
    scored: Scored
    rewards: NDArray[np.float32]
    dummy: bool
    baseline: float = 0.0
    kl: float = 0.0
    old_log_probs: Tensor | None = None


class Replay:
    """Gives each batch of samples to several updates in a row; the first of them draws it.

    The updates are fairseq's own, so that it counts, schedules and logs them as ever. Batch k of a
    later update is replaced by batch k of the first one, whatever fairseq's iterator brings. Ranks
    decide alike without asking each other, by what is the same on all of them: numbers of updates
    and epochs, and whether every rank kept its batches.

    Args:
        passes: updates made from each batch of samples; with 1 nothing is kept.
        kind: the options that say what the log-probabilities are of; only those of equal kinds
            can be compared.
    """

    def __init__(self, passes: int = 1, kind: str = ""):
        self.passes = passes
        self.kind = kind
        self.update = 0  # fairseq's number of the current update
        self._first = 0  # that of the update which drew what is kept
        self._epoch = 0  # in which it was
        self._kept: list[list[dict[str, Any]]] = []  # packed samples of each rank's batches
        self.begin_update()

    def begin_update(self) -> None:
        """Before an update's batches; the last one may have been given up (overflow, memory)."""
        self._drawn: list[dict[str, Any]] = []
        self._position = 0

    def begin_epoch(self, epoch: int) -> None:
        """Begin with new samples, unless this epoch's were resumed."""
        if epoch != self._epoch:
            self._kept = []
            self._epoch = epoch

    @property
    def current_pass(self) -> int:
        """Which of the updates from the same samples the current one is, from 1."""
        return self.update - self._first + 1 if self._replaying else 1

    @property
    def _replaying(self) -> bool:
        # By fairseq's count, in which an update that it gave up does not appear.
        return bool(self._kept) and 0 <= self.update - self._first < self.passes

    def next(self, device: torch.device) -> Samples | None:
        """The update's next kept batch; None if it has to be drawn.

        An epoch's last update may have fewer batches than are kept; the others then have no part
        in it. It has more only if a run is resumed with a higher ``--update-freq``: the kept ones
        then come again.
        """
        if not self._replaying:
            return None
        own = self._kept[own_rank()]
        self._position += 1
        return unpack(own[(self._position - 1) % len(own)], device)

    def keep(self, samples: Samples) -> None:
        """Keep what was drawn, with its ``old_log_probs``."""
        if self.passes > 1:
            self._drawn.append(pack(samples))

    def commit(self) -> None:
        """The update is over; a collective if it drew its samples."""
        if self.passes > 1 and not self._replaying:
            kept = from_all_ranks(self._drawn)
            # A rank that ran out of memory skipped a batch.
            complete = bool(kept[0]) and all(len(own) == len(kept[0]) for own in kept)
            self._kept = kept if complete else []
            self._first = self.update
        self.begin_update()

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only, so the safe loader reads it."""
        return {
            "kind": self.kind,
            "first": self._first,
            "epoch": self._epoch,
            "kept": self._kept,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; samples that cannot be gone on with are left out."""
        kept = state["kept"]
        if self.passes == 1 or not kept:
            return
        if state["kind"] != self.kind or len(kept) != number_of_ranks():
            logger.warning(
                "the checkpoint's samples, of %d rank(s) with %s, are not used, because this run "
                "has %d rank(s) with %s: it goes on with new ones",
                len(kept),
                state["kind"],
                number_of_ranks(),
                self.kind,
            )
            return
        self._kept, self._first, self._epoch = kept, state["first"], state["epoch"]


def pack(value: Any) -> Any:
    """Samples as dictionaries of numbers and tensors, which are copies on the CPU."""
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {name: pack(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    return value.detach().to("cpu", copy=True) if torch.is_tensor(value) else value


def unpack(packed: dict[str, Any], device: torch.device) -> Samples:
    """The samples that :func:`pack` got, their batch and rows on ``device``."""

    def arrays(values: dict[str, Any]) -> dict[str, Any]:
        return {k: v.numpy() if torch.is_tensor(v) else v for k, v in values.items()}

    there = utils.apply_to_sample(lambda tensor: tensor.to(device), packed)
    return Samples(
        batch=there["batch"],
        plan=Plan(**arrays(packed["plan"])),
        rows=Rows(**there["rows"]),
        scored=Scored(**arrays(packed["scored"])),
        rewards=packed["rewards"].numpy(),
        dummy=packed["dummy"],
        baseline=packed["baseline"],
        kl=packed["kl"],
        old_log_probs=there["old_log_probs"],
    )
