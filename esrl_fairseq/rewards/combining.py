"""Answers of sums and products of rewards, from those of the rewards that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from esrl_fairseq.rewards.answers import Answer, Counts, Scores, as_scores
from esrl_fairseq.rewards.given import has_text

if TYPE_CHECKING:
    from esrl_fairseq.rewards.base import Reward


class Combination:
    """Asks each reward once, however often it occurs.

    Args:
        rows: how many there are.
        references: [inputs] lists of texts.
        ask: what a reward that is not made of others says of the rows, checked.
        check: refuses or clips what is outside of a reward's range.
    """

    def __init__(
        self,
        rows: int,
        references: Sequence[Sequence[str]],
        ask: Callable[[Reward], Answer],
        check: Callable[[Reward, Answer], Answer],
    ):
        self.rows, self.references, self.ask, self.check = rows, references, ask, check
        self.asked: dict[int, Answer] = {}

    def answer(self, reward: Reward) -> Answer:
        """[rows]; of sums and products also what each of their rewards said."""
        if not (reward.parts or reward.factors):
            return self._leaf(reward)
        answer = self.check(reward, self._sum(reward) if reward.parts else self._product(reward))
        answer.parts = {leaf.label: self._said(leaf) for leaf in reward.leaves}
        return answer

    def _leaf(self, reward: Reward) -> Answer:
        if id(reward) not in self.asked:
            self.asked[id(reward)] = self.ask(reward)
        return self.asked[id(reward)]

    def _said(self, leaf: Reward) -> Scores:
        """NaN where it was not asked."""
        answer = self.asked.get(id(leaf))
        return np.full(self.rows, np.nan, np.float32) if answer is None else answer.rewards

    def _sum(self, reward: Reward) -> Answer:
        total, rest = np.zeros((2, self.rows))
        counts: dict[str, Counts] = {}
        for part, weight in reward.parts:
            if weight == 0 and not all(map(self._can_answer, part.leaves)):
                continue
            answer = self.answer(part)
            total += weight * answer.rewards.astype(np.float64)
            rest += weight * answer.rest.astype(np.float64)
            counts.update(answer.counts)
        return Answer(as_scores(total, self.rows), as_scores(rest, self.rows), counts)

    def _product(self, reward: Reward) -> Answer:
        values = [self.answer(factor).rewards for factor in reward.factors]
        total = as_scores(np.prod(values, axis=0, dtype=np.float64), self.rows)
        return Answer(total, total)

    def _can_answer(self, leaf: Reward) -> bool:
        """Whether there is what it needs: this is not checked for what is only logged."""
        return not leaf.needs_references or all(
            refs and all(map(has_text, refs)) for refs in self.references
        )
