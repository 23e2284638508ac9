"""Several updates from each batch of samples (docs/method.md 5, PPO)."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from esrl_fairseq.state.ranks import from_all_ranks, number_of_ranks, own_rank
from esrl_fairseq.state.samples import Samples, pack, unpack

logger = logging.getLogger(__name__)


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
        self.skips = False  # whether the batch ran out of memory, and a dummy takes its place
        self._first = 0  # that of the update which drew what is kept
        self._epoch = 0  # in which it was
        self._kept: list[list[dict[str, Any]]] = []  # packed samples of each rank's batches
        self.begin_update()

    def begin_update(self) -> None:
        """Before an update's batches; the last one may have been given up (overflow, memory)."""
        self._drawn: list[dict[str, Any]] = []
        self._gathered: list[list[dict[str, Any]]] | None = None  # of all ranks
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
        if self.skips or not self._replaying:
            return None
        own = self._kept[own_rank()]
        self._position += 1
        return unpack(own[(self._position - 1) % len(own)], device)

    def keep(self, samples: Samples) -> None:
        """Keep what was drawn, with its ``old_log_probs``."""
        if self.passes > 1:
            scored = replace(samples.scored, rest=None, counts={})
            kept = replace(samples, scored=scored, scores=None, references=None)
            self._drawn.append(pack(kept))

    def gather(self) -> None:
        """Before the optimizer steps; a collective if the update drew its samples."""
        if self.passes > 1 and not self._replaying:
            self._gathered = from_all_ranks(self._drawn)

    def commit(self) -> None:
        """The update is over."""
        if self.passes > 1 and not self._replaying:
            if self._gathered is None:
                self.gather()
            kept = self._gathered or [[]]
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
        old = any("drawn" not in batch for own in kept for batch in own)
        if old or state["kind"] != self.kind or len(kept) != number_of_ranks():
            logger.warning(
                "the checkpoint's samples, of %d rank(s) with %s%s, are not used, because this run "
                "has %d rank(s) with %s: it goes on with new ones",
                len(kept),
                state["kind"],
                " by an earlier version" if old else "",
                number_of_ranks(),
                self.kind,
            )
            return
        self._kept, self._first, self._epoch = kept, state["first"], state["epoch"]
