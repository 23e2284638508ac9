"""Several rewards as one: their weighted sum, whose parts can be products."""

from __future__ import annotations

import itertools
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
        parts: rewards and their weights, finite. Those of weight 0 are logged and no more: where
            they need references that there are not, they are left out.

    Raises:
        EsrlError: all weights are 0, or a part that should fall would be made to rise.
    """

    def __init__(self, name: str, parts: Sequence[tuple[Reward, float]]) -> None:
        for part, weight in parts:
            if not part.higher_is_better and weight > 0:
                raise EsrlError(
                    f"reward {name!r}: lower is better for {part.name!r}, so that its weight must "
                    f"be negative, not {weight:g}"
                )
        # Counts of a corpus follow it, also where they are only logged.
        raised = [part for part, weight in parts if weight or part.counted]
        if not any(weight for _, weight in parts):
            raise EsrlError(
                f"reward {name!r}: a part of weight 0 is logged and no more, so that another one "
                "has to have a weight"
            )
        self.name = name
        self.parts = parts
        self.needs_references = any(part.needs_references for part in raised)
        self.references_optional = any(part.references_optional for part in raised)
        self.needs_sources = any(part.needs_sources for part in raised)
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
        values = [weight * np.asarray(part.score(*batch)) for part, weight in self.parts if weight]
        total: Floats = np.sum(values, axis=0, dtype=np.float64)
        return total


class Product(Reward):
    """Π reward. A factor that is 0 or 1 is a gate: what it does not let through gets 0.

    Args:
        name: for messages, as it was asked for.
        factors: two or more.

    Raises:
        EsrlError: lower is better for one of them, or one follows the counts of a whole corpus.
    """

    def __init__(self, name: str, factors: Sequence[Reward]) -> None:
        for factor in factors:
            if not factor.higher_is_better:
                raise EsrlError(
                    f"reward {name!r}: lower is better for {factor.name!r}, so that it cannot be a "
                    "factor: give it a negative weight of its own"
                )
            if factor.counted:
                raise EsrlError(
                    f"reward {name!r}: {factor.name!r} is the score of a whole corpus, of which "
                    "no sentence can be left out, so that it cannot be multiplied: take bleu, or "
                    "put it into a sum"
                )
        self.name = name
        self.factors = factors
        self.needs_references = any(factor.needs_references for factor in factors)
        self.references_optional = any(factor.references_optional for factor in factors)
        self.needs_sources = any(factor.needs_sources for factor in factors)
        corners = [*map(_product, itertools.product(*(factor.range for factor in factors)))]
        self.range = min(corners), max(corners)

    def signature(self) -> str:
        """The signatures of the factors."""
        return " * ".join(factor.signature() for factor in self.factors)

    def score(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> Floats:
        """float64 [rows]; see `Reward.score`. `score_rows` asks the factors themselves instead."""
        batch = (sources, references, hypotheses, row_input)
        total: Floats = np.prod([np.asarray(x.score(*batch)) for x in self.factors], axis=0)
        return total


def _product(numbers: Sequence[float]) -> float:
    """0 times infinity is 0: a bound is never reached."""
    return 0.0 if 0 in numbers else math.prod(numbers)


def _range(parts: Sequence[tuple[tuple[float, float], float]]) -> tuple[float, float]:
    """Of the weighted sum of numbers that have these ranges."""
    # fsum rounds once: weights such as 0.7, 0.2 and 0.1 add up to exactly 1.
    return (
        math.fsum(min(_product((weight, bound)) for bound in bounds) for bounds, weight in parts),
        math.fsum(max(_product((weight, bound)) for bound in bounds) for bounds, weight in parts),
    )
