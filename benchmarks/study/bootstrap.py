"""Paired bootstrap of corpus BLEU between methods that have several seeds each.

Koehn, *Statistical Significance Tests for Machine Translation Evaluation*, EMNLP 2004. The test set
is resampled, the same sentences for all systems; on each resample the corpus BLEU of a method is
the mean over its seeds, and the difference of two methods that of their means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sacrebleu.metrics.bleu import BLEU

RESAMPLES = 2000
SEED = 12345
ORDER = 4


@dataclass(frozen=True)
class Comparison:
    """A method less another, in BLEU.

    Attributes:
        difference: on the test set.
        low, high: the middle 95% of the resamples' differences.
        p: two-sided; the chance of such a difference if there were none.
    """

    difference: float
    low: float
    high: float
    p: float


def sentence_statistics(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """What corpus BLEU is a function of the sum of, int32 ``[sentences, 2 + 2 * ORDER]``.

    Columns: words of the hypothesis, of the reference, correct n-grams by order, n-grams by order.
    """
    metric = BLEU(effective_order=True)  # the counts are the same; without it every call warns
    scores = [metric.sentence_score(h, [r]) for h, r in zip(hypotheses, references, strict=True)]
    rows = [[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in scores]
    return np.array(rows, dtype=np.int32)


def corpus_bleu(total: np.ndarray) -> float:
    """BLEU of summed statistics ``[2 + 2 * ORDER]``, as ``BLEU().corpus_score`` computes it."""
    words, reference_words, *counts = (int(value) for value in total)
    return BLEU.compute_bleu(
        counts[:ORDER], counts[ORDER:], words, reference_words, smooth_method="exp"
    ).score


def resampled(
    systems: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = SEED
) -> np.ndarray:
    """BLEU of a method on each resample, the mean over its seeds, ``[resamples]``.

    Args:
        systems: statistics of each seed's output, ``[sentences, 2 + 2 * ORDER]``.
        resamples: how many.
        seed: methods that are compared need the same one. The draws are those of sacreBLEU.
    """
    sentences = len(systems[0])
    rng = np.random.default_rng(seed)
    drawn = rng.choice(sentences, size=(resamples, sentences), replace=True)
    times = np.zeros((resamples, sentences))  # how often each sentence was drawn
    np.add.at(times, (np.arange(resamples)[:, None], drawn), 1)
    return np.mean([[corpus_bleu(row) for row in times @ system] for system in systems], axis=0)


def compare(
    method: Sequence[np.ndarray],
    other: Sequence[np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Difference of two methods, each given as the statistics of its seeds' outputs.

    With D on the test set and D_b on resample b,

        p = (1 + #{b: |D_b − mean(D)| ≥ |D|}) / (1 + resamples),

    the resamples' differences, moved to the mean 0 of the null hypothesis, being what chance makes.
    It is two-sided; sacreBLEU counts |D_b| − mean(|D|) > |D|, one side in effect: about half.
    """
    difference = float(np.mean([corpus_bleu(s.sum(0)) for s in method]))
    difference -= float(np.mean([corpus_bleu(s.sum(0)) for s in other]))
    by_chance = resampled(method, resamples, seed) - resampled(other, resamples, seed)
    low, high = np.percentile(by_chance, [2.5, 97.5])
    extreme = np.abs(by_chance - by_chance.mean()) >= abs(difference)
    p = (1 + int(extreme.sum())) / (1 + resamples)
    return Comparison(difference, float(low), float(high), p)
