"""How close the length of a hypothesis is to that of a reference; a term for weighted sums."""

from __future__ import annotations

from collections.abc import Sequence

from esrl_fairseq.rewards.base import Reward, register_reward


@register_reward("length")
class LengthReward(Reward):
    """min(h, r) / max(h, r), h and r the words of hypothesis and reference, in [0, 1].

    1 for equal lengths, 0 for an empty hypothesis, 1/2 for one that is twice as long as the
    reference or half as long. Of several references the closest one counts. Words are what blanks
    separate, so it says nothing about texts without blanks.
    """

    range = (0.0, 1.0)

    def signature(self) -> str:
        """The formula."""
        return f"{self.name}|min(h,r)/max(h,r)|unit:words|nrefs:closest"

    def score(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> list[float]:
        """[rows]; see `Reward.score`."""
        lengths = [{len(text.split()) for text in refs} for refs in references]
        return [
            max(_ratio(len(text.split()), length) for length in lengths[i])
            for text, i in zip(hypotheses, row_input)
        ]


def _ratio(one: int, other: int) -> float:
    return min(one, other) / max(one, other)
