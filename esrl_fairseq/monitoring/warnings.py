"""Warnings for runs that go wrong in the ways that RL is known for."""

from __future__ import annotations

import logging
from typing import Any

from esrl_fairseq.state.samples import Samples

logger = logging.getLogger(__name__)

SAFE_LEARNING_RATE = 5e-4
"""Above it, updates from noisy rewards are known to destroy a converged model."""
ENOUGH_ROWS = 1000
MUCH_TRUNCATED = 0.1
USUAL_LENGTH = (0.6, 1.6)
"""Words of the samples over words of their references; beyond it a reward is likely to be gamed."""
WEAK_REWARD_DROP = 0.005
SUMS = ("reward_sum", "rows", "truncated", "words", "reference_words")
"""Of the training batches since the last validation."""


class Monitor:
    """Watches learning rate, truncation, length, and training reward against validation reward.

    Sums are this rank's own; warnings are for a person, so that suffices.
    """

    def __init__(self) -> None:
        self.reward_sum = self.rows = self.truncated = 0.0  # since the last validation
        self.words = self.reference_words = 0.0  # likewise
        self.valid_sum = self.valid_rows = 0.0
        self.last_train = self.last_valid = float("-inf")
        self.validated = False
        self.warned: dict[str, bool] = {}
        self.before: dict[str, float] | None = None  # the sums before the current update

    def begin_update(self) -> None:
        """Forget the batches of an update that fairseq gave up (overflow, memory)."""
        if self.before is not None:
            vars(self).update(self.before)
        self.before = {name: getattr(self, name) for name in SUMS}

    def add_batch(
        self, reward_sum: float, rows: int, truncated: int, words: int, reference_words: int
    ) -> None:
        """Count a training batch; no words where there are no references."""
        self.reward_sum += reward_sum
        self.rows += rows
        self.truncated += truncated
        self.words += words
        self.reference_words += reference_words

    def add_choice(self, samples: Samples, share: float) -> None:
        """Warn where chance chose no row of a batch, whose gradient is 0 therefore."""
        if samples.loss is not None and not samples.loss.weights.any():
            self._once(
                "nothing chosen",
                f"--rescored-share {share:g} is so little of a batch that chance chose no sample "
                "of one, which taught the model nothing: raise it, or take --selection top, which "
                "always takes one",
            )

    def begin_validation(self) -> None:
        """Validation starts; its batches arrive through :meth:`add_validation`."""
        self.valid_sum = self.valid_rows = 0.0
        self.validated = True

    def add_validation(self, reward_sum: float, rows: int) -> None:
        """Count a validation batch."""
        self.valid_sum += reward_sum
        self.valid_rows += rows

    def set_validation(self, reward: float) -> None:
        """The validation's reward, of all ranks, where that is no mean over batches."""
        self.valid_sum, self.valid_rows = reward, 1.0

    def end_update(self, learning_rate: float) -> None:
        """Warn of what can be seen after an update."""
        self.before = None
        if learning_rate > SAFE_LEARNING_RATE:
            self._once(
                "lr",
                f"learning rate {learning_rate:g} is unsafe for RL on a converged model: "
                f"stay at or below {SAFE_LEARNING_RATE:g} (1e-4 with Adam is a good start)",
            )
        if self.rows >= ENOUGH_ROWS and self.truncated > MUCH_TRUNCATED * self.rows:
            self._once(
                "truncated",
                f"{self.truncated / self.rows:.0%} of the samples reached the length limit; "
                "raise --sample-max-len-a/-b, or see whether the model has stopped ending its "
                "sentences",
            )
        if self.rows >= ENOUGH_ROWS and self.reference_words:
            ratio = self.words / self.reference_words
            if not USUAL_LENGTH[0] <= ratio <= USUAL_LENGTH[1]:
                self._once(
                    "length",
                    f"the samples have {ratio:.2f} times as many words as their references: if "
                    "that was not so from the start, the reward is being gamed; add --kl-weight, "
                    "or the term length to --reward",
                )

    def end_validation(self) -> None:
        """Compare with the validation before; called before the first batch after a validation."""
        if not self.validated:
            return
        self.validated = False
        if self.rows == 0 or self.valid_rows == 0:
            return
        train, valid = self.reward_sum / self.rows, self.valid_sum / self.valid_rows
        if train > self.last_train and valid < self.last_valid - WEAK_REWARD_DROP:
            logger.warning(
                "the training reward rose from %.4f to %.4f while the validation reward fell "
                "from %.4f to %.4f: the reward may be wrong or gamed, or the learning rate too "
                "high; look at samples and at the length ratio",
                self.last_train,
                train,
                self.last_valid,
                valid,
            )
        self.last_train, self.last_valid = train, valid
        vars(self).update(dict.fromkeys(SUMS, 0.0))
        if self.before is not None:
            self.before = dict.fromkeys(SUMS, 0.0)

    def _once(self, topic: str, message: str) -> None:
        if not self.warned.get(topic):
            self.warned[topic] = True
            logger.warning(message)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {**vars(self), **(self.before or {}), "before": None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        vars(self).update(state)
