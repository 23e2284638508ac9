"""What a sentence adds to the BLEU of the whole corpus.

Corpus BLEU of expected counts is B = exp(min(0, 1 − R/C) + ¼ Σ_n log(M_n/T_n)), with M_n, T_n
matches and totals of n-grams, C and R the lengths of hypotheses and references, as means over
sentences. Its derivative is linear in a sentence's counts (Tromble et al., EMNLP 2008, linearise
BLEU so for minimum Bayes risk decoding):

    B · (¼ Σ_n (m_n/M_n − t_n/T_n) + [C < R] (R/C² · c − r/C))

B as a factor makes it BLEU, not log BLEU: it then has the scale of sentence BLEU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import sacrebleu

from esrl_fairseq.rewards.base import register_reward
from esrl_fairseq.rewards.bleu_counts import MAX_ORDER, BleuTexts
from esrl_fairseq.rewards.counted import SAMPLES, CountedReward
from esrl_fairseq.rewards.ngrams import Floats, ngram_totals

RARE = 1e-3
"""Matches and totals of an order are taken for at least so many a word of the references."""
SHORT = 0.25
"""Hypotheses are taken for at least so long, in lengths of the references."""
MATCHES, TOTALS = slice(2, 2 + MAX_ORDER), slice(2 + MAX_ORDER, 2 + 2 * MAX_ORDER)


@register_reward("corpus-bleu")
class CorpusBleuReward(BleuTexts, CountedReward):
    """B + the derivative of corpus BLEU, B, for a sentence: equal to sacrebleu's, over 100.

    Not within [0, 1]: a sentence that is worse than the others can be below 0. Its mean over the
    corpus that the counts are of is B.

    Args:
        tokenize: ``13a`` (detokenised text), ``none`` (text that is tokenised already), ``intl``,
            ``char`` or ``zh``.
        lowercase: compare without case.
        statistics: mean counts are those of the ``samples``, or of the last ``validation``.
        decay: weight of the past in the moving average over samples, from 0 to below 1 (0.9).

    Raises:
        EsrlError: for a value that is not one of these.
    """

    number = 2 + 2 * MAX_ORDER

    def __init__(
        self,
        tokenize: str = "13a",
        lowercase: bool = False,
        statistics: str = SAMPLES,
        decay: float | None = None,
    ) -> None:
        BleuTexts.__init__(self, tokenize, lowercase)
        kind = f"{self.name} tok:{tokenize} case:{'lc' if lowercase else 'mixed'}"
        CountedReward.__init__(self, kind, statistics, decay)

    def signature(self) -> str:
        """Name, statistics and sacrebleu's signature of the score that validation logs."""
        return f"{super().signature()}|statistics:{self.moving.source}"

    def counts(
        self,
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> Floats:
        """float64 [rows, 10]: lengths of hypothesis and reference, matches and totals by order."""
        correct, lengths, closest = self.count(references, hypotheses, row_input)
        totals = ngram_totals(lengths, MAX_ORDER)
        return np.column_stack([lengths, closest, correct, totals]).astype(np.float64)

    def corpus_score(self, totals: Floats) -> float:
        """sacrebleu's corpus BLEU / 100 of counts [10] summed over a corpus, smoothed as there."""
        sys_len, ref_len, *ngrams = (round(float(total)) for total in totals)
        found = sacrebleu.BLEU.compute_bleu(
            ngrams[:MAX_ORDER], ngrams[MAX_ORDER:], sys_len, ref_len, smooth_method="exp"
        )
        return float(found.score) / 100

    def tangent(self, mean: Floats) -> tuple[float, Floats]:
        """BLEU at mean counts [10], 0 to 1, and its derivative by each of them.

        Where counts are below `RARE` or `SHORT`, log BLEU goes on as its tangent does there.
        """
        reference = mean[1]
        at_least = max(reference, 1.0)
        length = max(mean[0], SHORT * at_least)
        matches = np.maximum(mean[MATCHES], RARE * at_least)
        totals = np.maximum(mean[TOTALS], RARE * at_least)
        slopes = np.zeros(len(mean))
        slopes[MATCHES], slopes[TOTALS] = 1 / MAX_ORDER / matches, -1 / MAX_ORDER / totals
        log_bleu = float(np.log(matches / totals).mean())
        if length < reference:
            log_bleu += 1 - reference / length
            slopes[:2] = reference / length**2, -1 / length
        bleu = float(np.exp(log_bleu))
        return bleu, bleu * slopes
