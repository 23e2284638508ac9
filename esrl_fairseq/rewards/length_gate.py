"""A gate for the length of a hypothesis: a factor of rewards that do not judge it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.base import Reward, register_reward
from esrl_fairseq.rewards.bleu_counts import check_choice

UNITS: dict[str, Callable[[str], int]] = {
    "characters": lambda text: len("".join(text.split())),
    "words": lambda text: len(text.split()),
}
SOURCE, REFERENCE = "source", "reference"


@register_reward("length-gate")
class LengthGate(Reward):
    """1 for a text that is from `low` to `high` times as long as what it is compared with, else 0.

    An empty hypothesis gets 0. Of several references any will do.

    Args:
        to: ``source`` or ``reference``.
        low: smallest ratio, above 0.
        high: largest ratio.
        unit: ``characters``, without blanks, or ``words``, which blanks separate.

    Raises:
        EsrlError: for a value that is not one of these.
    """

    range = (0.0, 1.0)

    def __init__(
        self, to: str = SOURCE, low: float = 0.5, high: float = 2.0, unit: str = "characters"
    ) -> None:
        check_choice(self.name, "to", to, (SOURCE, REFERENCE))
        check_choice(self.name, "unit", unit, tuple(UNITS))
        numbers = not any(isinstance(bound, (bool, str)) for bound in (low, high))
        if not (numbers and 0 < low <= high and math.isfinite(low)):
            raise EsrlError(
                f"reward {self.name!r}: low and high must be numbers above 0, low not above high, "
                f"but are {low!r} and {high!r}"
            )
        self.to, self.low, self.high, self.unit = to, low, high, unit
        self.needs_references = to == REFERENCE
        self.needs_sources = to == SOURCE

    def signature(self) -> str:
        """The options."""
        return f"{self.name}|{self.low:g}<=hypothesis/{self.to}<={self.high:g}|unit:{self.unit}"

    def score(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> list[float]:
        """[rows]; see `Reward.score`."""
        length = UNITS[self.unit]
        texts = [[text] for text in sources] if self.to == SOURCE else references
        others = [{length(text) for text in each} for each in texts]
        return [
            float(any(self.low * n <= length(text) <= self.high * n for n in others[i] if n))
            for text, i in zip(hypotheses, row_input)
        ]
