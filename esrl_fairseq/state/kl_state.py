"""What the KL penalty remembers between updates."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

from esrl_fairseq.core.kl import adapted_weight
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.state.reading import unreadable

logger = logging.getLogger(__name__)


@dataclass
class KLState:
    """The KL penalty's weight λ, and which model it is measured from.

    Attributes:
        weight: λ of the current update; 0 where there is no penalty.
        target: nats a sequence that λ is adapted to; None keeps λ.
        reference: fingerprint of the frozen model; empty before it is loaded.
        given: ``--kl-weight``, from which λ is adapted.
    """

    weight: float = 0.0
    target: float | None = None
    reference: str = ""
    given: float = field(init=False)

    def __post_init__(self) -> None:
        self.given = self.weight

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

    def state_dict(self) -> dict[str, float | str]:
        """What a checkpoint keeps."""
        return {"weight": self.weight, "reference": self.reference, "given": self.given}

    def restore(self, weight: float, reference: str, given: float | None = None) -> None:
        """Continue from a checkpoint: with its λ if λ is adapted; a fixed one is as it was given.

        Args:
            given: see the attribute; None of a checkpoint from before it was kept.

        Raises:
            EsrlError: λ is not what a checkpoint keeps.
        """
        if not reference:  # it was trained without a penalty
            return
        self.reference = reference
        if self.target is not None:
            if not 0 < weight < math.inf:
                raise unreadable("KL weight", f"it is {weight!r}")
            if given not in (None, self.given):
                logger.warning(
                    "--kl-weight %s is not used: this run began with %s, and goes on with what "
                    "--kl-target has made of it, %.3g, from the checkpoint",
                    self.given,
                    given,
                    weight,
                )
            self.weight = weight
