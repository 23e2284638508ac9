"""Rewards that are the derivative of a whole corpus's score with respect to its counts.

Such a score has no value for one sentence. But a sentence moves it, by a linear function of the
sentence's counts, whose slopes depend on the counts of the corpus. These are means that follow
the training (`MovingCounts`) and belong to the checkpoint.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Sequence

import numpy as np

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.base import Reward
from esrl_fairseq.rewards.bleu_counts import check_choice
from esrl_fairseq.rewards.ngrams import Floats

logger = logging.getLogger(__name__)

SAMPLES, VALIDATION = "samples", "validation"
DEFAULT_DECAY = 0.9


class MovingCounts:
    """Mean counts of a sentence: where the slopes of a corpus's score are taken.

    Args:
        kind: what is counted; counts of other kinds in a checkpoint are not gone on with.
        source: `SAMPLES`: a moving average over updates, which begins with the first validation;
            `VALIDATION`: the hypotheses of the last validation.
        decay: weight of the past in the moving average.

    Attributes:
        mean: float64 [counts]; None before anything was seen.
    """

    def __init__(self, kind: str, source: str, decay: float):
        self.kind, self.source, self.decay = kind, source, decay
        self.mean: Floats | None = None

    def validated(self, mean: Floats) -> None:
        """A validation is over, whose hypotheses have these mean counts."""
        if self.mean is None or self.source == VALIDATION:
            self.mean = mean

    def sampled(self, mean: Floats) -> None:
        """An update is over, whose samples have these mean counts."""
        if self.source == SAMPLES:
            past = mean if self.mean is None else self.mean
            self.mean = self.decay * past + (1 - self.decay) * mean

    def restore(self, kind: str, mean: Floats) -> None:
        """Continue from a checkpoint; counts of another kind are left out, with a warning.

        Raises:
            EsrlError: they are no counts.
        """
        if mean.ndim != 1 or not np.isfinite(mean).all() or (mean < 0).any():
            raise EsrlError(
                f"the checkpoint's mean counts of {kind} cannot be read ({mean!r}): choose another "
                "checkpoint"
            )
        if kind != self.kind:
            logger.warning(
                "the checkpoint's mean counts are of %s, this run counts %s: it begins with those "
                "of a validation",
                kind,
                self.kind,
            )
            return
        self.mean = mean


class CountedReward(Reward):
    """level + Σ_k slope_k · count_k, with level and slopes of the corpus's score at its counts.

    So it is the score that the corpus would have, to first order, if every sentence was like this
    one; its mean over the sentences that the counts are of is their score. Without any statistics
    yet, as in a program, they are those of the texts that are asked about.

    Args:
        kind: what is counted, for the checkpoint.
        statistics: `SAMPLES` or `VALIDATION`.
        decay: see `MovingCounts`; for `SAMPLES` alone.

    Raises:
        EsrlError: an option is none of these.
    """

    def __init__(self, kind: str, statistics: str, decay: float | None):
        check_choice(self.name, "statistics", statistics, (SAMPLES, VALIDATION))
        if decay is not None and statistics != SAMPLES:
            raise EsrlError(
                f"reward {self.name!r}: decay is for statistics=samples, which are a moving "
                f"average; leave it out with statistics={statistics}"
            )
        decay = DEFAULT_DECAY if decay is None else decay
        if isinstance(decay, (bool, str)) or not 0 <= decay < 1:
            raise EsrlError(
                f"reward {self.name!r}: decay must be a number from 0 to below 1, not {decay!r}"
            )
        self.moving = MovingCounts(kind, statistics, decay)

    number: int
    """Of counts."""

    @property
    def validation_range(self) -> tuple[float, float]:
        """Of the corpus's score."""
        return 0.0, 1.0

    @property
    def counted(self) -> Sequence[tuple[CountedReward, float]]:
        """It alone."""
        return ((self, 1.0),)

    @abc.abstractmethod
    def counts(
        self,
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> Floats:
        """float64 [rows, counts]; arguments as those of `score`."""

    @abc.abstractmethod
    def corpus_score(self, totals: Floats) -> float:
        """The score of a corpus whose counts [counts], summed over its sentences, are these."""

    @abc.abstractmethod
    def tangent(self, mean: Floats) -> tuple[float, Floats]:
        """Level and slopes [counts] at the mean counts [counts] of a sentence; always finite."""

    def values(self, counts: Floats) -> Floats:
        """float64 [rows] of the rows' counts [rows, counts]."""
        mean = counts.mean(axis=0) if self.moving.mean is None else self.moving.mean
        level, slopes = self.tangent(mean)
        result: Floats = level + (counts * slopes).sum(axis=1)
        return result

    def score(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> Floats:
        """float64 [rows]; see `Reward.score`."""
        return self.values(self.counts(references, hypotheses, row_input))

    def answer(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> tuple[Floats, Floats]:
        """Values [rows], and the counts [rows, counts] that they are of."""
        counts = self.counts(references, hypotheses, row_input)
        return self.values(counts), counts
