"""Sentence-level translation edit rate by sacrebleu, turned so that higher is better."""

from __future__ import annotations

from collections.abc import Sequence

import sacrebleu

from esrl_fairseq.rewards.base import Reward, register_reward


@register_reward("ter")
class TerReward(Reward):
    """max(0, 1 − TER / 100), in [0, 1], TER being ``sacrebleu.TER(…).sentence_score``.

    TER itself is an error rate: lower is better, and without bound, because a long hypothesis may
    need more edits than the reference has words. Here 1 is a perfect hypothesis, and all that need
    as many edits as the reference has words, or more, score 0 alike; an empty one is among them.

    The computation is sacrebleu's own, in Python, and slow: some 0.4 ms a pair for captions of 12
    words, 20 ms for long sentences. Only the tokenized references are kept, by sacrebleu itself.

    Args:
        normalized: Tercom's normalisation of punctuation and entities.
        no_punct: compare without punctuation.
        asian_support: with one of the two above, treat Chinese and Japanese characters too.
        case_sensitive: TER ignores case by default.
    """

    range = (0.0, 1.0)

    def __init__(
        self,
        normalized: bool = False,
        no_punct: bool = False,
        asian_support: bool = False,
        case_sensitive: bool = False,
    ) -> None:
        self._metric = sacrebleu.TER(normalized, no_punct, asian_support, case_sensitive)

    def signature(self) -> str:
        """The formula and sacrebleu's own signature, for a varying number of references."""
        self._metric.num_refs = -1
        return f"{self.name}|max(0,1-TER/100)|{self._metric.get_signature().format()}"

    def score(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> list[float]:
        """[rows] in [0, 1]; see `Reward.score`."""
        rates = (
            self._metric.sentence_score(text, references[i]).score
            for text, i in zip(hypotheses, row_input)
        )
        return [max(0.0, 1.0 - rate / 100) for rate in rates]
