"""Several rewards as one: their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.base import Reward
from esrl_fairseq.rewards.counted import CountedReward
from esrl_fairseq.rewards.ngrams import Floats


class WeightedSum(Reward):
    """Σ weight · reward; the weights are used as given, not normalised.

    Its range follows from those of the parts, so ``bleu:0.5+chrf:0.5`` lies in [0, 1] and
    ``bleu+length:0.1`` in [0, 1.1].

    Args:
        name: for messages, as it was asked for.
        parts: rewards and their weights, finite and not 0.

    Raises:
        EsrlError: a part that should fall would be made to rise.
    """

    def __init__(self, name: str, parts: Sequence[tuple[Reward, float]]) -> None:
        for part, weight in parts:
            if not part.higher_is_better and weight > 0:
                raise EsrlError(
                    f"reward {name!r}: lower is better for {part.name!r}, so that its weight must "
                    f"be negative, not {weight:g}"
                )
        self.name = name
        self.parts = parts
        self.needs_references = any(part.needs_references for part, _ in parts)
        self.references_optional = any(part.references_optional for part, _ in parts)
        self.needs_sources = any(part.needs_sources for part, _ in parts)
        self.range = _range([(part.range, weight) for part, weight in parts])

    @property
    def validation_range(self) -> tuple[float, float]:
        """Of the weighted sum of what validation logs of the parts."""
        return _range([(part.validation_range, weight) for part, weight in self.parts])

    @property
    def counted(self) -> Sequence[tuple[CountedReward, float]]:
        """Those of the parts."""
        return [(inner, weight * w) for part, weight in self.parts for inner, w in part.counted]

    def signature(self) -> str:
        """The weights and signatures of the parts."""
        return " + ".join(f"{weight:g} * {part.signature()}" for part, weight in self.parts)

    def score(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> Floats:
        """float64 [rows]; see `Reward.score`. `score_rows` asks the parts themselves instead."""
        batch = (sources, references, hypotheses, row_input)
        values = [weight * np.asarray(part.score(*batch)) for part, weight in self.parts]
        total: Floats = np.sum(values, axis=0, dtype=np.float64)
        return total


def _range(parts: Sequence[tuple[tuple[float, float], float]]) -> tuple[float, float]:
    """Of the weighted sum of numbers that have these ranges."""
    # fsum rounds once: weights such as 0.7, 0.2 and 0.1 add up to exactly 1.
    return (
        math.fsum(min(weight * bound for bound in bounds) for bounds, weight in parts),
        math.fsum(max(weight * bound for bound in bounds) for bounds, weight in parts),
    )
