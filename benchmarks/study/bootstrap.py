"""Paired bootstrap of a corpus score between methods that have several seeds each.

Koehn, *Statistical Significance Tests for Machine Translation Evaluation*, EMNLP 2004. The test set
is resampled, the same sentences for all systems; on each resample the score of a method is the
mean over its seeds, and the difference of two methods that of their means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from metrics import Score

RESAMPLES = 2000
SEED = 12345


@dataclass(frozen=True)
class Comparison:
    """A method less another, in the score.

    Attributes:
        difference: on the test set.
        low, high: the middle 95% of the resamples' differences.
        p: two-sided; the chance of such a difference if there were none.
    """

    difference: float
    low: float
    high: float
    p: float


def resampled(
    systems: Sequence[np.ndarray], score: Score, resamples: int = RESAMPLES, seed: int = SEED
) -> np.ndarray:
    """Score of a method on each resample, the mean over its seeds, ``[resamples]``.

    Args:
        systems: counts of each seed's output, ``[sentences, …]``, see metrics.Metric.
        score: of summed counts.
        resamples: how many.
        seed: methods that are compared need the same one. The draws are those of sacreBLEU.
    """
    sentences = len(systems[0])
    rng = np.random.default_rng(seed)
    drawn = rng.choice(sentences, size=(resamples, sentences), replace=True)
    times = np.zeros((resamples, sentences))  # how often each sentence was drawn
    np.add.at(times, (np.arange(resamples)[:, None], drawn), 1)
    return np.mean([[score(row) for row in times @ system] for system in systems], axis=0)


def compare(
    method: Sequence[np.ndarray],
    other: Sequence[np.ndarray],
    score: Score,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Difference of two methods, each given as the counts of its seeds' outputs.

    With D on the test set and D_b on resample b,

        p = (1 + #{b: |D_b − mean(D)| ≥ |D|}) / (1 + resamples),

    the resamples' differences, moved to the mean 0 of the null hypothesis, being what chance makes.
    It is two-sided; sacreBLEU counts |D_b| − mean(|D|) > |D|, one side in effect: about half.
    """
    difference = float(np.mean([score(counts.sum(0)) for counts in method]))
    difference -= float(np.mean([score(counts.sum(0)) for counts in other]))
    by_chance = resampled(method, score, resamples, seed)
    by_chance -= resampled(other, score, resamples, seed)
    low, high = np.percentile(by_chance, [2.5, 97.5])
    extreme = np.abs(by_chance - by_chance.mean()) >= abs(difference)
    p = (1 + int(extreme.sum())) / (1 + resamples)
    return Comparison(difference, float(low), float(high), p)
