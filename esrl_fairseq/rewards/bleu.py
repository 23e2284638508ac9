"""Sentence-level BLEU: the value of sacrebleu, several times as fast for a batch of samples.

The counts are those of :mod:`esrl_fairseq.rewards.bleu_counts`; the formula is that of
``sacrebleu.BLEU.compute_bleu`` (Papineni et al., 2002; smoothing methods of Chen and Cherry, 2014),
in numpy, and tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import sacrebleu

from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.base import Reward, register_reward
from esrl_fairseq.rewards.bleu_counts import TOKENIZERS, BleuTexts, check_choice
from esrl_fairseq.rewards.ngrams import Floats, Ints, ngram_totals

__all__ = ["SMOOTH_METHODS", "TOKENIZERS", "BleuReward", "bleu_from_counts"]

SMOOTH_METHODS = ("exp", "floor", "add-k", "none")


@register_reward("bleu")
class BleuReward(BleuTexts, Reward):
    """Sentence BLEU / 100, in [0, 1]: ``sacrebleu.BLEU(effective_order=True, …)`` to 1e-6.

    An empty hypothesis, and one that shares no word with a reference, scores 0. A truncated
    hypothesis is scored as the text it is.

    Args:
        smooth_method: ``exp`` (sacrebleu's default), ``floor``, ``add-k`` or ``none``.
        smooth_value: for ``floor`` (default 0.1) and ``add-k`` (default 1), at least 0.
        tokenize: ``13a`` (detokenised text), ``none`` (text that is tokenised already), ``intl``,
            ``char`` or ``zh``.
        lowercase: compare without case.

    Raises:
        EsrlError: for a value that is not one of these.
    """

    range = (0.0, 1.0)

    def __init__(
        self,
        smooth_method: str = "exp",
        smooth_value: float | None = None,
        tokenize: str = "13a",
        lowercase: bool = False,
    ) -> None:
        check_choice(self.name, "smooth_method", smooth_method, SMOOTH_METHODS)
        _check_smooth_value(smooth_value)
        super().__init__(
            tokenize,
            lowercase,
            smooth_method=smooth_method,
            smooth_value=smooth_value,
            effective_order=True,
        )
        self.smooth_method = smooth_method
        self.smooth_value = smooth_value

    def score(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> Floats:
        """float64 [rows] in [0, 1]; see `Reward.score`."""
        smooth_value = self.smooth_value
        if smooth_value is None:
            smooth_value = sacrebleu.BLEU.SMOOTH_DEFAULTS[self.smooth_method]
        counts = self.count(references, hypotheses, row_input)
        return bleu_from_counts(*counts, self.smooth_method, smooth_value or 0.0)


def bleu_from_counts(
    correct: Ints,
    lengths: Ints,
    reference_lengths: Ints,
    smooth_method: str,
    smooth_value: float,
) -> Floats:
    """BLEU / 100 with effective order, row by row: ``sacrebleu.BLEU.compute_bleu``.

    BLEU = BP · exp(1/N Σ_{n ≤ N} log p_n), p_n = correct_n / total_n, N the largest order that the
    hypothesis has, BP = exp(1 − reference length / length) for a hypothesis that is shorter.
    Smoothing: ``exp`` sets the m-th vanishing p_n to 1 / (2^m total_n), ``floor`` a vanishing
    correct_n to `smooth_value`, ``add-k`` adds it to both for n > 1; with ``none`` one vanishing
    p_n makes the score 0. No correct word: 0 always.

    Args:
        correct: [rows, orders] clipped matches.
        lengths: [rows] words of the hypothesis.
        reference_lengths: [rows] words of the closest reference.
        smooth_method: one of `SMOOTH_METHODS`.
        smooth_value: for ``floor`` and ``add-k``.

    Returns:
        float64 [rows] in [0, 1].
    """
    matches = correct.astype(np.float64)
    totals = ngram_totals(lengths, correct.shape[1]).astype(np.float64)
    if smooth_method == "add-k":
        matches[:, 1:] += smooth_value
        totals[:, 1:] += smooth_value
    used = totals > 0
    if smooth_method == "exp":
        zero = used & (matches == 0)
        matches = np.where(zero, 0.5 ** np.cumsum(zero, axis=1), matches)
    elif smooth_method == "floor":
        matches = np.where(matches == 0, smooth_value, matches)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(used, np.log(matches / totals), 0.0)
        brevity = np.minimum(1.0 - reference_lengths / lengths, 0.0)
        scores = np.exp(brevity + logs.sum(axis=1) / used.sum(axis=1))
    return np.where(correct.any(axis=1), np.minimum(scores, 1.0), 0.0)


def _check_smooth_value(value: float | None) -> None:
    if value is not None and not (isinstance(value, (int, float)) and value >= 0):
        raise EsrlError(f"reward 'bleu': smooth_value must be a number >= 0, not {value!r}")
