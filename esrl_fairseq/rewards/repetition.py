"""How little a hypothesis repeats itself; a term for weighted sums."""

from __future__ import annotations

from collections.abc import Sequence

from esrl_fairseq.rewards.base import Reward, register_reward

ORDERS = (2, 3, 4)


@register_reward("repetition")
class RepetitionReward(Reward):
    """Π_{n=2..4} (distinct n-grams / n-grams) of the hypothesis's words, in [0, 1].

    The "diversity" of Su et al. (2022, *A Contrastive Framework for Neural Text Generation*). 1
    where no two words in succession come twice, close to 0 for a text that runs in circles. An
    order that the text is too short for counts 1, so an empty text scores 1: this is a term
    beside a reward that judges the content, not a reward on its own. Words are what blanks
    separate. References are not needed.
    """

    range = (0.0, 1.0)
    needs_references = False

    def signature(self) -> str:
        """The formula."""
        return f"{self.name}|product of distinct/all|n:2-4|unit:words"

    def score(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> list[float]:
        """[rows]; see `Reward.score`."""
        return [_diversity(text.split()) for text in hypotheses]


def _diversity(words: list[str]) -> float:
    product = 1.0
    for order in ORDERS:
        ngrams = list(zip(*(words[start:] for start in range(order))))
        if ngrams:
            product *= len(set(ngrams)) / len(ngrams)
    return product
