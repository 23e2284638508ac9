"""What the KL penalty remembers between updates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from esrl_fairseq.core.kl import adapted_weight
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.state.reading import unreadable


@dataclass
class KLState:
    """The KL penalty's weight λ, and which model it is measured from.

    Attributes:
        weight: λ of the current update; 0 where there is no penalty.
        target: nats a sequence that λ is adapted to; None keeps λ.
        reference: fingerprint of the frozen model; empty before it is loaded.
    """

    weight: float = 0.0
    target: float | None = None
    reference: str = ""

    def measure_from(self, fingerprint: str) -> None:
        """The frozen model was loaded: it must be the one that the run began with.

        Raises:
            EsrlError: the checkpoint that was resumed from knows another one.
        """
        if self.reference not in ("", fingerprint):
            raise EsrlError(
                "the frozen model of --kl-weight is not the one that this run began with: give "
                "--kl-reference the file with that one, or start anew with --restore-file "
                "CHECKPOINT --reset-dataloader --reset-optimizer --reset-lr-scheduler "
                "--reset-meters"
            )
        self.reference = fingerprint

    def end_update(self, kl: float) -> None:
        """Adapt λ to the mean log-ratio of an update's draws, over all ranks."""
        if self.target is not None:
            self.weight = adapted_weight(self.weight, kl, self.target)

    def restore(self, weight: float, reference: str) -> None:
        """Continue from a checkpoint: with its λ if λ is adapted; a fixed one is as it was given.

        Raises:
            EsrlError: λ is not what a checkpoint keeps.
        """
        if not reference:  # it was trained without a penalty
            return
        self.reference = reference
        if self.target is not None:
            if not 0 < weight < math.inf:
                raise unreadable("KL weight", f"it is {weight!r}")
            self.weight = weight
